"""The sizes of heavily compressed attention, and what they cost. The module is `minimoe.attention.hca`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from minimoe.attention.compress_size import compressor_matrices, tail_bytes
from minimoe.attention.row_bytes import entry_bytes
from minimoe.attention.shared_kv_config import SharedKVConfig, mean_visible
from minimoe.checks import whole_fields

if TYPE_CHECKING:
    from flax import nnx

    from minimoe.attention.compress import Compressed
    from minimoe.attention.hca import HeavilyCompressedAttention


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeavilyCompressedConfig(SharedKVConfig):
    """A window, and one entry for every ``ratio`` tokens before it.

    Args:
      ratio: m, tokens an entry. The other arguments are those of `SharedKVConfig`.

    Example:
      >>> sizes = dict(num_heads=64, head_dim=512, rope_dim=64, q_rank=1024, window=128, out_groups=8, out_rank=1024)
      >>> HeavilyCompressedConfig(**sizes).cache_bytes_per_token("v4")
      4.5625
    """

    kind: ClassVar[str] = "heavily_compressed"

    ratio: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_fields(self, "ratio")

    def build(
        self, d_model: int, *, out_scale: float, dtype: str, param_dtype: str, rngs: nnx.Rngs
    ) -> HeavilyCompressedAttention:
        """The module with these sizes."""
        from minimoe.attention.hca import HeavilyCompressedAttention

        return HeavilyCompressedAttention(
            self, d_model, out_scale=out_scale, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def _compressed(self, batch: int, size: int, storage: Any, dtype: Any) -> tuple[Compressed, ...]:
        from minimoe.attention.compress import Compressed

        rows = storage.entry_rows(batch, size // self.ratio, self.head_dim, self.rope_dim, dtype)
        return (Compressed.empty(rows, self.ratio, False),)

    def num_params(self, d_model: int) -> int:
        return super().num_params(d_model) + self.ratio * self.head_dim + self.head_dim

    def _matrices(self, d_model: int) -> int:
        return super()._matrices(d_model) + compressor_matrices(d_model, self.head_dim, False)

    def cache_bytes_per_token(self, dtype: Any) -> float:
        return entry_bytes(self.head_dim, self.rope_dim, dtype) / self.ratio

    def cache_parts(self, context: int, dtype: Any) -> dict[str, int]:
        entries = context // self.ratio * entry_bytes(self.head_dim, self.rope_dim, dtype)
        tails = tail_bytes(self.head_dim, self.ratio, False)
        return super().cache_parts(context, dtype) | {"entries": entries, "tails": tails}

    def _attended(self, context: int) -> float:
        return super()._attended(context) + mean_visible(context, self.ratio)
