"""GLM-4-MoE (GLM-4.5): grouped-query attention, dense layers first, then sigmoid experts with a selection bias.

Half of each head is turned by its position (``partial_rotary_factor``), in halves on both sides, so no column moves.
Matrices are transposed. Gate and up of a dense or shared feed-forward are two matrices there and one here.
"""

from __future__ import annotations

from typing import Any

from minimoe.attention import GroupedQueryConfig
from minimoe.config import ModelConfig
from minimoe.errors import UserError
from minimoe.hub.layouts import common
from minimoe.hub.layouts.layout import Layout, Row, same
from minimoe.hub.layouts.settings import Settings

BIASES = {f"attention.{name}.bias": same(f"self_attn.{name}.bias") for name in ("q_proj", "k_proj", "v_proj")}
QK_NORMS = {f"attention.{name}.scale": same(f"self_attn.{name}.weight") for name in ("q_norm", "k_norm")}


def rows(config: ModelConfig) -> dict[str, Row]:
    """The whole table."""
    attention = config.attention
    assert isinstance(attention, GroupedQueryConfig)
    always = common.NORMS | common.ATTENTION
    always = always | (BIASES if attention.bias else {}) | (QK_NORMS if attention.qk_norm else {})
    return common.table(config, [always | common.feed_forward(layer) for layer in config.layers])


def read_config(settings: Settings, dtype: str) -> ModelConfig:
    """The config of the same model here."""
    shared, rope, width = common.sizes(settings, dtype), settings.plain_rope(), settings.head_dim()
    attention = GroupedQueryConfig(
        num_heads=settings.get("num_attention_heads"),
        num_kv_heads=settings.get("num_key_value_heads"),
        head_dim=width,
        rope_theta=rope["rope_theta"],
        rope_dim=int(width * rope.get("partial_rotary_factor", 0.5)),
        qk_norm=settings.get("use_qk_norm", False),
        bias=settings.get("attention_bias", False),
        norm_eps=shared["norm_eps"],
    )
    return ModelConfig(attention=attention, **common.feed_forwards(settings, dtype), **shared)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_config`."""
    attention = config.layers[0].attention
    if not isinstance(attention, GroupedQueryConfig):
        raise UserError("its attention is not grouped-query")
    rope = {"rope_type": "default", "rope_theta": float(attention.rope_theta)}
    return (
        common.written_sizes(config, "Glm4MoeForCausalLM", "glm4_moe")
        | common.written_sigmoid_experts(config)
        | {
            "num_attention_heads": attention.num_heads,
            "num_key_value_heads": attention.num_kv_heads,
            "head_dim": attention.head_dim,
            "rope_parameters": rope
            | {"partial_rotary_factor": common.rotary_share(attention.turned, attention.head_dim)},
            "use_qk_norm": attention.qk_norm,
            "attention_bias": attention.bias,
        }
    )


LAYOUT = Layout("glm4_moe", read_config, rows, write_config, ignored=common.prediction_layer)
