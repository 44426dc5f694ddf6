"""Pairs of a token and an expert: from chosen ids to tables with a column an expert.

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
