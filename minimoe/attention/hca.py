"""Heavily compressed attention: every query sees all entries of m tokens that are complete, and the last W tokens.

    m = 4, W = 3, query at t = 9

    tokens    0 1 2 3 | 4 5 6 7 | 8 9                entry 1 is complete at t = 7: (t + 1) // m entries are seen
    entries   [  0  ]   [  1  ]   tail               x   x
    window                    x   x x                tokens 7, 8, 9

    kept while decoding: t // m entries, a ring of W rows, the tail of m tokens that are not compressed yet

    C = H W_KV,  Z = H W_Z                                              (20, 21 in the report on V4)
    S_i = softmax over the m tokens of (Z + B),  entry_i = sum S * C    (22, 23)

In V4 m is 128 and W is 128. `minimoe.attention.compress` pools, `minimoe.attention.window` attends,
`minimoe.attention.hca_config` has the sizes.

References:
  `DeepSeek-V4 <https://arxiv.org/abs/2606.19348>`_, section 2.3.2.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from minimoe.attention.compress import Compressor
from minimoe.attention.hca_config import HeavilyCompressedConfig
from minimoe.attention.shared_kv import SharedKVAttention
from minimoe.attention.window import visible_entries


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
