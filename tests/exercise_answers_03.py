"""Answers to the exercises of lesson 03, right and wrong; see `exercise_answers`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# The loss.


def normalised(probs):
    return probs / probs.sum(-1, keepdims=True)


def used(experts, num_experts):
    return jax.nn.one_hot(experts, num_experts).sum(1)  # [T, E]


def switch_dot(probs, experts):
    load = used(experts, probs.shape[1]).sum(0)
    return probs.shape[1] * jnp.dot(load, normalised(probs).mean(0)) / experts.size


def switch_bincount(probs, experts):
    share = jnp.bincount(experts.ravel(), length=probs.shape[1]) / experts.size
    return (share * (probs / jnp.sum(probs, axis=1)[:, None])).sum() * probs.shape[1] / len(probs)


def switch_with(term):
    def answer(probs, experts):
        hot = used(experts, probs.shape[1])
        return probs.shape[1] * term(hot.sum(0) / experts.size, normalised(probs), probs, hot, experts)

    return answer


SWITCH_RIGHT = [switch_dot, switch_bincount]
SWITCH_WRONG = [
    (switch_with(lambda f, rows, p, hot, ids: (f * rows.mean(0)).sum() * ids.shape[1]), "K when balanced"),
    (
        switch_with(lambda f, rows, p, hot, ids: (f * (rows * hot).mean(0)).sum()),
        "probabilities of the chosen experts only",
    ),
    (
        switch_with(lambda f, rows, p, hot, ids: (f * normalised(rows * hot).mean(0)).sum()),
        "probabilities renormalised over the chosen experts",
    ),
    (switch_with(lambda f, rows, p, hot, ids: (f**2).sum()), "squared counts"),
    (switch_with(lambda f, rows, p, hot, ids: (rows.mean(0) ** 2).sum()), "squared probabilities"),
    (switch_with(lambda f, rows, p, hot, ids: (f * p.mean(0)).sum()), "affinities not normalised"),
    (lambda probs, experts: switch_dot(probs, experts[:, :1]), "first choice only"),
    (
        switch_with(lambda f, rows, p, hot, ids: (f * rows.sum(0)).sum()),
        "sum instead of mean over tokens",
    ),
    (lambda probs, experts: switch_dot(probs, experts) / probs.shape[1], "not multiplied by E"),
    (
        switch_with(
            lambda f, rows, p, hot, ids: (f * (p / jax.lax.stop_gradient(p.sum(-1, keepdims=True))).mean(0)).sum()
        ),
        "row sums without gradient",
    ),
    (lambda probs, experts: switch_dot(jax.lax.stop_gradient(probs), experts), "aspect:gradient zero"),
    (lambda probs, experts: float(switch_dot(probs, experts)), "aspect:jit"),
    (lambda probs, experts: switch_dot(probs, experts)[None], "aspect:shape"),
    (lambda probs, experts: switch_dot(probs, experts).astype(jnp.int32), "aspect:dtype"),
]

# By sequence.


def sequence_segment_sum(probs, experts, segments, num_segments):
    def total(values):
        return jax.ops.segment_sum(values, segments, num_segments)

    length = total(jnp.ones(len(probs)))
    load, mass = total(used(experts, probs.shape[1])), total(normalised(probs))
    losses = probs.shape[1] * (load * mass).sum(-1) / (experts.shape[1] * jnp.maximum(length, 1) ** 2)
    return losses.sum() / (length > 0).sum()


def sequence_masks(probs, experts, segments, num_segments):
    losses, real = [], []
    for s in range(num_segments):
        mine = (segments == s).astype(jnp.float32)
        length = jnp.maximum(mine.sum(), 1.0)
        f = (mine[:, None] * used(experts, probs.shape[1])).sum(0) / (length * experts.shape[1])
        p = (mine[:, None] * normalised(probs)).sum(0) / length
        losses.append(probs.shape[1] * f @ p)
        real.append(mine.any())
    return jnp.mean(jnp.array(losses), where=jnp.array(real))


def sequence_with(term=None, combine=None):
    """Eager masks; ``term(load, rows, probs, hot, length)`` for one sequence, ``combine(losses, lengths)``."""

    def answer(probs, experts, segments, num_segments):
        losses, lengths = [], []
        for s in range(num_segments):
            mine = (segments == s).astype(jnp.float32)[:, None]
            length = jnp.maximum(mine.sum(), 1.0)
            hot = mine * used(experts, probs.shape[1])
            f = hot.sum(0) / (length * experts.shape[1])
            rows = mine * normalised(probs)
            default = (f * rows.sum(0)).sum() / length
            value = term(f, rows, mine * probs, hot, length) if term else default
            losses.append(probs.shape[1] * value)
            lengths.append(mine.sum())
        losses, lengths = jnp.array(losses), jnp.array(lengths)
        return combine(losses, lengths) if combine else losses.sum() / (lengths > 0).sum()

    return answer


def counts_of_batch(probs, experts, segments, num_segments):
    f = used(experts, probs.shape[1]).mean(0) / experts.shape[1]
    length = jax.ops.segment_sum(jnp.ones(len(probs)), segments, num_segments)
    p = jax.ops.segment_sum(normalised(probs), segments, num_segments) / jnp.maximum(length, 1)[:, None]
    return probs.shape[1] * (p @ f).sum() / (length > 0).sum()


SEQUENCE_RIGHT = [sequence_segment_sum, sequence_masks]
SEQUENCE_WRONG = [
    (lambda probs, experts, segments, n: switch_dot(probs, experts), "over the whole batch"),
    (sequence_with(combine=lambda losses, lengths: losses.sum()), "sum over sequences"),
    (sequence_with(combine=lambda losses, lengths: losses @ lengths / lengths.sum()), "weighted by length"),
    (counts_of_batch, "counts of the whole batch"),
    (sequence_with(combine=lambda losses, lengths: losses.mean()), "empty sequences counted"),
    (
        lambda probs, experts, segments, n: sequence_masks(probs, experts, segments, n) * experts.shape[1],
        "K when balanced",
    ),
    (sequence_with(lambda f, rows, p, hot, n: (f * p.sum(0)).sum() / n), "affinities not normalised"),
    (
        sequence_with(lambda f, rows, p, hot, n: (f * (rows * hot).sum(0)).sum() / n),
        "probabilities of the chosen experts only",
    ),
    (sequence_with(lambda f, rows, p, hot, n: (f**2).sum()), "squared counts"),
    (lambda p, *rest: sequence_masks(jax.lax.stop_gradient(p), *rest), "aspect:gradient zero"),
    (
        lambda probs, experts, segments, n: sequence_masks(probs, experts, segments, int(segments.max()) + 1),
        "aspect:jit",
    ),
]

# The bias.


def bias_numpy(bias, load, rate):
    moved = bias + np.float32(rate) * np.sign(load.mean() - load)
    return (moved - moved.mean()).astype(np.float32)


def bias_at(bias, load, rate):
    """Needs JAX arrays."""
    over, under = load > load.mean(), load < load.mean()
    bias = bias.at[:].add(jnp.where(over, -rate, jnp.where(under, rate, 0.0)))
    return bias - bias.mean()


def bias_with(step, finish=lambda moved: moved - moved.mean()):
    return lambda bias, load, rate: finish(bias + np.float32(rate) * step(load)).astype(np.float32)


BIAS_RIGHT = [bias_numpy, bias_at]
BIAS_WRONG = [
    (bias_with(lambda load: -np.sign(load.mean() - load)), "wrong sign"),
    (bias_with(lambda load: np.sign(load - load.mean()), finish=lambda m: m), "wrong sign, not centred"),
    (bias_with(lambda load: np.sign(load.mean() - load), finish=lambda m: m), "not centred"),
    (bias_with(lambda load: load.mean() - load), "proportional step"),
    (bias_with(lambda load: 1 - load / load.mean()), "step proportional to the relative imbalance"),
    (
        bias_with(lambda load: np.where(load < load.mean(), 1, -1).astype(np.float32)),
        "an expert at the mean is moved",
    ),
    (
        bias_with(lambda load: np.where(load <= load.mean(), 1, -1).astype(np.float32)),
        "an expert at the mean is moved up",
    ),
    (
        bias_with(lambda load: np.sign(load.mean() - load) * (np.abs(load.mean() - load) > 0.1)),
        "an expert near the mean is not moved",
    ),
    (
        bias_with(lambda load: np.sign(load.mean() - load) * ~np.isclose(load, load.mean())),
        "an expert near the mean is not moved",
    ),
    (
        bias_with(lambda load: np.sign(load.mean() - load), finish=lambda m: m / np.abs(m).max()),
        "divided by the largest bias",
    ),
    (bias_with(lambda load: np.sign(np.median(load) - load)), "compared with the median"),
    (lambda bias, load, rate: bias_numpy(bias, load, rate).astype(np.float64), "aspect:dtype"),
    (lambda bias, load, rate: bias_numpy(bias, load, rate).tolist(), "aspect:structure"),
    (lambda bias, load, rate: bias, "aspect:values"),
]

RIGHT = {
    "balance.switch_loss": SWITCH_RIGHT,
    "balance.sequence_loss": SEQUENCE_RIGHT,
    "balance.bias_update": BIAS_RIGHT,
}
WRONG = {
    "balance.switch_loss": SWITCH_WRONG,
    "balance.sequence_loss": SEQUENCE_WRONG,
    "balance.bias_update": BIAS_WRONG,
}
