"""The key/value cache of one layer. Axes: B batch, L new tokens, S cache length, M key/value heads, H head width."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minimoe.errors import UserError


@runtime_checkable
class Cache(Protocol):
    """What attention asks of a cache. Compressed and quantized caches implement the same two methods."""

    @property
    def length(self) -> Int[Array, ""]:
        """Tokens held, a traced int32."""

    @property
    def size(self) -> int:
        """S, tokens that it has room for."""

    def append(self, k: Float[Array, "B L M H"], v: Float[Array, "B L M H"]) -> Cache:
        """A cache that also holds L more tokens."""

    def read(self) -> tuple[Float[Array, "B S M H"], Float[Array, "B S M H"]]:
        """All S places; those from ``length`` on hold nothing yet and must be masked."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values as they are, in an array of fixed size; ``2 * M * H`` numbers a token.

    Attributes:
      k, v: ``[B, S, M, H]``; keys already turned by their position.
      length: tokens held so far, int32 scalar. Above S, what was appended last does not fit: see `has_room`.
    """

    k: Float[Array, "B S M H"]
    v: Float[Array, "B S M H"]
    length: Int[Array, ""]

    @classmethod
    def zeros(cls, batch: int, size: int, kv_heads: int, head_dim: int, dtype=jnp.float32) -> KVCache:
        """An empty cache with room for ``size`` tokens in each of ``batch`` sequences."""
        shape = (batch, size, kv_heads, head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))

    @property
    def size(self) -> int:
        """S, tokens that it has room for."""
        return self.k.shape[1]

    def append(self, k: Float[Array, "B L M H"], v: Float[Array, "B L M H"]) -> KVCache:
        """A cache with ``k`` and ``v`` written after the tokens it holds."""
        zero = jnp.zeros((), jnp.int32)
        at = (zero, self.length, zero, zero)
        return KVCache(
            jax.lax.dynamic_update_slice(self.k, k.astype(self.k.dtype), at),
            jax.lax.dynamic_update_slice(self.v, v.astype(self.v.dtype), at),
            self.length + k.shape[1],
        )

    def read(self) -> tuple[Float[Array, "B S M H"], Float[Array, "B S M H"]]:
        return self.k, self.v


def has_room(cache: Cache, tokens: int) -> Bool[Array, ""]:
    """Whether a cache can take so many more tokens.

    Where its length is known, no is an error. Under `jax.jit` the caller must turn what it computes into NaN: writing
    beyond the end would move back into what is held, and the answer would look like any other.

    Raises:
      UserError: naming what it holds, its size and what was to be added.
    """
    fits = cache.length + tokens <= cache.size
    if not isinstance(fits, jax.core.Tracer) and not bool(fits):
        raise UserError(
            f"the cache holds {int(cache.length)} of {cache.size} tokens and cannot take {tokens} more; "
            "give init_cache a larger size"
        )
    return jnp.asarray(fits)
