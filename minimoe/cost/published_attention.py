"""Attention of published models as counts: parameters, bytes that are kept, FLOPs of one token.

    kind               kept per token and layer                             example
    latent             512 + 64 numbers                                     bfloat16: 1152 bytes
    latent, indexed    512 fp8 + 4 float32 scales + 64 bfloat16, 128 fp8 + 1 float32 scale    656 + 132 bytes
    compressed         (584 + 68) / m, m = 4; a window of 128 entries       163 bytes
    heavily compressed 584 / m', m' = 128; a window of 128 entries          4.5625 bytes
    sliding            a window of 128 entries only                         0 bytes

584 bytes are 448 fp8, 64 bfloat16, 7 one-byte scales and 1 byte of padding. 68 bytes are 128 fp4 and 4 one-byte scales.
"""

from __future__ import annotations

import dataclasses

from minimoe.attention.row_bytes import V4, entry_bytes, index_key_bytes


@dataclasses.dataclass(frozen=True)
class LatentCounts:
    """Multi-head latent attention of DeepSeek-V3; with an indexer, the sparse attention of V3.2.

    FLOPs are those of absorbed decoding: every head sees keys of ``latent + rope`` and values of ``latent`` numbers.
    """

    heads: int
    q_rank: int
    latent: int
    nope: int
    rope: int
    value: int
    index_heads: int = 0
    index_dim: int = 0
    index_top_k: int = 0

    shares_key_and_value = False

    def projection_params(self, d_model: int) -> int:
        """Queries down and up, the latent down and up, the output."""
        queries = d_model * self.q_rank + self.q_rank * self.heads * (self.nope + self.rope)
        latent = d_model * (self.latent + self.rope) + self.latent * self.heads * (self.nope + self.value)
        return queries + latent + self.heads * self.value * d_model

    def selection_params(self, d_model: int) -> int:
        """The indexer: its queries, its one key, and a weight a head."""
        queries = self.q_rank * self.index_heads * self.index_dim
        return queries + d_model * (self.index_dim + self.index_heads)

    def bytes_per_token(self, width: int | None) -> tuple[int | float, int | float]:
        """Of the latent and of the indexer key; ``width`` bytes a number, or None for the published storage."""
        if width is not None or not self.index_heads:
            each = 2 if width is None else width
            return (self.latent + self.rope) * each, self.index_dim * each
        return self.latent + 4 * (self.latent // 128) + 2 * self.rope, self.index_dim + 4 * (self.index_dim // 128)

    def window_bytes(self, width: int | None, context: int) -> int | float:
        """None is kept."""
        return 0

    def tail_bytes(self) -> int:
        """None is kept."""
        return 0

    def core_flops(self, context: int) -> int | float:
        """``heads * attended * 2 * (d_qk + d_v)``."""
        attended = min(self.index_top_k, context) if self.index_heads else context
        return 2.0 * self.heads * attended * (2 * self.latent + self.rope)

    def indexer_flops(self, context: int) -> int | float:
        """A score of every head for every token."""
        return 2.0 * self.index_heads * self.index_dim * context


@dataclasses.dataclass(frozen=True)
class SharedCounts:
    """Attention of DeepSeek-V4: one entry is key and value; a window, and entries that stand for ``ratio`` tokens.

    ``ratio`` 0 has the window only. An indexer makes it compressed sparse attention, whose entries overlap; without one
    it is heavily compressed attention.
    """

    heads: int
    head_dim: int
    rope: int
    q_rank: int
    out_groups: int
    out_rank: int
    window: int
    ratio: int = 0
    index_heads: int = 0
    index_dim: int = 0
    index_top_k: int = 0

    shares_key_and_value = True

    def projection_params(self, d_model: int) -> int:
        """Queries down and up, one entry, and the output in groups."""
        width = self.heads * self.head_dim
        queries = d_model * self.q_rank + self.q_rank * width
        return queries + d_model * self.head_dim + width * self.out_rank + self.out_groups * self.out_rank * d_model

    def selection_params(self, d_model: int) -> int:
        """Compressor (entry and gate, both twice where entries overlap), indexer compressor, queries, head weights."""
        overlap = 2 if self.index_heads else 1
        compressors = 2 * d_model * overlap * (self.head_dim + self.index_dim) if self.ratio else 0
        return compressors + self.q_rank * self.index_heads * self.index_dim + d_model * self.index_heads

    def _entry_bytes(self, width: int | None) -> int | float:
        if width is not None:
            return width * self.head_dim
        return entry_bytes(self.head_dim, self.rope, V4)

    def bytes_per_token(self, width: int | None) -> tuple[int | float, int | float]:
        """Of the entries and of the indexer keys; ``width`` bytes a number, or None for the published storage."""
        if not self.ratio:
            return 0, 0
        key = index_key_bytes(self.index_dim, V4) if width is None else width * self.index_dim
        return self._entry_bytes(width) / self.ratio, key / self.ratio

    def window_bytes(self, width: int | None, context: int) -> int | float:
        """The ring of the last tokens' entries."""
        return min(self.window, context) * self._entry_bytes(width)

    def tail_bytes(self) -> int:
        """What is not compressed yet, entry and gate in float32; both windows where entries overlap."""
        overlap = 2 if self.index_heads else 1
        return 2 * 4 * (overlap * self.ratio) * overlap * (self.head_dim + self.index_dim)

    def core_flops(self, context: int) -> int | float:
        """``heads * attended * 2 * (d_qk + d_v)``; attended are the window and the entries."""
        entries = context // self.ratio if self.ratio else 0
        chosen = min(self.index_top_k, entries) if self.index_heads else entries
        return 2.0 * self.heads * (min(self.window, context) + chosen) * 2 * self.head_dim

    def indexer_flops(self, context: int) -> int | float:
        """A score of every head for every entry."""
        return 2.0 * self.index_heads * self.index_dim * (context // self.ratio) if self.index_heads else 0.0


AttentionCounts = LatentCounts | SharedCounts
ATTENTION_COUNTS: dict[str, type[LatentCounts] | type[SharedCounts]] = {
    "latent": LatentCounts,
    "latent_indexed": LatentCounts,
    "sliding": SharedCounts,
    "compressed_sparse": SharedCounts,
    "heavily_compressed": SharedCounts,
}
