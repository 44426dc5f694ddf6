"""The Transformers reference: the same weights in a Mixtral model, with the experts implementation ``grouped_mm``.

Axes: D model width, F expert hidden width, E experts. Ours are ``[in, out]`` matrices, PyTorch's are ``[out, in]``, so
the whole mapping is a table of names and one transposition; rotary layout (halves) and gate-before-up agree already.
torch and transformers are imported inside the functions: this file is readable, and importable, without them.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import nnx

from minimoe.attention import GroupedQueryConfig
from minimoe.config import ModelConfig, MoEConfig
from minimoe.errors import UserError
from minimoe.model import MoETransformer
from minimoe.model.paths import named_leaves
from minimoe.moe import MoELayer

if TYPE_CHECKING:
    import torch

EXPERTS_IMPLEMENTATION = "grouped_mm"
NOT_INSTALLED = "not installed: pip install 'minimoe[interop]'"

# our path -> Mixtral's name, and whether the last two axes are swapped. {i} is the layer.
ONCE = {
    "embed.embedding": ("model.embed_tokens.weight", False),
    "norm.scale": ("model.norm.weight", False),
    "head.kernel": ("lm_head.weight", True),
}
EVERY_LAYER = {
    "attention_norm.scale": ("input_layernorm.weight", False),
    "attention.q_proj.kernel": ("self_attn.q_proj.weight", True),
    "attention.k_proj.kernel": ("self_attn.k_proj.weight", True),
    "attention.v_proj.kernel": ("self_attn.v_proj.weight", True),
    "attention.o_proj.kernel": ("self_attn.o_proj.weight", True),
    "ffn_norm.scale": ("post_attention_layernorm.weight", False),
    "ffn.router.kernel": ("mlp.gate.weight", True),  # [D, E] -> [E, D]
    "ffn.experts.gate_up_proj": ("mlp.experts.gate_up_proj", True),  # [E, D, 2F] -> [E, 2F, D]
    "ffn.experts.down_proj": ("mlp.experts.down_proj", True),  # [E, F, D] -> [E, D, F]
}


def unavailable() -> str | None:
    """Why there is no reference to measure: a line for the reader, or None when there is one."""
    missing = any(importlib.util.find_spec(name) is None for name in ("torch", "transformers"))
    return NOT_INSTALLED if missing else None


def unaligned(moe: MoEConfig) -> str | None:
    """Why ``grouped_mm`` refuses these experts, or None: PyTorch wants every row to fill whole blocks of 16 bytes."""
    if moe.d_model % 4 or moe.d_expert % 4:
        return f"not compared: grouped_mm needs D={moe.d_model} and F={moe.d_expert} to be multiples of 4"
    return None


def not_mixtral(config: ModelConfig) -> str | None:
    """Why Mixtral cannot express ``config``, or None if it can."""
    moe = config.moe
    if moe is None:
        return "not compared: a dense model has no Mixtral equivalent"
    wanted = MoEConfig(moe.d_model, moe.d_expert, moe.num_experts, moe.top_k, dispatch=moe.dispatch)
    if moe != wanted:
        return "not compared: Mixtral has softmax scores, normalised weights and no shared experts"
    if reason := unaligned(moe):
        return reason
    if not isinstance(config.attention, GroupedQueryConfig) or len(config.layer_counts) > 1:
        return "not compared: Mixtral has grouped-query attention and experts in every layer"
    if config.mtp is not None:
        return "not compared: Mixtral has no head for multi-token prediction"
    if config.dropout or {config.dtype, config.param_dtype} != {"float32"}:
        return "not compared: the reference runs in float32 without dropout"
    return None


def mixtral_config(config: ModelConfig) -> Any:
    """``transformers.MixtralConfig`` of the same model, router loss off, no end token (so generation never stops)."""
    from transformers import MixtralConfig

    if reason := not_mixtral(config):
        raise UserError(reason)
    attention = config.attention
    assert config.moe is not None
    assert isinstance(attention, GroupedQueryConfig)
    mixtral = MixtralConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.moe.d_expert,
        num_hidden_layers=config.num_layers,
        num_attention_heads=attention.num_heads,
        num_key_value_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        max_position_embeddings=config.context_length,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": attention.rope_theta},
        tie_word_embeddings=config.tie_embeddings,
        num_local_experts=config.moe.num_experts,
        num_experts_per_tok=config.moe.top_k,
        output_router_logits=False,
        router_aux_loss_coef=0.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    mixtral._experts_implementation = EXPERTS_IMPLEMENTATION
    return mixtral


def mixtral_names(config: ModelConfig) -> dict[str, tuple[str, bool]]:
    """The whole table: our path -> (Mixtral's name, swapped)."""
    names = {ours: row for ours, row in ONCE.items() if not (ours == "head.kernel" and config.tie_embeddings)}
    for i in range(config.num_layers):
        names |= {f"layers.{i}.{ours}": (f"model.layers.{i}.{name}", s) for ours, (name, s) in EVERY_LAYER.items()}
    return names


def mixtral_model(model: MoETransformer) -> Any:
    """``MixtralForCausalLM`` with a copy of the model's weights; missing or unexpected names are errors."""
    from transformers import MixtralForCausalLM

    use_all_cores()
    table, weights = mixtral_names(model.config), _params(model)
    if set(table) != set(weights):
        raise UserError(f"the mapping and the model differ in {sorted(set(table) ^ set(weights))}")
    state = {name: to_torch(weights[ours], swap) for ours, (name, swap) in table.items()}
    reference = MixtralForCausalLM(mixtral_config(model.config))
    if model.config.tie_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    reference.load_state_dict(state, strict=True)
    return reference.float()


def mixtral_block(layer: MoELayer) -> Any:
    """``MixtralSparseMoeBlock`` with a copy of the layer's weights. It takes ``[1, T, D]``."""
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    use_all_cores()
    moe = layer.config
    shell = ModelConfig(1, moe.d_model, 1, GroupedQueryConfig(1, 1, 2), moe)  # the block reads its experts' sizes only
    block = MixtralSparseMoeBlock(mixtral_config(shell))
    weights = _params(layer)
    rows = {ours.removeprefix("ffn."): row for ours, row in EVERY_LAYER.items() if ours.startswith("ffn.")}
    state = {name.removeprefix("mlp."): to_torch(weights[ours], swap) for ours, (name, swap) in rows.items()}
    block.load_state_dict(state, strict=True)
    return block


def block_gradients(block: Any) -> dict[str, np.ndarray]:
    """The block's weight gradients by our path and in our layout."""
    named = {f"mlp.{name}": parameter.grad for name, parameter in block.named_parameters()}
    rows = {ours.removeprefix("ffn."): row for ours, row in EVERY_LAYER.items() if ours.startswith("ffn.")}
    return {ours: _swapped(named[name].numpy(), swap) for ours, (name, swap) in rows.items()}


def use_all_cores() -> None:
    """As many PyTorch threads as JAX has: one a core."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)


def to_torch(array: Any, swap: bool = False) -> torch.Tensor:
    """A PyTorch tensor of its own memory."""
    import torch

    return torch.from_numpy(np.array(_swapped(np.asarray(array), swap), order="C"))


def _swapped(array: np.ndarray, swap: bool) -> np.ndarray:
    return np.swapaxes(array, -1, -2) if swap else array


def _params(module: nnx.Module) -> dict[str, Any]:
    """Parameters by dotted path."""
    return {name: variable[...] for name, variable in named_leaves(nnx.state(module, nnx.Param)).items()}
