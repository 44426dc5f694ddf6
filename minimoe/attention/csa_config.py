"""The sizes of compressed sparse attention, and what they cost. The module is `minimoe.attention.csa`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from minimoe.attention.compress_size import compressor_matrices, compressor_params, tail_bytes
from minimoe.attention.row_bytes import entry_bytes, index_key_bytes
from minimoe.attention.shared_kv_config import SharedKVConfig, mean_visible
from minimoe.checks import number_fields, whole_fields

if TYPE_CHECKING:
    from flax import nnx

    from minimoe.attention.compress import Compressed
    from minimoe.attention.csa import CompressedSparseAttention


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressedSparseConfig(SharedKVConfig):
    """A window, and the ``index_top_k`` best of the overlapping entries of ``ratio`` tokens.

    Args:
      ratio: m, tokens from one entry to the next.
      index_heads, index_dim: of the indexer's queries; ``rope_dim`` is at most ``index_dim``.
      index_top_k: K, entries that a query reads.
      index_loss: weight of what teaches the indexer while training, see `minimoe.attention.indexer.index_loss`; with 0 it
        stays as it is. The other arguments are those of `SharedKVConfig`.

    Example:
      >>> sizes = dict(num_heads=64, head_dim=512, rope_dim=64, q_rank=1024, window=128, out_groups=8, out_rank=1024)
      >>> csa = CompressedSparseConfig(**sizes, index_heads=64, index_dim=128, index_top_k=512)
      >>> csa.cache_bytes_per_token("v4")
      163.0
    """

    kind: ClassVar[str] = "compressed_sparse"

    index_heads: int
    index_dim: int
    index_top_k: int
    ratio: int = 4
    index_loss: int | float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_fields(self, "ratio", "index_heads", "index_dim", "index_top_k")
        self._check_rotary("index_dim")
        number_fields(self, "index_loss", low=0, high=1e6, hint="1 is usual, 0 leaves the indexer as it is")

    def build(
        self, d_model: int, *, out_scale: float, dtype: str, param_dtype: str, rngs: nnx.Rngs
    ) -> CompressedSparseAttention:
        """The module with these sizes."""
        from minimoe.attention.csa import CompressedSparseAttention

        return CompressedSparseAttention(
            self, d_model, out_scale=out_scale, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def _compressed(self, batch: int, size: int, storage: Any, dtype: Any) -> tuple[Compressed, ...]:
        from minimoe.attention.compress import Compressed

        entries = storage.entry_rows(batch, size // self.ratio, self.head_dim, self.rope_dim, dtype)
        keys = storage.index_rows(batch, size // self.ratio, self.index_dim, dtype)
        return tuple(Compressed.empty(rows, self.ratio, True) for rows in (entries, keys))

    def num_params(self, d_model: int) -> int:
        biases_and_norms = sum(
            compressor_params(d_model, width, self.ratio, True) - compressor_matrices(d_model, width, True)
            for width in (self.head_dim, self.index_dim)
        )
        return super().num_params(d_model) + biases_and_norms

    def _matrices(self, d_model: int) -> int:
        pools = sum(compressor_matrices(d_model, width, True) for width in (self.head_dim, self.index_dim))
        indexer = self.index_heads * (self.q_rank * self.index_dim + d_model)
        return super()._matrices(d_model) + pools + indexer

    def _bytes_per_entry(self, dtype: Any) -> int:
        return entry_bytes(self.head_dim, self.rope_dim, dtype) + index_key_bytes(self.index_dim, dtype)

    def cache_bytes_per_token(self, dtype: Any) -> float:
        return self._bytes_per_entry(dtype) / self.ratio

    def cache_parts(self, context: int, dtype: Any) -> dict[str, int]:
        entries = context // self.ratio * self._bytes_per_entry(dtype)
        tails = tail_bytes(self.head_dim, self.ratio, True) + tail_bytes(self.index_dim, self.ratio, True)
        return super().cache_parts(context, dtype) | {"entries": entries, "tails": tails}

    def flops_per_token(self, d_model: int, context: int) -> float:
        """Beside weights and attended rows, ``2 * index_heads * index_dim`` an entry that the indexer scores."""
        scored = 2 * self.index_heads * self.index_dim * mean_visible(context, self.ratio)
        return super().flops_per_token(d_model, context) + scored

    def _attended(self, context: int) -> float:
        return super()._attended(context) + mean_visible(context, self.ratio, self.index_top_k)
