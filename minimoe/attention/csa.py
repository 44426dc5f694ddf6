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
V4 m is 4, W is 128 and K is 512 or 1024. `minimoe.attention.compress` pools, `minimoe.attention.indexer` chooses,
`minimoe.attention.csa_config` has the sizes.

References:
  `DeepSeek-V4 <https://arxiv.org/abs/2606.19348>`_, section 2.3.1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from minimoe.attention.compress import Compressor
from minimoe.attention.csa_config import CompressedSparseConfig
from minimoe.attention.indexer import Indexer, IndexLoss, choose, index_loss, with_loss
from minimoe.attention.shared_kv import SharedKVAttention
from minimoe.attention.window import visible_entries
from minimoe.layers.reverse_mode import reverse_mode_only

SPARSE = 8  # if there are so many entries for each that is read, every query gathers its own; else it masks the others


def rows_at(rows: Float[Array, "B E C"], index: Int[Array, "B L K"]) -> Float[Array, "B L K C"]:
    """The rows that each query chose."""
    flat = index.reshape(index.shape[0], index.shape[1] * index.shape[2], 1)
    return jnp.take_along_axis(rows, flat, axis=1).reshape(*index.shape, rows.shape[2])


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
        index, real = choose(jax.lax.stop_gradient(scores), visible, self.config.index_top_k)
        if x.shape[1] == 1:  # a step of decoding
            return rows_at(entries, index)[:, 0], real, None
        taught = self.config.index_loss > 0 and not held
        if SPARSE * index.shape[2] <= entries.shape[1]:
            own = self.indexer(alone, latent, angles, rows_at(keys, index)) if taught else None
            return rows_at(entries, index), real, own
        chosen = jnp.zeros((x.shape[0], *visible.shape), bool)
        chosen = jnp.put_along_axis(chosen, index, real, axis=2, inplace=False)
        return entries, chosen, scores if taught else None

    def _taught(self, out, weights, visible, scores):
        out = reverse_mode_only(
            out, "index_loss teaches in reverse mode only; use jax.grad or jax.vjp, or index_loss=0"
        )
        loss = index_loss(scores, weights, visible)
        return with_loss(out, self.config.index_loss * loss), IndexLoss(loss)
