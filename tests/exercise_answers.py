"""Answers to the exercises: right ones written differently, and wrong ones with the mistake that each must be told.

These are the only solutions in the repository; the package holds oracles in NumPy, loops that neither trace nor have a
gradient. Those of lessons 04 and 05 are in `exercise_answers_04` and `exercise_answers_05`. ``RIGHT[id]`` is a list of
functions; ``WRONG[id]`` a list of (function, name of the mistake or, for what no name covers, ``aspect:...``).
"""

from __future__ import annotations

import exercise_answers_04
import exercise_answers_05
import jax
import jax.numpy as jnp
import numpy as np

# Lesson 01.


def params_formula(d_model, d_expert, num_experts, top_k, num_shared_experts):
    one, router = 3 * d_model * d_expert, d_model * num_experts
    return router + (num_experts + num_shared_experts) * one, router + (top_k + num_shared_experts) * one


def params_shapes(d, f, e, k, s):
    expert = sum(np.prod(shape, dtype=np.int64) for shape in [(d, f), (d, f), (f, d)])
    return [expert * (n + s) + d * e for n in (e, k)]


def width_formula(d_model, d_expert, num_experts, top_k, num_shared_experts):
    width = (top_k + num_shared_experts) * d_expert
    return width, 2 * d_model * (num_experts + 3 * width), 6 * d_model * width


def width_from_params(d, f, e, k, s):
    dense = 2.0 * (params_formula(d, f, e, k, s)[1] - d * e)
    return round(dense / (6 * d)), dense + 2.0 * d * e, dense


def width_with(width, per_matrix=3, flops=2, router=1):
    def answer(d, f, e, k, s):
        ffn = flops * per_matrix * d
        return width(f, e, k, s), ffn * (k + s) * f + router * flops * d * e, ffn * width(f, e, k, s)

    return answer


def moe_by_expert(x, experts, weights, gate_up, down):
    y = jnp.zeros_like(x)
    for e in range(gate_up.shape[0]):
        gate, up = jnp.split(x @ gate_up[e], 2, axis=-1)
        share = jnp.where(experts == e, weights, 0).sum(-1, keepdims=True).astype(x.dtype)
        y = y + share * ((jax.nn.silu(gate) * up) @ down[e])
    return y


def moe_by_slot(x, experts, weights, gate_up, down, *, silu=jax.nn.silu, before=False, swap=False):
    if before:
        tokens, weights = weights[:, :, None] * x[:, None, :], jnp.ones_like(weights)
    else:
        tokens = jnp.broadcast_to(x[:, None, :], (*experts.shape, x.shape[1]))
    hidden = jnp.einsum("tkd,tkdf->tkf", tokens.astype(x.dtype), gate_up[experts])
    f = down.shape[1]
    gate, up = (hidden[..., f:], hidden[..., :f]) if swap else (hidden[..., :f], hidden[..., f:])
    out = jnp.einsum("tkf,tkfd->tkd", silu(gate) * up, down[experts])
    return (weights[:, :, None].astype(x.dtype) * out).sum(1)


def moe_weights(change):
    return lambda x, experts, weights, gate_up, down: moe_by_slot(x, experts, change(weights), gate_up, down)


# Lesson 02.


def topk_lax(affinities, bias, k):
    _, experts = jax.lax.top_k(affinities + bias, k)
    chosen = jnp.take_along_axis(affinities, experts, axis=-1)
    return experts, chosen / chosen.sum(-1, keepdims=True)


def topk_argsort(affinities, bias, k):
    experts = jnp.argsort(-(affinities + bias[None]), axis=1, stable=True)[:, :k].astype(jnp.int32)
    one_hot = jax.nn.one_hot(experts, affinities.shape[1])
    chosen = jnp.einsum("te,tke->tk", affinities, one_hot)
    return [experts, chosen / (chosen.sum(-1)[:, None] + 1e-20)]


def topk_with(choose=None, weigh=None):
    def answer(affinities, bias, k):
        experts = choose(affinities, bias, k) if choose else topk_lax(affinities, bias, k)[0]
        chosen = jnp.take_along_axis(affinities, experts, axis=-1)
        weights = weigh(affinities, bias, experts, chosen) if weigh else chosen / chosen.sum(-1, keepdims=True)
        return experts, weights

    return answer


def biased(affinities, bias, experts, chosen):
    scores = jnp.take_along_axis(affinities + bias, experts, axis=-1)
    return scores / scores.sum(-1, keepdims=True)


def tie_up(affinities, bias, k):
    flipped = jax.lax.top_k((affinities + bias)[:, ::-1], k)[1]
    return (affinities.shape[1] - 1 - flipped).astype(jnp.int32)


def sqrtsoftplus_clamped(logits):
    return jnp.sqrt(jax.nn.softplus(jnp.maximum(logits, -80.0)))


def sqrtsoftplus_branches(logits):
    """Both branches made safe before they are differentiated."""
    middle = jnp.clip(logits, -60.0, 30.0)
    large = jnp.sqrt(jnp.maximum(logits, 30.0))
    return jnp.where(logits > 30.0, large, jnp.sqrt(jnp.log1p(jnp.exp(middle))))


def group_limited_repeat(scores, num_groups, top_k_groups, k):
    tokens, num_experts = scores.shape
    groups = scores.reshape(tokens, num_groups, -1)
    strength = jax.lax.top_k(groups, 2)[0].sum(-1)
    kept = jax.lax.top_k(strength, top_k_groups)[1]
    allowed = jnp.zeros((tokens, num_groups), bool).at[jnp.arange(tokens)[:, None], kept].set(True)
    return jax.lax.top_k(jnp.where(jnp.repeat(allowed, num_experts // num_groups, 1), scores, -jnp.inf), k)[1]


def group_limited_sorted(scores, num_groups, top_k_groups, k):
    groups = scores.reshape(scores.shape[0], num_groups, -1)
    strength = jnp.sort(groups, axis=-1)[..., -2:].sum(-1)
    rank = jnp.argsort(jnp.argsort(-strength, axis=-1), axis=-1)
    masked = jnp.where((rank < top_k_groups)[..., None], groups, -jnp.inf).reshape(scores.shape)
    return jnp.argsort(-masked, axis=-1)[:, :k].astype(jnp.int32)


def groups_with(strength=lambda g: jax.lax.top_k(g, 2)[0].sum(-1), outside=-jnp.inf, stride=False, sign=1):
    def answer(scores, num_groups, top_k_groups, k):
        tokens, num_experts = scores.shape
        size = num_experts // num_groups
        groups = jnp.swapaxes(scores.reshape(tokens, size, num_groups), 1, 2) if stride else None
        groups = scores.reshape(tokens, num_groups, size) if groups is None else groups
        kept = jax.lax.top_k(sign * strength(groups), top_k_groups)[1]
        allowed = (kept[:, :, None] == jnp.arange(num_groups)).any(1)
        allowed = jnp.tile(allowed, (1, size)) if stride else jnp.repeat(allowed, size, axis=1)
        return jax.lax.top_k(jnp.where(allowed, scores, outside), k)[1]

    return answer


# Lesson 03.


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


RIGHT = {
    "sparse.params": [params_formula, params_shapes],
    "sparse.dense_width": [width_formula, width_from_params],
    "sparse.moe_forward": [moe_by_expert, moe_by_slot],
    "routing.topk": [topk_lax, topk_argsort],
    "routing.sqrtsoftplus": [sqrtsoftplus_clamped, sqrtsoftplus_branches],
    "routing.group_limited": [group_limited_repeat, group_limited_sorted],
    "balance.switch_loss": [switch_dot, switch_bincount],
    "balance.sequence_loss": [sequence_segment_sum, sequence_masks],
    "balance.bias_update": [bias_numpy, bias_at],
    **exercise_answers_04.RIGHT,
    **exercise_answers_05.RIGHT,
}

WRONG = {
    "sparse.params": [
        (lambda d, f, e, k, s: (d * e + (e + s) * 2 * d * f, d * e + (k + s) * 2 * d * f), "two matrices an expert"),
        (lambda d, f, e, k, s: (e + (e + s) * 3 * d * f, e + (k + s) * 3 * d * f), "a router of E numbers"),
        (lambda d, f, e, k, s: ((e + s) * 3 * d * f, (k + s) * 3 * d * f), "no router"),
        (lambda *sizes: (params_formula(*sizes)[0],) * 2, "active equals total"),
        (
            lambda d, f, e, k, s: (d * e + (e + s) * 3 * d * f, d * e + k * 3 * d * f),
            "the shared experts are not active",
        ),
        (lambda d, f, e, k, s: (d * e + e * 3 * d * f, d * e + k * 3 * d * f), "no shared experts"),
        (
            lambda d, f, e, k, s: (d * e + (e + s) * 3 * d * f, d * k + (k + s) * 3 * d * f),
            "only the chosen part of the router is active",
        ),
        (lambda d, f, e, k, s: (d * e + (e + s) * 3 * d * f, (k + s) * 3 * d * f), "the router is not active"),
        (lambda *sizes: tuple(float(n) for n in params_formula(*sizes)), "aspect:dtype"),
        (lambda *sizes: params_formula(*sizes)[0], "aspect:structure"),
        (lambda d, f, e, k, s: params_formula(d, f, e, s, k), "aspect:values"),
        (lambda d, f, e, k, s: tuple(np.int32(n % 2**31) for n in params_formula(d, f, e, k, s)), "aspect:values"),
    ],
    "sparse.dense_width": [
        (width_with(lambda f, e, k, s: (e + s) * f), "as wide as all experts"),
        (width_with(lambda f, e, k, s: k * f), "no shared experts"),
        (width_with(lambda f, e, k, s: f), "as wide as one expert"),
        (width_with(lambda f, e, k, s: (k + s) * f, flops=1), "one FLOP for a multiply-add"),
        (width_with(lambda f, e, k, s: (k + s) * f, per_matrix=2), "two matrices an expert"),
        (width_with(lambda f, e, k, s: (k + s) * f, router=0), "a free router"),
        (lambda *sizes: (float(width_formula(*sizes)[0]), *width_formula(*sizes)[1:]), "aspect:dtype"),
    ],
    "sparse.moe_forward": [
        (lambda x, experts, weights, gate_up, down: x, "identity"),
        (lambda *a: moe_by_slot(*a, before=True), "weights on the inputs"),
        (lambda *a: moe_by_slot(*a, swap=True), "gate and up swapped"),
        (moe_weights(lambda w: jnp.full_like(w, 1 / w.shape[1])), "plain mean of the experts"),
        (moe_weights(jnp.ones_like), "plain sum of the experts"),
        (moe_weights(lambda w: w.at[:, 1:].set(0)), "first expert only"),
        (moe_weights(normalised), "weights renormalised"),
        (lambda *a: moe_by_slot(*a, silu=lambda g: g), "no nonlinearity"),
        (lambda *a: moe_by_slot(*a, silu=jax.nn.sigmoid), "sigmoid for silu"),
        (lambda *a: moe_by_slot(*a).astype(jnp.float32), "aspect:dtype"),
        (lambda *a: moe_by_slot(*a, silu=lambda g: g * jnp.exp(g) / (1 + jnp.exp(g))), "aspect:nan"),
        (moe_weights(jax.lax.stop_gradient), "aspect:gradient zero"),
        (lambda x, *rest: moe_by_slot(jax.lax.stop_gradient(x), *rest), "aspect:gradient zero"),
        (lambda *a: np.asarray(moe_by_slot(*a)), "aspect:jit"),
        (lambda *a: jax.nn.gelu(moe_by_slot(*a)), "aspect:values"),
    ],
    "routing.topk": [
        (topk_with(weigh=biased), "bias in the weights"),
        (topk_with(weigh=lambda a, b, e, c: jnp.take_along_axis(a + b, e, -1)), "unnormalised bias in the weights"),
        (topk_with(choose=lambda a, b, k: jnp.argsort(a + b)[:, :k]), "bottom-k"),
        (topk_with(choose=lambda a, b, k: jax.lax.top_k(a, k)[1]), "bias ignored"),
        (topk_with(weigh=lambda a, b, e, c: c), "not normalised"),
        (topk_with(weigh=lambda a, b, e, c: c / a.sum(-1, keepdims=True)), "normalised over all experts"),
        (topk_with(weigh=lambda a, b, e, c: jax.nn.softmax(c)), "softmax of the affinities"),
        (topk_with(weigh=lambda a, b, e, c: jnp.full_like(c, 1 / c.shape[1])), "equal weights"),
        (topk_with(choose=tie_up), "ties to the higher id"),
        (topk_with(choose=lambda a, b, k: jnp.sort(jax.lax.top_k(a + b, k)[1])), "ordered by id"),
        (topk_with(choose=lambda a, b, k: jax.lax.top_k(a + b, k)[1][:, ::-1]), "worst of the chosen first"),
        (topk_with(weigh=lambda a, b, e, c: c / (c.sum(-1, keepdims=True) + 1e-6)), "a large epsilon"),
        (
            topk_with(weigh=lambda a, b, e, c: c / jax.lax.stop_gradient(c.sum(-1, keepdims=True))),
            "divisor without gradient",
        ),
        (lambda a, b, k: jax.lax.stop_gradient(topk_lax(a, b, k)), "aspect:gradient zero"),
        (lambda a, b, k: (topk_lax(a, b, k)[0].astype(jnp.float32), topk_lax(a, b, k)[1]), "aspect:dtype"),
        (lambda a, b, k: topk_lax(a, b, k)[::-1], "aspect:dtype"),
        (lambda a, b, k: (topk_lax(a, b, k)[0], a), "aspect:shape"),
        (lambda a, b, k: topk_lax(a, b, k + 1), "aspect:shape"),
        (lambda a, b, k: topk_lax(a, b, k)[1], "aspect:structure"),
    ],
    "routing.sqrtsoftplus": [
        (jax.nn.softplus, "softplus without the square root"),
        (lambda x: jax.nn.softplus(x / 2), "square root inside the logarithm"),
        (jax.nn.sigmoid, "sigmoid"),
        (lambda x: jnp.sqrt(jnp.log1p(jnp.exp(x))), "overflow in exp"),
        (lambda x: jnp.sqrt(jnp.log(1 + jnp.exp(x))), "log(1 + exp(x)) loses small values"),
        (lambda x: jnp.sqrt(jnp.maximum(x, 0.0)), "root of the logit"),
        (lambda x: jnp.sqrt(jax.nn.softplus(x)), "NaN gradient far below zero"),
        (
            lambda x: jnp.where(
                x > 30, jnp.sqrt(jnp.maximum(x, 1.0)), jnp.sqrt(jnp.log1p(jnp.exp(jnp.maximum(x, -80.0))))
            ),
            "NaN gradient far above zero",
        ),
        (
            lambda x: jnp.where(x > 30, jnp.sqrt(jnp.maximum(x, 1.0)), jnp.sqrt(jnp.log1p(jnp.exp(x)))),
            "NaN gradient on both sides",
        ),
        (lambda x: jax.lax.stop_gradient(sqrtsoftplus_clamped(x)), "aspect:gradient zero"),
        (lambda x: np.sqrt(np.logaddexp(0, np.asarray(x, np.float64))), "aspect:dtype"),
        (lambda x: np.sqrt(np.logaddexp(np.float32(0), np.maximum(x, -80))), "aspect:jit"),
        (lambda x: sqrtsoftplus_clamped(x[:, :1]), "aspect:shape"),
    ],
    "routing.group_limited": [
        (groups_with(outside=0.0), "masked with 0"),
        (groups_with(lambda g: g.max(-1)), "group judged by its best expert"),
        (groups_with(lambda g: g.mean(-1)), "group judged by all its experts"),
        (groups_with(lambda g: g.sum(-1)), "group judged by all its experts"),
        (groups_with(stride=True), "groups by stride"),
        (lambda scores, g, kg, k: jax.lax.top_k(scores, k)[1], "no groups"),
        (groups_with(sign=-1), "worst groups kept"),
        (lambda *a: group_limited_repeat(*a).astype(jnp.float32), "aspect:dtype"),
        (lambda *a: jnp.sort(group_limited_repeat(*a)), "aspect:values"),
        (lambda *a: np.asarray(group_limited_repeat(*a)), "aspect:jit"),
    ],
    "balance.switch_loss": [
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
    ],
    "balance.sequence_loss": [
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
    ],
    "balance.bias_update": [
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
            bias_with(lambda load: np.sign(load.mean() - load), finish=lambda m: m / np.abs(m).max()),
            "divided by the largest bias",
        ),
        (bias_with(lambda load: np.sign(np.median(load) - load)), "compared with the median"),
        (lambda bias, load, rate: bias_numpy(bias, load, rate).astype(np.float64), "aspect:dtype"),
        (lambda bias, load, rate: bias_numpy(bias, load, rate).tolist(), "aspect:structure"),
        (lambda bias, load, rate: bias, "aspect:values"),
    ],
    **exercise_answers_04.WRONG,
    **exercise_answers_05.WRONG,
}
