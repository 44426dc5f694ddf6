"""The ready-made models."""

from __future__ import annotations

from minimoe.attention import GroupedQueryConfig
from minimoe.config.model import ModelConfig
from minimoe.config.moe import MoEConfig


def _sparse(d_model: int, d_expert: int, num_experts: int, num_heads: int) -> ModelConfig:
    moe = MoEConfig(d_model, d_expert, num_experts, top_k=2, num_shared_experts=1, score="sigmoid")
    attention = GroupedQueryConfig(num_heads, num_kv_heads=num_heads // 2, head_dim=32)
    return ModelConfig(vocab_size=2048, d_model=d_model, num_layers=4, attention=attention, moe=moe)


# Both are expressible as Transformers' glm4_moe: grouped-query attention, sigmoid scores with a selection bias, a
# shared expert, normalised weights.
PRESETS: dict[str, ModelConfig] = {
    "nano": _sparse(128, 128, 8, num_heads=4),
    "small": _sparse(256, 192, 16, num_heads=8),
}
