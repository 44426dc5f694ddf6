"""Compression along the sequence: one entry stands for m tokens, pooled by weights that the tokens themselves give.

    no overlap (HCA)    tokens   0 1 2 3 | 4 5 6 7 | 8 9 ...          m = 4
                        entry       0    |    1    |                  tokens 8, 9 are a tail that waits for two more

    overlap (CSA)       entry 0  <- [ nothing ] + tokens 0..3         every token counts twice: as part of its own entry,
                        entry 1  <- tokens 0..3 + tokens 4..7         and, by other weights, of the entry after it
                        entry 2  <- tokens 4..7 + tokens 8..11

Per token, with P = 2 under overlap and 1 without: ``C = W_C h`` and ``Z = W_Z h + bias[place in its window]``, P * H numbers
each. Per entry and channel, the softmax goes over the P * m tokens (equations 9-12 of the report on V4 for CSA, 20-23 for
HCA):

    entry_i = RoPE(norm(sum_s softmax_s(Z)_s * C_s), position i * m)

The first H of the 2H channels are those of the *next* entry, the second H those of the token's own.

Axes: B batch, L new tokens, D model width, H entry width, E entries, m tokens an entry.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from minimoe.attention.ring import ring_read, ring_write
from minimoe.attention.rotary import rotary_angles, turn_last
from minimoe.attention.storage import Rows
from minimoe.layers import RMSNorm, fan_in


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Compressed:
    """What decoding keeps of the tokens so far.

    Attributes:
      entries: E rows of H numbers; those of windows that are not full yet are 0 and must be masked.
      kv, gate: C and Z of the last ``P * m`` tokens, rings ``[B, P*m, P*H]`` float32.
    """

    entries: Rows
    kv: Float[Array, "B _ _"]
    gate: Float[Array, "B _ _"]

    @classmethod
    def empty(cls, rows: Rows, ratio: int, overlap: bool) -> Compressed:
        """With ``rows`` for its entries."""
        batch, _, dim = rows.shape
        parts = 1 + overlap
        tail = (batch, parts * ratio, parts * dim)
        return cls(rows, jnp.zeros(tail, jnp.float32), jnp.zeros(tail, jnp.float32))


class Compressor(nnx.Module):
    """Makes the entries, of a whole sequence or of the tokens that arrive.

    Args:
      d_model: D. dim: H. ratio: m. overlap: whether an entry also pools the m tokens before its own.
      frequencies: of the rotary positions in the last dims of an entry.
      norm_eps: inside the square root of the norm. dtypes: as in every module. rngs: source of the initial weights.
    """

    def __init__(
        self,
        d_model: int,
        dim: int,
        ratio: int,
        *,
        overlap: bool,
        frequencies: tuple[float, ...],
        norm_eps: float,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.dim, self.ratio, self.overlap, self.frequencies = dim, ratio, overlap, frequencies
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        width = (1 + overlap) * dim
        self.kv_proj = nnx.Linear(d_model, width, use_bias=False, kernel_init=fan_in(), **dtypes)
        self.gate_proj = nnx.Linear(d_model, width, use_bias=False, kernel_init=fan_in(), **dtypes)
        self.place_bias = nnx.Param(jnp.zeros((ratio, width), param_dtype))
        self.norm = RMSNorm(dim, epsilon=norm_eps, **dtypes)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B E H"]:
        """The ``L // m`` entries of a whole sequence."""
        kv, gate = self._project(x)
        nothing = jnp.zeros((x.shape[0], (1 + self.overlap) * self.ratio, kv.shape[2]), jnp.float32)
        index = jnp.arange(x.shape[1] // self.ratio, dtype=jnp.int32)
        return self._pool(nothing, nothing, kv, gate, jnp.zeros((), jnp.int32), index)

    def extend(self, x: Float[Array, "B L D"], held: Compressed, start: Int[Array, ""]) -> Compressed:
        """``held`` after L more tokens, the first of them at position ``start``; any L, any ``start``."""
        kv, gate = self._project(x)
        most = -(-x.shape[1] // self.ratio)  # windows that can become full
        index = start // self.ratio + jnp.arange(most, dtype=jnp.int32)
        full = index < (start + x.shape[1]) // self.ratio

        def pooled():
            before = ring_read(held.kv, start), ring_read(held.gate, start)
            return self._pool(*before, kv, gate, start, index)

        shape = jax.eval_shape(pooled)
        new = jax.lax.cond(full.any(), pooled, lambda: jnp.zeros(shape.shape, shape.dtype))  # once in m tokens
        index = jnp.where(full, index, held.entries.shape[1])  # beyond the end: dropped
        return Compressed(
            held.entries.write(index, new), ring_write(held.kv, start, kv), ring_write(held.gate, start, gate)
        )

    def _project(self, x) -> tuple[Float[Array, "B L _"], Float[Array, "B L _"]]:
        return self.kv_proj(x).astype(jnp.float32), self.gate_proj(x).astype(jnp.float32)

    def _pool(self, old_kv, old_gate, kv, gate, start, index) -> Float[Array, "B _ H"]:
        """The entries of these indices, from that of the window that ``start`` lies in on."""
        offset = self.ratio - start % self.ratio  # of the oldest token in old + new
        kv, gate = (self._windows(*pair, offset, index.shape[0]) for pair in ((old_kv, kv), (old_gate, gate)))
        gate += self.place_bias[...].astype(jnp.float32)[None, None]
        if self.overlap:
            dim = self.dim
            previous = jnp.where((index > 0)[None, :, None, None], gate[:, :-1, :, :dim], -jnp.inf)
            gate = jnp.concatenate([previous, gate[:, 1:, :, dim:]], axis=2)
            kv = jnp.concatenate([kv[:, :-1, :, :dim], kv[:, 1:, :, dim:]], axis=2)
        pooled = self.norm(jnp.sum(jax.nn.softmax(gate, axis=2) * kv, axis=2))
        angles = rotary_angles(index * self.ratio, np.asarray(self.frequencies, np.float32))
        return turn_last(pooled[:, :, None], *angles)[:, :, 0]

    def _windows(self, old, new, offset, count) -> Float[Array, "B _ m _"]:
        """Old and new tokens in one row, cut into windows of m; those that are not full end in zeros."""
        rows = jnp.pad(jnp.concatenate([old, new], axis=1), ((0, 0), (0, self.ratio), (0, 0)))
        windows = count + self.overlap
        cut = jax.lax.dynamic_slice_in_dim(rows, offset, windows * self.ratio, axis=1)
        return cut.reshape(rows.shape[0], windows, self.ratio, rows.shape[2])
