"""The ready-made models."""

from __future__ import annotations

import dataclasses
from typing import Any

from minimoe.attention import (
    CompressedSparseConfig,
    GroupedQueryConfig,
    HeavilyCompressedConfig,
    SlidingWindowConfig,
)
from minimoe.config.layer import LayerConfig
from minimoe.config.model import ModelConfig
from minimoe.config.moe import MoEConfig
from minimoe.config.mtp import MTPConfig
from minimoe.layers import HyperConnectionConfig


def _sparse(d_model: int, d_expert: int, num_experts: int, num_heads: int) -> ModelConfig:
    moe = MoEConfig(d_model, d_expert, num_experts, top_k=2, num_shared_experts=1, score="sigmoid")
    attention = GroupedQueryConfig(num_heads, num_kv_heads=num_heads // 2, head_dim=32)
    return ModelConfig(vocab_size=2048, d_model=d_model, num_layers=4, attention=attention, moe=moe)


def _v4(d_model: int, d_expert: int, num_experts: int, num_heads: int, out_groups: int) -> ModelConfig:
    """All parts of DeepSeek-V4: a hash-routed layer with a window alone, then one entry for 4 tokens and for 16 in turn.

    Window, ratios and the indexer's choice are as much smaller than V4's as the context is. As in V4, window-only layers
    turn by 10,000 and the others by 160,000. YaRN is left out: no context is longer than those of training.
    """
    width = {"num_heads": num_heads, "head_dim": 32, "rope_dim": 8, "q_rank": d_model // 2}
    shared: dict[str, Any] = width | {"window": 32, "out_groups": out_groups, "out_rank": d_model // 2}
    window = SlidingWindowConfig(**shared)
    sparse = CompressedSparseConfig(
        **shared, rope_theta=160_000.0, ratio=4, index_heads=4, index_dim=16, index_top_k=16, index_loss=1.0
    )
    heavy = HeavilyCompressedConfig(**shared, rope_theta=160_000.0, ratio=16)
    moe = MoEConfig(
        d_model,
        d_expert,
        num_experts,
        top_k=2,
        num_shared_experts=1,
        score="sqrtsoftplus",
        routed_scaling_factor=1.5,
        swiglu_limit=10.0,
    )
    hashed = dataclasses.replace(moe, select="hash", hash_vocab_size=2048)
    return ModelConfig(
        vocab_size=2048,
        d_model=d_model,
        num_layers=4,
        attention=window,
        moe=moe,
        first_layers=(LayerConfig(moe=hashed),),
        pattern=(LayerConfig(sparse), LayerConfig(heavy)),
        mtp=MTPConfig(layer=LayerConfig(window)),
        residual=HyperConnectionConfig(streams=4),
        norm_eps=1e-6,
    )


# The first two are expressible as Transformers' glm4_moe: grouped-query attention, sigmoid scores with a selection bias, a
# shared expert, normalised weights.
PRESETS: dict[str, ModelConfig] = {
    "nano": _sparse(128, 128, 8, num_heads=4),
    "small": _sparse(256, 192, 16, num_heads=8),
    "v4-nano": _v4(128, 128, 8, num_heads=4, out_groups=2),
    "v4-small": _v4(256, 192, 16, num_heads=8, out_groups=2),
}
