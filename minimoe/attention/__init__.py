"""Attention: the arithmetic, the cache it may read from, and the kinds of attention."""

from minimoe.attention.cache import Cache, KVCache, admitted, cache_shape
from minimoe.attention.core import causal_attention, masked_attention
from minimoe.attention.csa import CompressedSparseAttention, CompressedSparseConfig
from minimoe.attention.gqa import GroupedQueryAttention, GroupedQueryConfig
from minimoe.attention.hca import HeavilyCompressedAttention, HeavilyCompressedConfig
from minimoe.attention.indexer import IndexLoss
from minimoe.attention.kinds import ATTENTIONS, AttentionConfig
from minimoe.attention.mla import LatentCache, MultiHeadLatentAttention, MultiHeadLatentConfig
from minimoe.attention.rotary import YarnConfig
from minimoe.attention.shared_kv import SharedKVAttention, SharedKVCache
from minimoe.attention.sliding import SlidingWindowConfig
from minimoe.attention.storage import PlainRows, Rows, RowStorage

__all__ = [
    "ATTENTIONS",
    "AttentionConfig",
    "Cache",
    "CompressedSparseAttention",
    "CompressedSparseConfig",
    "GroupedQueryAttention",
    "GroupedQueryConfig",
    "HeavilyCompressedAttention",
    "HeavilyCompressedConfig",
    "IndexLoss",
    "KVCache",
    "LatentCache",
    "MultiHeadLatentAttention",
    "MultiHeadLatentConfig",
    "PlainRows",
    "RowStorage",
    "Rows",
    "SharedKVAttention",
    "SharedKVCache",
    "SlidingWindowConfig",
    "YarnConfig",
    "admitted",
    "cache_shape",
    "causal_attention",
    "masked_attention",
]
