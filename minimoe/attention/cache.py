"""The key/value cache of one layer. Axes: B batch, L new tokens, S cache length, M key/value heads, H head width."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@runtime_checkable
class Cache(Protocol):
    """What attention asks of a cache. Compressed and quantized caches implement the same two methods."""

    @property
    def length(self) -> Int[Array, ""]:
        """Tokens held, a traced int32."""

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
      length: tokens held so far, int32 scalar. The caller keeps it at most S.
    """

    k: Float[Array, "B S M H"]
    v: Float[Array, "B S M H"]
    length: Int[Array, ""]

    @classmethod
    def zeros(cls, batch: int, size: int, kv_heads: int, head_dim: int, dtype=jnp.float32) -> KVCache:
        """An empty cache with room for ``size`` tokens in each of ``batch`` sequences."""
        shape = (batch, size, kv_heads, head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))

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
