"""Load balancing: the losses, the loss-free bias, and the metrics. Axes: T tokens, E experts, K experts per token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minimoe.moe.routing import expert_load


def load_balance_loss(
    probs: Float[Array, "T E"], experts: Int[Array, "T K"], *, where: Bool[Array, "T"] | None = None
) -> Float[Array, ""]:
    r"""Penalises a router that sends most tokens to few experts.

    ``E / (T*K) * sum_e load[e] * mean_t p[t, e]`` with p the affinities divided by their row sum. It is 1.0 when load
    and affinity are uniform, whatever K, and E/K when K experts take everything. Only ``probs`` carries gradient:
    counting is not differentiable. One layer at a time: pooling layers lets opposite imbalances cancel.

    Args:
      probs: affinities, float32, not negative; rows need not sum to 1.
      experts: the ids actually used, so that a biased router is measured honestly.
      where: True for real tokens; padding neither counts nor pulls.

    Returns:
      A float32 scalar; 0.0 if no token is selected.

    Raises:
      ValueError: if probs and experts have different numbers of tokens.

    Example:
      >>> experts = jnp.array([[0, 1], [2, 3]])                  # all four used once
      >>> print(load_balance_loss(jnp.full((2, 4), 0.25), experts))
      1.0

    References:
      Fedus et al., `Switch Transformers <https://arxiv.org/abs/2101.03961>`_, eq. 4-6 (K = 1 there; dividing by K
      keeps the balanced value at 1).
    """
    if probs.shape[0] != experts.shape[0]:
        raise ValueError(
            f"probs has {probs.shape[0]} tokens but experts has {experts.shape[0]}; pass one row per token to both"
        )
    num_experts, top_k = probs.shape[1], experts.shape[1]
    where = jnp.ones(probs.shape[0], bool) if where is None else where
    rows = probs / (probs.sum(axis=-1, keepdims=True) + 1e-20)
    load = expert_load(experts, num_experts, where)  # [E], counts
    mass = jnp.sum(rows, axis=0, where=where[:, None])  # [E]
    tokens = jnp.maximum(where.sum(), 1).astype(jnp.float32)
    return num_experts * jnp.dot(load, mass) / (top_k * tokens**2)


def z_loss(logits: Float[Array, "T E"], *, where: Bool[Array, "T"] | None = None) -> Float[Array, ""]:
    """Mean over tokens of ``logsumexp(logits)**2``: keeps router logits small; it does not balance.

    Returns:
      A float32 scalar; ``log(E)**2`` when all logits are 0, and 0.0 if no token is selected.

    References:
      Zoph et al., `ST-MoE <https://arxiv.org/abs/2202.08906>`_, eq. 5.
    """
    where = jnp.ones(logits.shape[0], bool) if where is None else where
    squared = jax.nn.logsumexp(logits, axis=-1) ** 2
    return jnp.sum(squared, where=where) / jnp.maximum(where.sum(), 1).astype(jnp.float32)


def bias_update(bias: Float[Array, "E"], load: Float[Array, "E"], rate: float | Float[Array, ""]) -> Float[Array, "E"]:
    """One step of loss-free balancing: ``bias + rate * sign(mean load - load)``, then shifted to zero mean.

    Call it after the optimiser step, outside the gradient, with the load of the whole batch. Overloaded experts
    become harder to select, starved ones easier; the shift changes no choice and keeps the bias from drifting.

    Args:
      bias: ``[E]`` float32.
      load: assignments per expert, counts of the whole batch.
      rate: the step, in units of affinity; DeepSeek-V3 uses 0.001.

    Example:
      >>> print(bias_update(jnp.zeros(4), jnp.array([9.0, 1.0, 5.0, 5.0]), 0.001))
      [-0.001  0.001  0.     0.   ]

    References:
      Wang et al., `Auxiliary-Loss-Free Load Balancing <https://arxiv.org/abs/2408.15664>`_, algorithm 1.
    """
    moved = bias + rate * jnp.sign(load.mean() - load)
    return moved - moved.mean()


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
