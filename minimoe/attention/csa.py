"""Compressed sparse attention: a query reads the K entries that its indexer chooses, and the last W tokens.

    m = 2, W = 3, K = 2, query at t = 9

    tokens    0 1 | 2 3 | 4 5 | 6 7 | 8 9
    entries   [0]   [1]   [2]   [3]   [4]            entry i pools tokens 2i-2 .. 2i+1 and is complete at t = 2i + 1
    scores    .7    .1    .9    .2    .3             the indexer, over the (t + 1) // m complete entries
    read       x           x                         the best K = 2
    window                         x   x x           tokens 7, 8, 9

    kept while decoding: t // m entries and as many keys of the indexer, a ring of W rows, the last 2m tokens uncompressed

    C^a, C^b = H W_aKV, H W_bKV,  Z^a, Z^b = H W_aZ, H W_bZ                              (9, 10 in the report on V4)
    entry_i = sum over own m tokens S^a C^a + sum over the m before S^b C^b,  S softmax over all 2m    (11, 12)
    I_(t,s) = sum_h w_h ReLU(q^I_h . k^I_s),  read the top K                              (13-17)

The report calls a token's part in its own entry "a", and its code puts the part for the *next* entry first; so do we. In
V4 m is 4, W is 128 and K is 512 or 1024. `minimoe.attention.compress` pools, `minimoe.attention.indexer` chooses.

References:
  `DeepSeek-V4 <https://arxiv.org/abs/2606.19348>`_, section 2.3.1.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from minimoe.attention.compress import Compressed, Compressor, compressor_matrices, compressor_params, tail_bytes
from minimoe.attention.indexer import Indexer, IndexLoss, choose, index_loss, with_loss
from minimoe.attention.shared_kv import SharedKVAttention, SharedKVConfig, mean_visible
from minimoe.attention.storage import entry_bytes, index_key_bytes
from minimoe.attention.window import visible_entries
from minimoe.checks import number_fields, whole_fields
from minimoe.layers.reverse_mode import reverse_mode_only


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
        return CompressedSparseAttention(
            self, d_model, out_scale=out_scale, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def _compressed(self, batch: int, size: int, storage: Any, dtype: Any) -> tuple[Compressed, ...]:
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


class CompressedSparseAttention(SharedKVAttention):
    """`SharedKVAttention`, a `Compressor` with overlap and an `Indexer`."""

    def __init__(self, config: CompressedSparseConfig, d_model: int, *, rngs: nnx.Rngs, **settings: Any):
        super().__init__(config, d_model, rngs=rngs, **settings)
        common: dict[str, Any] = {"frequencies": config.frequencies, "norm_eps": config.norm_eps, "rngs": rngs}
        common |= {"dtype": self.kv_proj.dtype, "param_dtype": self.kv_proj.param_dtype}
        self.compressor = Compressor(d_model, config.head_dim, config.ratio, overlap=True, **common)
        self.indexer = Indexer(d_model, config.q_rank, config.index_heads, config.index_dim, config.ratio, **common)

    def _extend(self, x, held, start):
        main, index = held
        return self.compressor.extend(x, main, start), self.indexer.compressor.extend(x, index, start)

    def _entries(self, x, latent, angles, positions, held):
        # A choice has no gradient. What teaches the indexer must not reach the rest of the model through its inputs.
        alone, latent = jax.lax.stop_gradient((x, latent))
        if not held:
            entries, keys = self.compressor(x), self.indexer.compressor(alone)
        else:
            entries, keys = held[0].entries.read(), held[1].entries.read()
        visible = visible_entries(positions, entries.shape[1], self.config.ratio)
        scores = self.indexer(alone, latent, angles, keys)
        index, real = choose(scores, visible, self.config.index_top_k)
        if x.shape[1] == 1:  # a step of decoding reads its K entries and no others
            return jnp.take_along_axis(entries, index[:, 0, :, None], axis=1), real, None
        chosen = jnp.zeros((x.shape[0], *visible.shape), bool)
        chosen = jnp.put_along_axis(chosen, index, real, axis=2, inplace=False)
        return entries, chosen, scores if self.config.index_loss and not held else None

    def _taught(self, out, weights, visible, scores):
        out = reverse_mode_only(
            out, "index_loss teaches in reverse mode only; use jax.grad or jax.vjp, or index_loss=0"
        )
        loss = index_loss(scores, weights, visible)
        return with_loss(out, self.config.index_loss * loss), IndexLoss(loss)
