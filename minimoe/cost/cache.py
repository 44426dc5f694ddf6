"""Bytes of the key/value cache from a config: what a longer context costs."""

from __future__ import annotations

from minimoe.config import ModelConfig
from minimoe.cost.published import PublishedModel


def kv_bytes_per_token(config: ModelConfig | PublishedModel, dtype: str | None = None) -> int | float:
    """Bytes that one more token of context adds to the caches of all layers; a head for multi-token prediction is left out.

    Args:
      config: the model, ours or a published one; each layer's attention says what it keeps of a token.
      dtype: of what the caches hold; the model's own, or the published storage, by default.

    Example:
      >>> kv_bytes_per_token(ModelConfig.preset("nano")), kv_bytes_per_token(ModelConfig.preset("nano"), "bfloat16")
      (2048, 1024)
    """
    if isinstance(config, PublishedModel):
        return config.kv_bytes_per_token(dtype)
    kept = config.dtype if dtype is None else dtype
    return sum(
        number * layer.attention.cache_bytes_per_token(kept)
        for layer, number in config.layer_counts.items()
        if layer.attention is not None
    )
