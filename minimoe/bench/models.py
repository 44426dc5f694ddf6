"""The two models of the benchmarks."""

from __future__ import annotations

from minimoe.attention import GroupedQueryConfig
from minimoe.config import ModelConfig, MoEConfig

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
