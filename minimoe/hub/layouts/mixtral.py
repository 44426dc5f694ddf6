"""Mixtral: grouped-query attention, softmax experts in every layer, nothing else.

Every matrix is transposed, ``[out, in]`` there and ``[in, out]`` here. The experts are stacked in memory and single in
files, where they are called ``block_sparse_moe`` with ``w1`` (gate), ``w3`` (up) and ``w2`` (down). Rotary positions turn
halves on both sides, and the gate stands before the up projection on both sides.
"""

from __future__ import annotations

from typing import Any

from minimoe.attention import GroupedQueryConfig
from minimoe.config import ModelConfig, MoEConfig
from minimoe.errors import UserError
from minimoe.hub.layouts.common import ATTENTION, NORMS, sizes, table, written_sizes
from minimoe.hub.layouts.layout import ZERO, Layout, Row, experts, swapped
from minimoe.hub.layouts.settings import Settings

_FILES = "block_sparse_moe.experts.{e}."
SPARSE = {
    "ffn.router.kernel": swapped("mlp.gate.weight", "block_sparse_moe.gate.weight"),  # [E, D] -> [D, E]
    "ffn.router.bias": ZERO,
    "ffn.experts.gate_up_proj": experts("mlp.experts.gate_up_proj", _FILES + "w1.weight", _FILES + "w3.weight"),
    "ffn.experts.down_proj": experts("mlp.experts.down_proj", _FILES + "w2.weight"),
}


def rows(config: ModelConfig) -> dict[str, Row]:
    """The whole table."""
    return table(config, [NORMS | ATTENTION | SPARSE] * config.num_layers)


def read_config(settings: Settings, dtype: str) -> ModelConfig:
    """The config of the same model here."""
    settings.only("sliding_window", None, because="set it to null if no text will be longer than the window")
    shared = sizes(settings, dtype)
    attention = GroupedQueryConfig(
        num_heads=settings.get("num_attention_heads"),
        num_kv_heads=settings.get("num_key_value_heads"),
        head_dim=settings.head_dim(),
        rope_theta=settings.plain_rope()["rope_theta"],
    )
    moe = MoEConfig(
        d_model=shared["d_model"],
        d_expert=settings.get("intermediate_size"),
        num_experts=settings.get("num_local_experts"),
        top_k=settings.get("num_experts_per_tok"),
        dtype=dtype,
        param_dtype=dtype,
    )
    return ModelConfig(attention=attention, moe=moe, **shared)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_config`."""
    attention, moe = config.layers[0].attention, config.layers[0].moe
    if not isinstance(attention, GroupedQueryConfig) or moe is None:
        raise UserError("its layers are not grouped-query attention and experts, all of them")
    return written_sizes(config, "MixtralForCausalLM", "mixtral") | {
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(attention.rope_theta)},
        "intermediate_size": moe.d_expert,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "sliding_window": None,
    }


LAYOUT = Layout("mixtral", read_config, rows, write_config)
