"""Sorting assignments by expert, and the largest size that 32-bit indices can count.

Axes: T tokens, K experts per token, A = T*K assignments, E experts, C slots per expert.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from minimoe.errors import UserError
from minimoe.layers.sizes import Size, surely_at_most

LARGEST = 2**31 - 1  # of int32; JAX has no wider integers unless its 64-bit mode is on


def check_countable(owner: str, **sizes: Size) -> None:
    """Refuses sizes whose indices would wrap around without a word.

    Args:
      owner: who counts, for the message.
      sizes: what is counted, by name; ``__`` stands for ``*``, ``_`` for a space. A symbolic size of `jax.export` passes:
        an array that large is refused when it is made.

    Raises:
      UserError: naming the first size above `LARGEST`.

    Example:
      >>> check_countable("dropless", T__K_assignments=2**20)
    """
    for name, size in sizes.items():
        if not jax.export.is_symbolic_dim(size) and size > LARGEST:
            product, _, what = name.replace("__", "*").partition("_")
            raise UserError(
                f"{owner}: {product}={size} {what} exceed the largest 32-bit index, {LARGEST}; use fewer tokens a call"
            )


def sort_by_expert(flat: Int[Array, "A"], num_experts: int) -> tuple[Int[Array, "A"], Int[Array, "A"]]:
    """Sorts assignments by expert, stably: within an expert, earlier assignments come first.

    Sorting one array is faster than sorting two, so expert and assignment share one number where it is known to fit 32
    bits.

    Args:
      flat: the expert of each assignment, in 0..E-1.
      num_experts: E.

    Returns:
      The sorted experts, and the assignment at each rank.

    Example:
      >>> by_expert, order = sort_by_expert(jnp.array([2, 0, 2, 1]), 3)
      >>> print(by_expert, order)
      [0 1 2 2] [1 3 0 2]
    """
    count = flat.shape[0]
    assignment = jnp.arange(count, dtype=jnp.int32)
    if not surely_at_most(num_experts * count - 1, LARGEST):
        by_expert, order = jax.lax.sort((flat, assignment), num_keys=1, is_stable=True)
        return by_expert, order
    key = jnp.sort(flat * count + assignment)
    return key // count, key % count


def first_of_each(by_expert: Int[Array, "A"], num_experts: int) -> Int[Array, "E"]:
    """The rank of each expert's first assignment, or of the next expert's if it has none.

    Args:
      by_expert: sorted experts, as from `sort_by_expert`. num_experts: E.

    Example:
      >>> print(first_of_each(jnp.array([0, 1, 2, 2]), 4))
      [0 1 2 4]
    """
    ids = jnp.arange(num_experts, dtype=jnp.int32)
    if jax.export.is_symbolic_dim(by_expert.shape[0]):  # JAX's binary search must know how many steps it takes
        return (by_expert[None, :] < ids[:, None]).sum(axis=1).astype(jnp.int32)
    return jnp.searchsorted(by_expert, ids).astype(jnp.int32)
