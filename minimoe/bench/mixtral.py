"""The Transformers reference: the same weights in a Mixtral model, with the experts implementation ``grouped_mm``.

Names, transpositions and settings are those by which `minimoe.hub` writes such models. torch and transformers are imported
inside the functions: this file is readable, and importable, without them. Axes: D model width, F expert hidden width.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import nnx

from minimoe.attention import GroupedQueryConfig
from minimoe.config import ModelConfig, MoEConfig
from minimoe.errors import UserError
from minimoe.hub.layouts import LAYOUTS
from minimoe.hub.layouts.layout import Layout, Row
from minimoe.hub.layouts.mixtral import SPARSE
from minimoe.model import MoETransformer
from minimoe.model.paths import named_leaves
from minimoe.moe import MoELayer

if TYPE_CHECKING:
    import torch

EXPERTS_IMPLEMENTATION = "grouped_mm"
NOT_INSTALLED = "not installed: pip install 'minimoe[interop]'"

LAYOUT = LAYOUTS["mixtral"]
BLOCK = {ours.removeprefix("ffn."): row for ours, row in SPARSE.items()}  # the table of one layer of experts
NO_END = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # so that generation never stops


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
    """``transformers.MixtralConfig`` of the same model, router loss off, no end token."""
    from transformers import MixtralConfig

    if reason := not_mixtral(config):
        raise UserError(reason)
    mixtral = MixtralConfig(**settings(LAYOUT, config), output_router_logits=False, router_aux_loss_coef=0.0)
    mixtral._experts_implementation = EXPERTS_IMPLEMENTATION
    return mixtral


def settings(layout: Layout, config: ModelConfig) -> dict[str, Any]:
    """What a config class of Transformers takes: its config.json without its kind, and no end token."""
    assert layout.write_config is not None
    found = layout.write_config(config) | NO_END
    return {name: value for name, value in found.items() if name not in ("model_type", "architectures")}


def mixtral_model(model: MoETransformer) -> Any:
    """``MixtralForCausalLM`` with a copy of the model's weights; missing or unexpected names are errors."""
    from transformers import MixtralForCausalLM

    use_all_cores()
    state = tensors(LAYOUT.rows(model.config), model)
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
    state = {name.removeprefix("mlp."): tensor for name, tensor in tensors(BLOCK, layer).items()}
    block.load_state_dict(state, strict=True)
    return block


def block_gradients(block: Any) -> dict[str, np.ndarray]:
    """The block's weight gradients by our path and in our layout."""
    named = {f"mlp.{name}": parameter.grad.numpy() for name, parameter in block.named_parameters()}
    return {ours: row.from_memory(named.__getitem__) for ours, row in BLOCK.items() if row.names}


def use_all_cores() -> None:
    """As many PyTorch threads as JAX has: one a core."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)


def to_torch(array: Any) -> torch.Tensor:
    """A PyTorch tensor of its own memory."""
    import torch

    return torch.from_numpy(np.array(array, order="C"))


def tensors(rows: Mapping[str, Row], module: nnx.Module) -> dict[str, torch.Tensor]:
    """The weights of a module under the names that a running model of Transformers has for them.

    Raises:
      UserError: if the table and the module differ.
    """
    leaves = named_leaves(nnx.state(module, nnx.Not(nnx.RngState)))
    if set(rows) != set(leaves):
        raise UserError(f"the table and the model differ in {sorted(set(rows) ^ set(leaves))}")
    parts = (row.to_memory(np.asarray(leaves[ours][...])) for ours, row in rows.items())
    return {name: to_torch(array) for part in parts for name, array in part.items()}
