"""Sizes of axes that need not be numbers: `jax.export` traces a program once for all batches and lengths."""

from __future__ import annotations

from typing import Any

import jax

Size = Any  # an int, or a symbolic dimension of `jax.export.symbolic_shape`


def surely_at_most(size: Size, most: int) -> bool:
    """Whether the size is known not to exceed a number; of a symbolic one it is not known.

    Example:
      >>> surely_at_most(3, 4), surely_at_most(jax.export.symbolic_shape("b")[0], 4)
      (True, False)
    """
    return not jax.export.is_symbolic_dim(size) and size <= most
