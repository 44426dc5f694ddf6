"""The models of the benchmarks."""

from __future__ import annotations

import dataclasses
from typing import Any

from minimoe.attention import (
    CompressedSparseConfig,
    GroupedQueryConfig,
    HeavilyCompressedConfig,
    SlidingWindowConfig,
)
from minimoe.config import PRESETS, LayerConfig, ModelConfig, MoEConfig
from minimoe.layers import HyperConnectionConfig

# The model of the training and decoding benchmarks, which Transformers has too: 21.1M parameters, 4.1M of them active.
MIXTRAL_21M = ModelConfig(
    vocab_size=2048,
    d_model=256,
    num_layers=6,
    attention=GroupedQueryConfig(num_heads=8, num_kv_heads=4, head_dim=32),
    context_length=256,
    moe=MoEConfig(d_model=256, d_expert=256, num_experts=16, top_k=2),
    tie_embeddings=False,
)
# More than a gigabyte in float32, most of it in experts: far more than any cache of a processor holds.
RANDOM_300M = ModelConfig(
    vocab_size=2048,
    d_model=1024,
    num_layers=3,
    attention=GroupedQueryConfig(num_heads=16, num_kv_heads=8, head_dim=64),
    context_length=64,
    moe=MoEConfig(1024, 2048, num_experts=16, top_k=2, num_shared_experts=1, score="sigmoid"),
)


def _v4_22m() -> ModelConfig:
    """The shape of DeepSeek-V4, which Transformers has too: two layers of a window alone, then CSA and HCA in turn."""
    shared: dict[str, Any] = {"num_heads": 8, "head_dim": 64, "rope_dim": 16, "q_rank": 128, "window": 32}
    shared |= {"out_groups": 2, "out_rank": 64}
    window = SlidingWindowConfig(**shared)
    sparse = CompressedSparseConfig(
        **shared, rope_theta=160_000.0, ratio=4, index_heads=4, index_dim=32, index_top_k=16
    )
    heavy = HeavilyCompressedConfig(**shared, rope_theta=160_000.0, ratio=16)
    sizes: dict[str, Any] = {"d_model": 256, "d_expert": 256, "num_experts": 16, "top_k": 2, "num_shared_experts": 1}
    moe = MoEConfig(**sizes, score="sqrtsoftplus", routed_scaling_factor=1.5, swiglu_limit=10.0)
    hashed = dataclasses.replace(moe, select="hash", hash_vocab_size=2048)
    return ModelConfig(
        vocab_size=2048,
        d_model=256,
        num_layers=6,
        attention=window,
        context_length=256,
        moe=moe,
        first_layers=(LayerConfig(moe=hashed), LayerConfig()),
        pattern=(LayerConfig(sparse), LayerConfig(heavy)),
        residual=HyperConnectionConfig(streams=4),
        norm_eps=1e-6,
        tie_embeddings=False,
    )


V4_22M = _v4_22m()

# As many active parameters a token as the presets of their names, in one feed-forward instead of experts.
DENSE_NANO = PRESETS["nano"].replace(moe=None, d_ff=3 * 128)
DENSE_SMALL = PRESETS["small"].replace(moe=None, d_ff=3 * 192)
