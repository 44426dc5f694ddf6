"""Bytes of the key/value cache from a config: what a longer context costs."""

from __future__ import annotations

from minimoe.config import ModelConfig


def kv_bytes_per_token(config: ModelConfig, dtype: str | None = None) -> int:
    """Bytes that one more token of context adds to the caches of all layers.

    Args:
      config: the model; each layer's attention says what it keeps of a token.
      dtype: of what the caches hold; the model's own by default.

    Example:
      >>> kv_bytes_per_token(ModelConfig.preset("nano")), kv_bytes_per_token(ModelConfig.preset("nano"), "bfloat16")
      (2048, 1024)
    """
    kept = config.dtype if dtype is None else dtype
    return sum(
        number * layer.attention.cache_bytes_per_token(kept)
        for layer, number in config.layer_counts.items()
        if layer.attention is not None
    )
