"""Balancing: the losses and the loss-free bias. Axes: T tokens, E experts, K experts per token.

The load-balance loss has many conventions. Ours is ``E / (T*K) * sum_e load[e] * mean_t p[t, e]`` for each layer, with
rows of p made to sum to 1, then a mean over layers: 1.0 when balanced for any K, E/K when K experts take everything.
Call it B. With a softmax, on the same choices and weight 1:

=====================================  ===========================================  ======================
convention                             its value                                    when balanced
=====================================  ===========================================  ======================
Switch, eq. 4-6 (one expert a token)   B                                            1
Transformers                           K * B of all layers' tokens in one pool      K
``load_balancing_loss_func``
GShard, algorithm 1                    B of the first choices / E**2                1/E**2
DeepSeek-V2, expert level              mean over sequences of each one's own B      1
DeepSeek-V3, eq. 17-20                 the same, rows normalised: sigmoid scores    1
MegaBlocks                             mean over layers of B                        1
=====================================  ===========================================  ======================

Transformers pools all layers, so opposite imbalances of two layers cancel. To use the loss weight of a paper here,
multiply it by that convention's value when balanced. The tests compute each row with a few lines of NumPy.

Padding (``where=False``) reaches neither the value nor the gradient of any of them, whatever stands there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minimoe.layers import as_mask
from minimoe.moe.pairs import one_hot_experts, row_shares, weights_by_expert
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
      experts: the ids actually used, so that a biased router is measured honestly. (Expert choice lists every
        pair, used or not, and gives 1.0: it is balanced by construction.)
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
    where = as_mask(where, probs.shape[:1], "load_balance_loss")
    load = expert_load(experts, num_experts, where)  # [E], counts
    mass = row_shares(_real(probs, where)).sum(axis=0)  # [E]
    tokens = jnp.maximum(where.sum(), 1).astype(jnp.float32)
    return num_experts * jnp.dot(load, mass) / (top_k * tokens**2)


def _real(values: Float[Array, "T E"], where: Bool[Array, "T"]) -> Float[Array, "T E"]:
    """Zeros in the rows of padding, so that whatever stands there reaches neither the value nor a gradient."""
    return jnp.where(where[:, None], values, 0.0)


def sequence_balance_loss(
    probs: Float[Array, "T E"],
    experts: Int[Array, "T K"],
    segments: Int[Array, "T"],
    num_segments: int,
    *,
    where: Bool[Array, "T"] | None = None,
) -> Float[Array, ""]:
    """`load_balance_loss` of every sequence by itself, then the mean over sequences with any real token.

    It is stricter than balance over the batch: every single text must use all experts equally. That works against
    experts that specialise in a kind of text. DeepSeek gives it a small weight, 1e-4, to prevent extremes only.

    Args:
      probs, experts: as for `load_balance_loss`. The paper counts the top-K of the affinities without the bias; pass
        those ids to follow it to the letter.
      segments: sequence of each token, 0..num_segments-1.
      num_segments: S, the number of sequences.
      where: True for real tokens.

    Returns:
      A float32 scalar, 1.0 when every sequence is balanced; 0.0 if no token is selected.

    Example:
      >>> experts = jnp.array([[0], [0], [1], [1]])  # balanced as a batch, not within either sequence
      >>> print(sequence_balance_loss(jax.nn.one_hot(experts[:, 0], 2), experts, jnp.array([0, 0, 1, 1]), 2))
      2.0

    References:
      DeepSeek-AI, `DeepSeek-V3 <https://arxiv.org/abs/2412.19437>`_, eq. 17-20.
    """
    num_experts, top_k = probs.shape[1], experts.shape[1]
    where = as_mask(where, probs.shape[:1], "sequence_balance_loss")
    taken = one_hot_experts(experts, num_experts).sum(axis=1)  # [T, E]

    def by_segment(values: Float[Array, "T _"]) -> Float[Array, "S _"]:
        return jax.ops.segment_sum(jnp.where(where[:, None], values, 0.0), segments, num_segments)

    load, mass = by_segment(taken.astype(jnp.float32)), by_segment(row_shares(_real(probs, where)))  # [S, E]
    tokens = by_segment(jnp.ones((probs.shape[0], 1)))[:, 0]  # [S]
    losses = num_experts * (load * mass).sum(axis=-1) / (top_k * jnp.maximum(tokens, 1.0) ** 2)
    return losses.sum() / jnp.maximum((tokens > 0).sum(), 1).astype(jnp.float32)


def global_balance_loss(
    probs: Float[Array, "T E"], load: Float[Array, "E"], *, where: Bool[Array, "T"] | None = None
) -> Float[Array, ""]:
    """`load_balance_loss` with a load counted elsewhere: over micro-batches, devices, or the last few steps.

    ``E * sum_e share[e] * mean_t p[t, e]`` with ``share = load / sum(load)``, so K need not be known. The mean over
    micro-batches of equal size is the loss of the whole batch, since it is linear in p. A micro-batch may then use few
    experts, as long as the whole batch uses all.

    Args:
      probs: affinities of this micro-batch. They alone carry gradient.
      load: counts of the whole batch.
      where: True for real tokens.

    Returns:
      A float32 scalar, 1.0 for an even load whatever the affinities; 0.0 if no token is selected.

    Example:
      >>> print(global_balance_loss(jnp.array([[1.0, 0.0]]), jnp.array([3.0, 1.0])))
      1.5

    References:
      Qiu et al., `Demons in the Detail <https://arxiv.org/abs/2501.11873>`_ (the global-batch loss of Qwen).
    """
    where = as_mask(where, probs.shape[:1], "global_balance_loss")
    load = jax.lax.stop_gradient(load)
    share = load / jnp.maximum(load.sum(), 1.0)
    mass = row_shares(_real(probs, where)).sum(axis=0)
    return probs.shape[1] * jnp.dot(share, mass) / jnp.maximum(where.sum(), 1).astype(jnp.float32)


def importance_loss(
    weights: Float[Array, "T K"],
    experts: Int[Array, "T K"],
    num_experts: int,
    *,
    where: Bool[Array, "T"] | None = None,
) -> Float[Array, ""]:
    """Squared coefficient of variation of the importance, the sum of combine weights of each expert.

    0.0 when even. It balances weights, not work: an expert with many small weights counts as much as one with a few
    large ones. The paper therefore adds a second loss, for the load.

    Args:
      weights: combine weights.
      experts: ids, all different within a row.
      num_experts: E.
      where: True for real tokens.

    References:
      Shazeer et al., `Outrageously Large Neural Networks <https://arxiv.org/abs/1701.06538>`_, eq. 6-7.
    """
    weights = _real(weights, as_mask(where, weights.shape[:1], "importance_loss"))
    importance = weights_by_expert(experts, weights, num_experts).sum(axis=0)  # [E]
    mean = importance.mean()
    return jnp.where(mean > 0, importance.var() / jnp.where(mean > 0, mean, 1.0) ** 2, 0.0)


def z_loss(logits: Float[Array, "T E"], *, where: Bool[Array, "T"] | None = None) -> Float[Array, ""]:
    """Mean over tokens of ``logsumexp(logits)**2``: keeps router logits small; it does not balance.

    Args:
      logits: router logits.
      where: True for real tokens.

    Returns:
      A float32 scalar; ``log(E)**2`` when all logits are 0, and 0.0 if no token is selected.

    References:
      Zoph et al., `ST-MoE <https://arxiv.org/abs/2202.08906>`_, eq. 5.
    """
    where = as_mask(where, logits.shape[:1], "z_loss")
    squared = jax.nn.logsumexp(_real(logits, where), axis=-1) ** 2
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
