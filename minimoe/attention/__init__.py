"""Attention: the arithmetic, the cache it may read from, and the kinds of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minimoe.lazy import lazy_names

if TYPE_CHECKING:
    from minimoe.attention.cache import Cache, KVCache, admitted, cache_shape
    from minimoe.attention.core import causal_attention, masked_attention
    from minimoe.attention.csa import CompressedSparseAttention
    from minimoe.attention.csa_config import CompressedSparseConfig
    from minimoe.attention.gqa import GroupedQueryAttention
    from minimoe.attention.gqa_config import GroupedQueryConfig
    from minimoe.attention.hca import HeavilyCompressedAttention
    from minimoe.attention.hca_config import HeavilyCompressedConfig
    from minimoe.attention.indexer import IndexLoss
    from minimoe.attention.kinds import ATTENTIONS, AttentionConfig
    from minimoe.attention.mla import LatentCache, MultiHeadLatentAttention
    from minimoe.attention.mla_config import MultiHeadLatentConfig
    from minimoe.attention.shared_kv import SharedKVAttention, SharedKVCache
    from minimoe.attention.sliding import SlidingWindowConfig
    from minimoe.attention.storage import PlainRows, Rows, RowStorage
    from minimoe.attention.yarn import YarnConfig

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

_HOMES = {
    "cache": "Cache KVCache admitted cache_shape",
    "core": "causal_attention masked_attention",
    "csa": "CompressedSparseAttention",
    "csa_config": "CompressedSparseConfig",
    "gqa": "GroupedQueryAttention",
    "gqa_config": "GroupedQueryConfig",
    "hca": "HeavilyCompressedAttention",
    "hca_config": "HeavilyCompressedConfig",
    "indexer": "IndexLoss",
    "kinds": "ATTENTIONS AttentionConfig",
    "mla": "LatentCache MultiHeadLatentAttention",
    "mla_config": "MultiHeadLatentConfig",
    "shared_kv": "SharedKVAttention SharedKVCache",
    "sliding": "SlidingWindowConfig",
    "storage": "PlainRows RowStorage Rows",
    "yarn": "YarnConfig",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
