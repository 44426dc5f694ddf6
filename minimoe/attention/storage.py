"""Where decoding keeps its rows: what a cache asks of them, and rows in a plain dtype.

`minimoe.quant.V4_CACHE` makes rows as DeepSeek-V4 stores them; `minimoe.attention.row_bytes` counts the bytes of both.

Axes: B batch, S rows, W numbers a row.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
