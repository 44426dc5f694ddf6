"""Measures of imbalance, from counts of assignments. Axes: E experts; leading axes are layers or steps, never pooled."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from minimoe.errors import UserError


def max_violation(load: Float[Array, "*B E"]) -> Float[Array, "*B"]:
    """MaxVio: ``max load / mean load - 1``; 0 when even, E/K - 1 at worst, 0 for no load (arXiv 2408.15664, eq. 4)."""
    mean = load.mean(axis=-1)
    return jnp.where(mean > 0, load.max(axis=-1) / jnp.where(mean > 0, mean, 1.0) - 1.0, 0.0)


def load_cv(load: Float[Array, "*B E"]) -> Float[Array, "*B"]:
    """Coefficient of variation of the load: standard deviation over mean; 0 when even."""
    mean = load.mean(axis=-1)
    return jnp.where(mean > 0, load.std(axis=-1) / jnp.where(mean > 0, mean, 1.0), 0.0)


def load_entropy(load: Float[Array, "*B E"]) -> Float[Array, "*B"]:
    """Entropy of the load over ``log E``: 1 when even, 0 when one expert takes everything; 1 for a single expert."""
    num_experts = load.shape[-1]
    if num_experts == 1:
        return jnp.ones(load.shape[:-1], load.dtype)
    share = load / jnp.maximum(load.sum(axis=-1, keepdims=True), 1.0)
    terms = jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0)
    return -terms.sum(axis=-1) / jnp.log(float(num_experts))


def dead_experts(load: Float[Array, "*B E"]) -> Float[Array, "*B"]:
    """Number of experts that received nothing, as float32."""
    return (load == 0).sum(axis=-1).astype(jnp.float32)


def straggler_factor(load: Float[Array, "*B E"], num_devices: int) -> Float[Array, "*B"]:
    """Load of the busiest device over the mean, with experts in contiguous blocks over devices: 1 when even.

    All devices wait for the slowest, so a step of expert parallelism takes this many times its balanced time. Never
    worse than with an expert per device, where it is MaxVio + 1.

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
    """MaxVio of the summed counts; the mean over steps of `max_violation` is the batch figure beside it.

    Batches that lean different ways cancel, so it is never above the batch figure when batches are of equal size.

    Example:
      >>> loads = jnp.array([[4.0, 0.0], [0.0, 4.0]])
      >>> print(global_max_violation(loads), max_violation(loads).mean())
      0.0 1.0

    References:
      Wang et al., `Auxiliary-Loss-Free Load Balancing <https://arxiv.org/abs/2408.15664>`_, section 4.1.
    """
    return max_violation(loads.sum(axis=0))
