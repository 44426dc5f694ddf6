"""Heavily compressed attention: every query sees all entries of m tokens that are complete, and the last W tokens.

    m = 4, W = 3, query at t = 9

    tokens    0 1 2 3 | 4 5 6 7 | 8 9                entry 1 is complete at t = 7: (t + 1) // m entries are seen
    entries   [  0  ]   [  1  ]   tail               x   x
    window                    x   x x                tokens 7, 8, 9

    kept while decoding: t // m entries, a ring of W rows, the tail of m tokens that are not compressed yet

    C = H W_KV,  Z = H W_Z                                              (20, 21 in the report on V4)
    S_i = softmax over the m tokens of (Z + B),  entry_i = sum S * C    (22, 23)

In V4 m is 128 and W is 128. `minimoe.attention.compress` pools, `minimoe.attention.window` attends.

References:
  `DeepSeek-V4 <https://arxiv.org/abs/2606.19348>`_, section 2.3.2.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from minimoe.attention.compress import Compressed, Compressor, compressor_matrices, tail_bytes
from minimoe.attention.shared_kv import SharedKVAttention, SharedKVConfig, mean_visible
from minimoe.attention.storage import entry_bytes
from minimoe.attention.window import visible_entries
from minimoe.checks import whole_fields


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
        return HeavilyCompressedAttention(
            self, d_model, out_scale=out_scale, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def _compressed(self, batch: int, size: int, storage: Any, dtype: Any) -> tuple[Compressed, ...]:
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


class HeavilyCompressedAttention(SharedKVAttention):
    """`SharedKVAttention` and a `Compressor` without overlap."""

    def __init__(self, config: HeavilyCompressedConfig, d_model: int, *, rngs: nnx.Rngs, **settings: Any):
        super().__init__(config, d_model, rngs=rngs, **settings)
        self.compressor = Compressor(
            d_model,
            config.head_dim,
            config.ratio,
            overlap=False,
            frequencies=config.frequencies,
            norm_eps=config.norm_eps,
            dtype=self.kv_proj.dtype,
            param_dtype=self.kv_proj.param_dtype,
            rngs=rngs,
        )

    def _extend(self, x, held, start):
        return (self.compressor.extend(x, held[0], start),)

    def _entries(self, x, latent, angles, positions, held):
        entries = self.compressor(x) if not held else held[0].entries.read()
        visible = visible_entries(positions, entries.shape[1], self.config.ratio)
        return entries, jnp.broadcast_to(visible[None], (x.shape[0], *visible.shape)), None
