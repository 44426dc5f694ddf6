"""The key/value cache of one layer. Axes: B batch, L new tokens, S cache length, M key/value heads, H head width."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from minimoe.checks import whole
from minimoe.errors import UserError


@runtime_checkable
class Cache(Protocol):
    """What attention asks of a cache. Compressed and quantized caches implement the same two methods.

    A cache that still holds whatever it held before may also have ``shortened(length)``, as `KVCache` has.
    """

    @property
    def length(self) -> Int[Array, ""]:
        """Tokens held, a traced int32."""

    @property
    def size(self) -> int:
        """S, tokens that it has room for."""

    def append(self, k: Float[Array, "B L M H"], v: Float[Array, "B L M H"]) -> Cache:
        """A cache that also holds L more tokens; it begins with `admitted`, which sees to what does not fit."""

    def read(self) -> tuple[Float[Array, "B S M H"], Float[Array, "B S M H"]]:
        """All S places; those from ``length`` on hold nothing yet and must be masked."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values as they are, in an array of fixed size; ``2 * M * H`` numbers a token.

    Attributes:
      k, v: ``[B, S, M, H]``; keys already turned by their position.
      length: tokens held so far, int32 scalar. Above S, what was appended last does not fit: see `admitted`.
    """

    k: Float[Array, "B S M H"]
    v: Float[Array, "B S M H"]
    length: Int[Array, ""]

    @classmethod
    def zeros(cls, batch: Any, size: Any, kv_heads: Any, head_dim: Any, dtype=jnp.float32) -> KVCache:
        """An empty cache with room for ``size`` tokens in each of ``batch`` sequences."""
        shape = cache_shape(batch, size, kv_heads, head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))

    @property
    def size(self) -> int:
        """S, tokens that it has room for."""
        return self.k.shape[1]

    def append(self, k: Float[Array, "B L M H"], v: Float[Array, "B L M H"]) -> KVCache:
        """A cache with ``k`` and ``v`` written after the tokens it holds; see `admitted`."""
        k, v = admitted(self.length, self.k.shape, k, v)
        zero = jnp.zeros((), jnp.int32)
        at = (zero, self.length, zero, zero)
        return KVCache(
            jax.lax.dynamic_update_slice(self.k, k.astype(self.k.dtype), at),
            jax.lax.dynamic_update_slice(self.v, v.astype(self.v.dtype), at),
            self.length + k.shape[1],
        )

    def read(self) -> tuple[Float[Array, "B S M H"], Float[Array, "B S M H"]]:
        return self.k, self.v

    def shortened(self, length: Int[Array, ""]) -> KVCache:
        """The cache as it was when it held ``length`` tokens: what comes after them is masked, and written over later."""
        return dataclasses.replace(self, length=length)


def checked_caches(cache: Any, layers: int) -> list[Any]:
    """The caches of a model's ``layers``, one each.

    Raises:
      UserError: for more or fewer, or what is no cache: most often the records of routing, which `extend` returns beside it.
    """
    if len(cache) != layers:
        raise UserError(
            f"cache holds {len(cache)} caches, but the model has {layers} layers; give what init_cache returns"
        )
    strange = next((entry for entry in cache if not hasattr(entry, "length")), None)
    if strange is not None:
        found = f"cache holds a {type(strange).__name__}, which is no cache"
        raise UserError(f"{found}; give the third of what extend returns, or what init_cache does")
    return list(cache)


def cache_shape(batch: Any, size: Any, kv_heads: Any, head_dim: Any) -> tuple[int, int, int, int]:
    """``(B, S, M, H)`` of an empty cache, as ints.

    Raises:
      UserError: for a size that is negative or no whole number.
    """
    sizes = {"batch": batch, "size": size, "kv_heads": kv_heads, "head_dim": head_dim}
    b, s, m, h = (whole(name, value, least=0, owner="init_cache") for name, value in sizes.items())
    return b, s, m, h


def admitted(
    length: Int[Array, ""],
    shape: tuple[int, ...],
    k: Float[Array, "B L M H"],
    v: Float[Array, "B L M H"],
) -> tuple[Float[Array, "B L M H"], Float[Array, "B L M H"]]:
    """Keys and values that may be appended: all kinds of caches call this first.

    Without room they would be written over what the cache holds, and the answer would look like any other. Where the
    length of the cache is known, that is an error. Under `jax.jit` they are NaN instead, so whatever attends to this cache
    from then on is NaN.

    Args:
      length: tokens that the cache holds. shape: ``(B, S, M, H)`` of the cache.
      k, v: what is to be appended.

    Raises:
      UserError: naming what the cache holds, its size and what was to be added; and for another batch size or other heads.
    """
    batch, size, *heads = shape
    if k.shape[0] != batch:
        raise UserError(
            f"the cache holds {batch} sequences, but {k.shape[0]} are to be added to; give init_cache the same batch size"
        )
    if list(k.shape[2:]) != heads or v.shape != k.shape:
        found = f"keys {list(k.shape[2:])}, values {list(v.shape[2:])}"
        raise UserError(f"the cache was made for heads {heads}, not for {found}; make it with this model's init_cache")
    tokens = k.shape[1]
    if tokens > size:
        raise UserError(f"the cache has room for {size} tokens and cannot take {tokens}; give init_cache a larger size")
    fits = length + tokens <= size
    if not isinstance(fits, jax.core.Tracer) and not bool(fits):
        raise UserError(
            f"the cache holds {int(length)} of {size} tokens and cannot take {tokens} more; give init_cache a larger size"
        )
    nan = jnp.asarray(jnp.nan, k.dtype)
    return jnp.where(fits, k, nan), jnp.where(fits, v, nan.astype(v.dtype))
