"""Attention: the arithmetic, the cache it may read from, and grouped-query attention."""

from minimoe.attention.cache import Cache, KVCache
from minimoe.attention.core import causal_attention, masked_attention
from minimoe.attention.gqa import GroupedQueryAttention

__all__ = ["Cache", "GroupedQueryAttention", "KVCache", "causal_attention", "masked_attention"]
