"""Measures of imbalance, from counts of assignments. Axes: E experts; leading axes are layers or steps, never pooled."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from minimoe.errors import UserError


def stack_loads(loads: Sequence[Float[Array, "..."]]) -> Float[Array, "..."]:
    """The loads of several layers as one array with a row a layer, the second to last axis.

    Layers with fewer experts than the others have NaN in the place of those that they lack.

    Example:
      >>> print(stack_loads([jnp.array([1.0, 2.0]), jnp.array([3.0])]))
      [[ 1.  2.]
       [ 3. nan]]
    """
    most = max(load.shape[-1] for load in loads)
    padded = []
    for load in loads:
        room = [(0, 0)] * (load.ndim - 1) + [(0, most - load.shape[-1])]
        padded.append(jnp.pad(load, room, constant_values=jnp.nan))
    return jnp.stack(padded, axis=-2)


def max_violation(load: Float[Array, "*B E"]) -> Float[Array, "*B"]:
    """MaxVio: ``max load / mean load - 1``; 0 when even, E/K - 1 at worst, 0 for no load (arXiv 2408.15664, eq. 4)."""
    mean = load.mean(axis=-1)
    return jnp.where(mean > 0, load.max(axis=-1) / jnp.where(mean > 0, mean, 1.0) - 1.0, 0.0)


def load_cv(load: Float[Array, "*B E"]) -> Float[Array, "*B"]:
    """Coefficient of variation of the load: standard deviation over mean; 0 when even."""
    mean, variance = load.mean(axis=-1), load.var(axis=-1)
    spread = jnp.sqrt(jnp.where(variance > 0, variance, 1.0))  # the root of 0 has no slope
    return jnp.where(variance > 0, spread / jnp.where(mean > 0, mean, 1.0), 0.0)


def load_entropy(load: Float[Array, "*B E"]) -> Float[Array, "*B"]:
    """Entropy of the load over ``log E``: 1 when even, 0 when one expert takes everything or nothing was counted.

    A single expert is even by itself: 1.
    """
    num_experts = load.shape[-1]
    if num_experts == 1:
        return jnp.ones(load.shape[:-1], load.dtype)
    total = load.sum(axis=-1, keepdims=True)
    share = load / jnp.where(total > 0, total, 1.0)
    terms = jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0)
    return jnp.abs(terms.sum(axis=-1)) / jnp.log(float(num_experts))  # no term is above 0; abs turns -0.0 into 0.0


def dead_experts(load: Float[Array, "*B E"]) -> Float[Array, "*B"]:
    """Number of experts that received nothing, as float32."""
    return (load == 0).sum(axis=-1).astype(jnp.float32)


def straggler_factor(load: Float[Array, "*B E"], num_devices: int) -> Float[Array, "*B"]:
    """Load of the busiest device over the mean, with experts in contiguous blocks over devices: 1 when even.

    All devices wait for the slowest one, so a step of expert parallelism takes this many times its balanced time. With
    one expert a device it is MaxVio + 1; with more experts a device it is never larger.

    Raises:
      UserError: if the devices do not divide the experts evenly.

    Example:
      >>> print(straggler_factor(jnp.array([6.0, 0.0, 3.0, 3.0]), 2))
      1.0
    """
    num_experts = load.shape[-1]
    if num_devices < 1 or num_experts % num_devices:
        raise UserError(f"num_devices={num_devices} must divide the {num_experts} experts; choose a divisor")
    return max_violation(load.reshape(*load.shape[:-1], num_devices, -1).sum(axis=-1)) + 1.0


def global_max_violation(loads: Float[Array, "steps E"]) -> Float[Array, ""]:
    """MaxVio of the counts summed over steps; compare it with the mean over steps of `max_violation`.

    Batches that prefer different experts cancel in the sum. With batches of equal size it is never above that mean.

    Example:
      >>> loads = jnp.array([[4.0, 0.0], [0.0, 4.0]])
      >>> print(global_max_violation(loads), max_violation(loads).mean())
      0.0 1.0

    References:
      Wang et al., `Auxiliary-Loss-Free Load Balancing <https://arxiv.org/abs/2408.15664>`_, section 4.1.
    """
    return max_violation(loads.sum(axis=0))
