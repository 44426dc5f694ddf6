"""Pairs of a token and an expert: from chosen ids to tables with a column an expert, and rows made to sum to 1.

Axes: T tokens, K experts per token, E experts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def one_hot_experts(experts: Int[Array, "*B"], num_experts: int) -> Bool[Array, "*B E"]:
    """True in the column of each id: the one-hot encoding that counts, masks and weighs experts.

    Example:
      >>> print(one_hot_experts(jnp.array([2, 0]), 3))
      [[False False  True]
       [ True False False]]
    """
    return jax.nn.one_hot(experts, num_experts, dtype=jnp.bool_)


def used_experts(
    experts: Int[Array, "T K"], num_experts: int, used: Bool[Array, "T K"] | None = None
) -> Bool[Array, "T E"]:
    """Whether each token uses each expert.

    Args:
      experts: ids, all different within a row.
      used: which of these pairs count; all of them if None.
    """
    chosen = one_hot_experts(experts, num_experts)  # [T, K, E]
    return (chosen if used is None else chosen & used[:, :, None]).any(axis=1)


def weights_by_expert(
    experts: Int[Array, "T K"], weights: Float[Array, "T K"], num_experts: int
) -> Float[Array, "T E"]:
    """The combine weight of each token and expert; 0 where the token did not choose the expert."""
    return jnp.where(one_hot_experts(experts, num_experts), weights[:, :, None], 0.0).sum(axis=1)


def row_shares(values: Float[Array, "T N"]) -> Float[Array, "T N"]:
    """Each row divided by its sum. A row whose largest entry is below 1e-30 counts as zeros and is not divided.

    The row is first divided by its largest entry. Without that, the derivative of the quotient holds ``1 / sum**2``,
    which overflows in float32 once the sum is below 1e-19, and the gradient is NaN.

    Args:
      values: not negative.

    Example:
      >>> print(row_shares(jnp.array([[1.0, 3.0], [1e-25, 3e-25], [0.0, 0.0]])))
      [[0.25 0.75]
       [0.25 0.75]
       [0.   0.  ]]
    """
    largest = jax.lax.stop_gradient(values.max(axis=-1, keepdims=True))
    vanished = largest < 1e-30
    scaled = values / jnp.where(vanished, 1.0, largest)
    return scaled / jnp.where(vanished, 1.0, scaled.sum(axis=-1, keepdims=True))
