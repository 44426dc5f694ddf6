"""A model and its tokenizer as bytes and a table, for a program in another language.

Every matrix is stored output first, ``[O, I]``, experts stacked above each other. It has these parts:

    NAME.codes, NAME.scale          int8, and one float32 scale for each row
    NAME.fp4, NAME.fp4_scale        experts alone: 4-bit codes, two a byte, and the exponents that 32 of them share
    NAME.float                      bfloat16; left out where the model itself holds the int8 codes

Axes: D model width, E experts, O outputs, I inputs.
"""

from __future__ import annotations

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe.attention import GroupedQueryConfig
from minimoe.config import ModelConfig
from minimoe.data import Tokenizer
from minimoe.data.evaluation import window_length
from minimoe.data.train_tokenizer import SPLIT_PATTERN
from minimoe.errors import UserError
from minimoe.layers import AddConfig
from minimoe.model import MoETransformer
from minimoe.quant.layers import QuantEmbed, QuantExperts, QuantLinear
from minimoe.quant.specs import INT8_CHANNEL, MXFP4
from minimoe.quant.tensor import QTensor, quantize

DTYPES = {"float32": 4, "bfloat16": 2, "int8": 1, "uint8": 1}
MOST_TOKENS = 65_536  # the page counts pairs of tokens as one number


class Packer:
    """Collects arrays one after the other, each at a multiple of four bytes, and the table that finds them."""

    def __init__(self) -> None:
        self.table: dict[str, dict[str, Any]] = {}
        self.content = bytearray()

    def add(self, name: str, array: Any, dtype: str) -> None:
        """One array, as ``dtype``."""
        values = np.ascontiguousarray(np.asarray(array).astype(jnp.dtype(dtype)))
        self.content += bytes(-len(self.content) % 4)
        self.table[name] = {"dtype": dtype, "offset": len(self.content), "length": values.size}
        self.content += values.tobytes() if np.little_endian else values.byteswap().tobytes()

    def add_matrix(self, name: str, weight: Any, *, fp4: bool = False) -> None:
        """A matrix or a stack of them, contraction axis last: a QTensor or floats."""
        floats = weight.dequantize() if isinstance(weight, QTensor) else jnp.asarray(weight, jnp.float32)
        is_int8 = isinstance(weight, QTensor) and weight.spec == INT8_CHANNEL
        codes = weight if is_int8 else quantize(floats, INT8_CHANNEL)
        self.add(f"{name}.scale", codes.scale, "float32")
        self.add(f"{name}.codes", codes.codes, "int8")
        if not is_int8:
            self.add(f"{name}.float", floats, "bfloat16")
        if fp4:
            packed = weight if isinstance(weight, QTensor) and weight.spec == MXFP4 else quantize(floats, MXFP4)
            self.add(f"{name}.fp4", packed.codes, "uint8")
            self.add(f"{name}.fp4_scale", packed.scale, "uint8")


def pack_model(model: MoETransformer) -> tuple[dict[str, Any], bytes]:
    """The table of a model, ready for JSON, and its bytes.

    Raises:
      UserError: for a model with parts that the page cannot compute, naming them.

    Example:
      >>> header, content = pack_model(MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0)))
      >>> header["tensors"]["0.gate_up.fp4"]["length"] == 8 * 256 * 128 // 2
      True
    """
    config = check_supported(model.config)
    packer = Packer()
    packer.add("norm", model.norm.scale[...], "float32")  # type: ignore[index]
    packer.add_matrix("embed", _matrix(model.embed))
    if model.head is not None:
        packer.add_matrix("head", _matrix(model.head))
    for i, block in enumerate(model.layers):
        _pack_block(packer, i, block)
    return {"config": config, "tensors": packer.table}, bytes(packer.content)


def _pack_block(packer: Packer, i: int, block: Any) -> None:
    packer.add(f"{i}.attention_norm", block.attention_norm.scale[...], "float32")
    packer.add(f"{i}.ffn_norm", block.ffn_norm.scale[...], "float32")
    for name in ("q", "k", "v", "o"):
        packer.add_matrix(f"{i}.{name}", _matrix(getattr(block.attention, f"{name}_proj")))
    packer.add(f"{i}.router", block.ffn.router.kernel[...].T, "float32")
    packer.add(f"{i}.bias", block.ffn.router.bias[...], "float32")
    gate_up, down = _stacks(block.ffn.experts)
    packer.add_matrix(f"{i}.gate_up", gate_up, fp4=True)
    packer.add_matrix(f"{i}.down", down, fp4=True)
    if block.ffn.shared is not None:
        packer.add_matrix(f"{i}.shared_gate_up", _matrix(block.ffn.shared.gate_up_proj))
        packer.add_matrix(f"{i}.shared_down", _matrix(block.ffn.shared.down_proj))


def _matrix(module: Any) -> Any:
    """``[O, I]`` of a linear layer or an embedding, quantized or not."""
    if isinstance(module, (QuantLinear, QuantEmbed)):
        return module.weight
    return module.embedding[...] if isinstance(module, nnx.Embed) else module.kernel[...].T


def _stacks(experts: Any) -> tuple[Any, Any]:
    """``[E, O, I]`` of both stacks of experts."""
    if isinstance(experts, QuantExperts):
        return experts.gate_up, experts.down
    return jnp.swapaxes(experts.gate_up_proj[...], 1, 2), jnp.swapaxes(experts.down_proj[...], 1, 2)


def check_supported(config: ModelConfig) -> dict[str, Any]:
    """The sizes that the page reads.

    Raises:
      UserError: for a model with parts that the page cannot compute, naming them.
    """
    first = config.layers[0]
    attention, moe = first.attention, first.moe
    gqa = attention if isinstance(attention, GroupedQueryConfig) else None
    faults = {
        "layers that differ from each other": len(config.layer_counts) > 1,
        f"attention of the kind {getattr(attention, 'kind', None)!r}": gqa is None,
        "norms on queries and keys": gqa is not None and gqa.qk_norm,
        "biases of queries and keys": gqa is not None and gqa.bias,
        "positions that turn a part of each head": gqa is not None and gqa.turned != gqa.head_dim,
        f"residuals of the kind {config.residual.kind!r}": not isinstance(config.residual, AddConfig),
        "no experts (it is dense)": moe is None,
        f"routing by {getattr(moe, 'select', None)!r}": moe is not None and moe.select != "topk",
        "experts with a capacity": moe is not None and moe.dispatch == "capacity",
        "expert matrices whose width 32 does not divide": moe is not None
        and bool(moe.d_model % 32 or moe.d_expert % 32),
    }
    found = [name for name, there in faults.items() if there]
    if found:
        repair = "take a model of the shape of nano or small"
        raise UserError(f"the microscope cannot show this model, which has {'; '.join(found)}; {repair}")
    assert gqa is not None
    assert moe is not None
    sizes: dict[str, Any] = {name: getattr(config, name) for name in ("vocab_size", "d_model", "num_layers")}
    sizes |= {"context_length": window_length(config.context_length), "norm_eps": config.norm_eps}  # the page's memory
    sizes |= {name: getattr(gqa, name) for name in ("num_heads", "num_kv_heads", "head_dim", "rope_theta")}
    sizes |= {name: getattr(moe, name) for name in ("num_experts", "top_k", "score", "normalize_weights")}
    sizes |= {name: getattr(moe, name) for name in ("routed_scaling_factor", "swiglu_limit")}
    return sizes


def pack_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The token of each byte, and the merges as triples of tokens: left, right, merged.

    Raises:
      UserError: for a tokenizer that cuts text in another way than the package's own.

    Example:
      >>> from minimoe.data import load_tokenizer
      >>> parts = pack_tokenizer(load_tokenizer())
      >>> len(parts["bytes"]), len(parts["merges"]) // 3
      (256, 1791)
    """
    pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    tokens = {piece: token for token, piece in enumerate(pieces) if piece}
    parsed = json.loads(tokenizer.to_json())
    steps = parsed["pre_tokenizer"] or {}
    parts = steps.get("pretokenizers", [steps])
    cuts, last = [part.get("pattern", {}).get("Regex") for part in parts[:-1]], parts[-1]
    plain = last.get("type") == "ByteLevel" and not last.get("use_regex", True) and not last.get("add_prefix_space")
    alone = all(part.get("behavior") == "Isolated" and not part.get("invert") for part in parts[:-1])
    whole = parsed["model"].get("ignore_merges") or any(not one["special"] for one in parsed["added_tokens"])
    if cuts not in ([], [SPLIT_PATTERN]) or not plain or not alone or whole or tokenizer.vocab_size > MOST_TOKENS:
        raise UserError(f"the tokenizer {tokenizer.name!r} cuts text by a rule of its own; use bpe2048 or byte")
    names = parsed["model"]["vocab"]
    pairs = [(names[left], names[right]) for left, right in parsed["model"]["merges"]]
    merges = [(left, right, tokens[pieces[left] + pieces[right]]) for left, right in pairs]
    return {
        "eot": tokenizer.eot_id,
        "bytes": [tokens[bytes([value])] for value in range(256)],
        "merges": [token for merge in merges for token in merge],
        "cut": bool(cuts),
    }
