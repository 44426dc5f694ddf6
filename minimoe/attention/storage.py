"""Where decoding keeps its rows, and the bytes of one: in a plain dtype, or as DeepSeek-V4 stores it.

    scheme "v4"   entry of 512, 64 of them rotary   448 fp8 + 64 bfloat16 + 7 scales (one a block of 64) + 1 pad = 584 bytes
                  indexer key of 128                128 fp4 + 4 scales (one a block of 32)                       =  68 bytes

A scale is one byte, a power of two (UE8M0). The uncompressed tails are float32 in every scheme. `minimoe.quant.V4_CACHE`
makes such rows.

Axes: B batch, S rows, W numbers a row.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

V4 = "v4"


@runtime_checkable
class Rows(Protocol):
    """S rows of W numbers for each of B sequences."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(B, S, W)``."""

    def read(self) -> Float[Array, "B S W"]:
        """All rows."""

    def write(self, at: Int[Array, "_"], new: Float[Array, "B _ W"]) -> Rows:
        """With ``new`` at the places ``at``; what belongs behind the last place is dropped."""

    def kept(self, new: Float[Array, "B _ W"]) -> Float[Array, "B _ W"]:
        """What `read` would say of ``new``."""


@runtime_checkable
class RowStorage(Protocol):
    """Makes rows that hold 0; it may be given as ``cache=`` to `minimoe.generate` and as ``make=`` to ``init_cache``."""

    def entry_rows(self, batch: int, size: int, dim: int, rope_dim: int, dtype: Any) -> Rows:
        """For entries that are key and value; the last ``rope_dim`` dims turn. They are read as ``dtype``."""

    def index_rows(self, batch: int, size: int, dim: int, dtype: Any) -> Rows:
        """For keys of the indexer."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PlainRows:
    """`Rows` as they are: ``values [B, S, W]``."""

    values: Float[Array, "B S W"]

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, size, width = self.values.shape
        return batch, size, width

    def read(self) -> Float[Array, "B S W"]:
        return self.values

    def write(self, at: Int[Array, "_"], new: Float[Array, "B _ W"]) -> PlainRows:
        return PlainRows(self.values.at[:, at].set(self.kept(new), mode="drop"))

    def kept(self, new: Float[Array, "B _ W"]) -> Float[Array, "B _ W"]:
        return new.astype(self.values.dtype)


@dataclasses.dataclass(frozen=True)
class PlainStorage:
    """`RowStorage` of `PlainRows`."""

    def entry_rows(self, batch: int, size: int, dim: int, rope_dim: int, dtype: Any) -> PlainRows:
        return PlainRows(jnp.zeros((batch, size, dim), dtype))

    def index_rows(self, batch: int, size: int, dim: int, dtype: Any) -> PlainRows:
        return PlainRows(jnp.zeros((batch, size, dim), dtype))


def entry_bytes(dim: int, rope_dim: int, dtype: Any) -> int:
    """Of an entry that is key and value at once.

    Example:
      >>> entry_bytes(512, 64, "v4"), entry_bytes(512, 64, "bfloat16")
      (584, 1024)
    """
    if isinstance(dtype, str) and dtype == V4:
        still = dim - rope_dim
        return still + 2 * rope_dim + -(-still // 64) + 1
    return dim * jnp.dtype(dtype).itemsize


def index_key_bytes(dim: int, dtype: Any) -> int:
    """Of a key of the indexer.

    Example:
      >>> index_key_bytes(128, "v4")
      68
    """
    if isinstance(dtype, str) and dtype == V4:
        return -(-dim // 2) + -(-dim // 32)
    return dim * jnp.dtype(dtype).itemsize
