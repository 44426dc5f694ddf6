"""Masks: which positions count. One rule for every ``where`` of the package."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from minimoe.errors import UserError
from minimoe.layers.sizes import Size


def as_mask(where: Any, shape: tuple[Size, ...], owner: str) -> Bool[Array, "..."]:
    """The mask of a call: True where a position counts, and True everywhere if ``where`` is None.

    A mask must be boolean and have exactly the shape of what it masks. One that broadcasts would be counted at its own
    size, which gives a wrong mean without a word. A mask of integers or floats may be meant as ids or as weights.
    The check looks at shape and dtype only, so it also holds while JAX traces.

    Args:
      where: the mask, or None.
      shape: of what is masked. owner: who asks, for the message.

    Raises:
      UserError: naming both shapes or both dtypes.

    Example:
      >>> print(as_mask(None, (3,), "z_loss"))
      [ True  True  True]
      >>> as_mask(jnp.ones(3), (3,), "z_loss")
      Traceback (most recent call last):
      minimoe.errors.UserError: z_loss: where has dtype float32 but must be bool; compare first, as in where != 0
    """
    if where is None:
        return jnp.ones(shape, bool)
    where = where if hasattr(where, "dtype") else np.asarray(where)
    if where.dtype != bool:
        raise UserError(f"{owner}: where has dtype {where.dtype} but must be bool; compare first, as in where != 0")
    if tuple(where.shape) != tuple(shape):
        raise UserError(
            f"{owner}: where has shape {list(where.shape)} but must have {list(shape)}, one entry a position; "
            f"expand it, as in jnp.broadcast_to(where, {tuple(shape)})"
        )
    return jnp.asarray(where)
