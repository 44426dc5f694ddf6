"""Answers to the exercises of lesson 02, right and wrong; see `exercise_answers`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Top-k.


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


def partition(affinities, bias, k):
    """Right as long as there is an expert that is not chosen."""
    scores = affinities + bias
    experts = jnp.sort(jnp.argpartition(-scores, k, axis=-1)[:, :k], axis=-1)
    order = jnp.argsort(-jnp.take_along_axis(scores, experts, axis=-1), axis=-1, stable=True)
    return jnp.take_along_axis(experts, order, axis=-1).astype(jnp.int32)


def one_by_one(taken):
    """The best expert again and again; one that is taken gets the score ``taken``."""

    def choose(affinities, bias, k):
        scores, experts = affinities + bias, []
        for _ in range(k):
            experts.append(scores.argmax(axis=1))
            scores = scores.at[jnp.arange(len(scores)), experts[-1]].set(taken)
        return jnp.stack(experts, axis=1).astype(jnp.int32)

    return choose


TOPK_RIGHT = [topk_lax, topk_argsort, topk_with(choose=one_by_one(-jnp.inf))]
TOPK_WRONG = [
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
    (topk_with(choose=one_by_one(-100.0)), "an expert chosen twice"),
    (topk_with(choose=one_by_one(-1e5)), "an expert chosen twice"),
    (topk_with(weigh=lambda a, b, e, c: c / (c.sum(-1, keepdims=True) + 1e-6)), "a large epsilon"),
    (
        topk_with(weigh=lambda a, b, e, c: c / jax.lax.stop_gradient(c.sum(-1, keepdims=True))),
        "divisor without gradient",
    ),
    (topk_with(choose=partition), "aspect:jit"),
    (lambda a, b, k: jax.lax.stop_gradient(topk_lax(a, b, k)), "aspect:gradient zero"),
    (lambda a, b, k: (topk_lax(a, b, k)[0].astype(jnp.float32), topk_lax(a, b, k)[1]), "aspect:dtype"),
    (lambda a, b, k: topk_lax(a, b, k)[::-1], "aspect:dtype"),
    (lambda a, b, k: (topk_lax(a, b, k)[0], a), "aspect:shape"),
    (lambda a, b, k: topk_lax(a, b, k + 1), "aspect:shape"),
    (lambda a, b, k: topk_lax(a, b, k)[1], "aspect:structure"),
]

# Sqrt-softplus.


def sqrtsoftplus_clamped(logits):
    return jnp.sqrt(jax.nn.softplus(jnp.maximum(logits, -80.0)))


def sqrtsoftplus_branches(logits):
    """Both branches made safe before they are differentiated."""
    middle = jnp.clip(logits, -60.0, 30.0)
    large = jnp.sqrt(jnp.maximum(logits, 30.0))
    return jnp.where(logits > 30.0, large, jnp.sqrt(jnp.log1p(jnp.exp(middle))))


SQRTSOFTPLUS_RIGHT = [sqrtsoftplus_clamped, sqrtsoftplus_branches]
SQRTSOFTPLUS_WRONG = [
    (jax.nn.softplus, "softplus without the square root"),
    (lambda x: jax.nn.softplus(x / 2), "square root inside the logarithm"),
    (jax.nn.sigmoid, "sigmoid"),
    (lambda x: jnp.sqrt(jnp.log1p(jnp.exp(x))), "overflow in exp"),
    (lambda x: jnp.sqrt(jnp.log(1 + jnp.exp(x))), "log(1 + exp(x)) loses small values"),
    (lambda x: jnp.sqrt(jnp.maximum(x, 0.0)), "root of the logit"),
    (lambda x: jnp.sqrt(jax.nn.softplus(x)), "NaN gradient far below zero"),
    (
        lambda x: jnp.where(x > 30, jnp.sqrt(jnp.maximum(x, 1.0)), jnp.sqrt(jnp.log1p(jnp.exp(jnp.maximum(x, -80.0))))),
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
]

# Groups.


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


GROUPS_RIGHT = [group_limited_repeat, group_limited_sorted]
GROUPS_WRONG = [
    (groups_with(outside=0.0), "masked with a number"),
    (groups_with(outside=-1e4), "masked with a number"),
    (groups_with(lambda g: g.max(-1)), "group judged by its best expert"),
    (groups_with(lambda g: g.mean(-1)), "group judged by all its experts"),
    (groups_with(lambda g: g.sum(-1)), "group judged by all its experts"),
    (groups_with(stride=True), "groups by stride"),
    (lambda scores, g, kg, k: jax.lax.top_k(scores, k)[1], "no groups"),
    (groups_with(sign=-1), "worst groups kept"),
    (lambda *a: group_limited_repeat(*a).astype(jnp.float32), "aspect:dtype"),
    (lambda *a: jnp.sort(group_limited_repeat(*a)), "aspect:values"),
    (lambda *a: np.asarray(group_limited_repeat(*a)), "aspect:jit"),
]

RIGHT = {
    "routing.topk": TOPK_RIGHT,
    "routing.sqrtsoftplus": SQRTSOFTPLUS_RIGHT,
    "routing.group_limited": GROUPS_RIGHT,
}
WRONG = {
    "routing.topk": TOPK_WRONG,
    "routing.sqrtsoftplus": SQRTSOFTPLUS_WRONG,
    "routing.group_limited": GROUPS_WRONG,
}
