"""The decoding state of DeepSeek-V4's attention as V4 stores it: entries in FP8, keys of the indexer in FP4.

    entry       [ still dims: e4m3, a scale of one byte for 64 of them | rotary dims: bfloat16 | 1 byte of padding ]
    index key   [ turned by a Hadamard matrix: e2m1, two a byte, a scale of one byte for 32 of them ]

A Hadamard matrix (entries +-1/sqrt(W), orthogonal) spreads an outlier over all dims before it is rounded. Queries would be
turned by it too, and the product stays; here keys are turned back as they are read, which is the same. It exists for
widths that are powers of two; other widths are rounded as they are. The tails stay in float32.

Axes: B batch, S rows, W numbers a row, R rotary dims.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from minimoe.quant.kv import FP8, CacheFactory
from minimoe.quant.specs import MXFP4, Spec
from minimoe.quant.tensor import QTensor, quantize


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantRows:
    """`minimoe.attention.Rows` of codes; each row is rounded on its own when it is written.

    Attributes:
      codes: of the first ``W - R`` dims; None if R is W. plain: the last R dims, ``[B, S, R]`` bfloat16.
      padding: ``[B, S, 1]`` or ``[B, S, 0]``; holds nothing.
      dtype: of what `read` returns, by name. hadamard: whether rows are turned before they are rounded.
    """

    codes: QTensor | None
    plain: Float[Array, "B S R"]
    padding: UInt8[Array, "B S _"]
    dtype: str = dataclasses.field(metadata={"static": True})
    hadamard: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def zeros(
        cls, shape: tuple[int, int, int], spec: Spec, *, plain: int, padding: int, dtype: Any, hadamard: bool = False
    ) -> QuantRows:
        """S rows of zeros for each sequence, ``shape`` is ``(B, S, W)``; ``plain`` is R."""
        *rows, width = shape
        return cls(
            quantize(jnp.zeros((*rows, width - plain)), spec) if plain < width else None,
            jnp.zeros((*rows, plain), jnp.bfloat16),
            jnp.zeros((*rows, padding), jnp.uint8),
            jnp.dtype(dtype).name,
            hadamard,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, size, plain = self.plain.shape
        return batch, size, plain + (0 if self.codes is None else self.codes.shape[-1])

    def read(self) -> Float[Array, "B S W"]:
        return self._joined(self.codes, self.plain)

    def write(self, at: Int[Array, "_"], new: Float[Array, "B _ W"]) -> QuantRows:
        codes, plain = self._rounded(new)
        pairs = zip(jax.tree.leaves((self.codes, self.plain)), jax.tree.leaves((codes, plain)), strict=True)
        written = [old.at[:, at].set(part, mode="drop") for old, part in pairs]
        codes, plain = jax.tree.unflatten(jax.tree.structure((self.codes, self.plain)), written)
        return dataclasses.replace(self, codes=codes, plain=plain)

    def kept(self, new: Float[Array, "B _ W"]) -> Float[Array, "B _ W"]:
        return self._joined(*self._rounded(new))

    def _rounded(self, new: Float[Array, "B _ W"]) -> tuple[QTensor | None, Array]:
        wide = new.astype(jnp.float32)
        if self.hadamard:
            wide = wide @ hadamard_matrix(wide.shape[-1])
        first = wide.shape[-1] - self.plain.shape[-1]
        codes = None if self.codes is None else quantize(wide[..., :first], self.codes.spec, check=False)
        return codes, wide[..., first:].astype(jnp.bfloat16)

    def _joined(self, codes: QTensor | None, plain: Array) -> Array:
        wide = plain.astype(jnp.float32)
        if codes is not None:
            wide = jnp.concatenate([codes.dequantize(jnp.float32), wide], axis=-1)
        if self.hadamard:
            wide = wide @ hadamard_matrix(wide.shape[-1])
        return wide.astype(self.dtype)


def hadamard_matrix(width: int) -> Float[np.ndarray, "W W"]:
    """The symmetric orthogonal matrix with entries ``+-1/sqrt(W)``; W is a power of two. It is its own inverse.

    Example:
      >>> hadamard_matrix(4)[1].tolist()
      [0.5, -0.5, 0.5, -0.5]
    """
    found = np.ones((1, 1))
    while len(found) < width:
        found = np.block([[found, found], [found, -found]])
    return (found / np.sqrt(width)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class V4CacheFactory(CacheFactory):
    """A `minimoe.attention.RowStorage`. Attention that keeps keys and values of every token gets the cache ``fp8-rope``."""

    def entry_rows(self, batch: int, size: int, dim: int, rope_dim: int, dtype: Any) -> QuantRows:
        """FP8 with bfloat16 rotary dims: ``minimoe.attention.row_bytes.entry_bytes(dim, rope_dim, "v4")`` bytes a row."""
        return QuantRows.zeros((batch, size, dim), FP8, plain=rope_dim, padding=1, dtype=dtype)

    def index_rows(self, batch: int, size: int, dim: int, dtype: Any) -> QuantRows:
        """FP4: ``minimoe.attention.row_bytes.index_key_bytes(dim, "v4")`` bytes a row."""
        turned = dim & (dim - 1) == 0
        return QuantRows.zeros((batch, size, dim), MXFP4, plain=0, padding=0, dtype=dtype, hadamard=turned)


V4_CACHE = V4CacheFactory("v4", FP8, rope_dims=None)
