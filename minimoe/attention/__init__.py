"""Attention: the arithmetic, the cache it may read from, and the kinds of attention."""

from minimoe.attention.cache import Cache, KVCache, admitted, cache_shape
from minimoe.attention.core import causal_attention, masked_attention
from minimoe.attention.gqa import GroupedQueryAttention, GroupedQueryConfig
from minimoe.attention.kinds import ATTENTIONS, AttentionConfig
from minimoe.attention.mla import LatentCache, MultiHeadLatentAttention, MultiHeadLatentConfig
from minimoe.attention.rotary import YarnConfig

__all__ = [
    "ATTENTIONS",
    "AttentionConfig",
    "Cache",
    "GroupedQueryAttention",
    "GroupedQueryConfig",
    "KVCache",
    "LatentCache",
    "MultiHeadLatentAttention",
    "MultiHeadLatentConfig",
    "YarnConfig",
    "admitted",
    "cache_shape",
    "causal_attention",
    "masked_attention",
]
