"""A ring buffer of the last R tokens: the token at position t lies in slot ``t mod R``.

    R = 4, seven tokens so far:     slot   0   1   2   3
                                    holds  t4  t5  t6  t3      the next token, t7, replaces t3

Axes: B batch, L new tokens, R slots.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def ring_read(ring: Float[Array, "B R W"], length: Int[Array, ""]) -> Float[Array, "B R W"]:
    """The slots in the order of their positions, ``length - R .. length - 1``; those below 0 hold nothing yet."""
    slots = ring.shape[1]
    order = (length + jnp.arange(slots, dtype=jnp.int32)) % max(1, slots)
    return jnp.take(ring, order, axis=1)


def ring_slots(slots: int, length: Int[Array, ""], tokens: int) -> tuple[Int[Array, "_"], int]:
    """Where the last of ``tokens`` new tokens go, and how many of the first are not kept at all."""
    dropped = tokens - min(slots, tokens)
    return (length + jnp.arange(dropped, tokens, dtype=jnp.int32)) % max(1, slots), dropped


def ring_write(
    ring: Float[Array, "B R W"], length: Int[Array, ""], new: Float[Array, "B L W"]
) -> Float[Array, "B R W"]:
    """The ring after the tokens at positions ``length .. length + L - 1``, of which it keeps the last R."""
    at, dropped = ring_slots(ring.shape[1], length, new.shape[1])
    return ring.at[:, at].set(new[:, dropped:].astype(ring.dtype))
