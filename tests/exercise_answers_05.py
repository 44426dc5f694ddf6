"""Answers to the exercises of lesson 05, right and wrong; see `exercise_answers`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

stop = jax.lax.stop_gradient
log_softmax = jax.nn.log_softmax


def log_of(softmax):
    return lambda logits: jnp.log(softmax(logits))


def naive_softmax(logits):
    return jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)


def above(epsilon):
    return lambda logits: jnp.log(jax.nn.softmax(logits) + epsilon)


def divergence(log_p, log_q):
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def wide(*arrays):
    return [array.astype(jnp.float32) for array in arrays]


# Hard labels and soft targets.


def kd_optax(student, teacher, labels, mask, temperature, alpha):
    student, teacher = student.astype(jnp.float32), stop(teacher.astype(jnp.float32))
    hard = optax.softmax_cross_entropy_with_integer_labels(student, labels)
    soft = optax.losses.kl_divergence_with_log_targets(
        log_softmax(student / temperature), log_softmax(teacher / temperature)
    )
    return ((1 - alpha) * hard + alpha * temperature**2 * soft) * mask


def kd_by_position(student, teacher, labels, mask, temperature, alpha):
    """One position at a time; the divergence as cross-entropy less entropy."""

    def one(z, t, label, real):
        log_q = z / temperature - jax.nn.logsumexp(z / temperature)
        log_p = stop(t / temperature - jax.nn.logsumexp(t / temperature))
        p = stop(jax.nn.softmax(t / temperature))
        soft = jnp.dot(p, log_p) - jnp.dot(p, log_q)
        hard = jax.nn.logsumexp(z) - z[label]
        return jnp.where(real, (1 - alpha) * hard + soft * (alpha * temperature * temperature), 0.0)

    return jax.vmap(one)(*wide(student, teacher), labels, mask)


def kd_with(
    hard=lambda z, y, T: -jnp.take_along_axis(log_softmax(z), y[:, None], 1)[:, 0],
    soft=lambda z, t, T: divergence(log_softmax(t / T), log_softmax(z / T)),
    factors=lambda T, a: (1 - a, a * T**2),
    finish=lambda losses, mask: jnp.where(mask, losses, 0.0),
    teacher=stop,
):
    def answer(student, t, labels, mask, temperature, alpha):
        student, t = wide(student, t)
        one, other = factors(temperature, alpha)
        losses = one * hard(student, labels, temperature) + other * soft(student, teacher(t), temperature)
        return finish(losses, mask)

    return answer


def kd_log(log, soft=divergence):
    return kd_with(
        hard=lambda z, y, T: -jnp.take_along_axis(log(z), y[:, None], 1)[:, 0],
        soft=lambda z, t, T: soft(log(t / T), log(z / T)),
    )


def rel_entr(z, t, T):
    return jax.scipy.special.rel_entr(jax.nn.softmax(t / T), jax.nn.softmax(z / T)).sum(-1)


KD_RIGHT = [kd_optax, kd_by_position]
KD_WRONG = [
    (kd_with(factors=lambda T, a: (1 - a, a)), "T squared forgotten"),
    (kd_with(factors=lambda T, a: (1 - a, a * T)), "T for T squared"),
    (kd_with(factors=lambda T, a: ((1 - a) * T**2, a * T**2)), "T squared on both terms"),
    (kd_with(soft=lambda z, t, T: divergence(log_softmax(z / T), log_softmax(t / T))), "KL the other way round"),
    (kd_with(soft=lambda z, t, T: divergence(log_softmax(t), log_softmax(z / T))), "temperature on one model only"),
    (kd_with(soft=lambda z, t, T: divergence(log_softmax(t / T), log_softmax(z))), "temperature on one model only"),
    (kd_with(soft=lambda z, t, T: divergence(log_softmax(t), log_softmax(z))), "no temperature"),
    (kd_with(hard=lambda z, y, T: -jnp.take_along_axis(log_softmax(z / T), y[:, None], 1)[:, 0]),
     "labels at the temperature"),
    (kd_with(factors=lambda T, a: (a, (1 - a) * T**2)), "alpha on the labels"),
    (kd_with(soft=lambda z, t, T: optax.softmax_cross_entropy(z / T, jax.nn.softmax(t / T))), "cross-entropy for KL"),
    (kd_with(soft=lambda z, t, T: divergence(log_softmax(t / T), log_softmax(z / T)) / z.shape[1]),
     "mean over the vocabulary"),
    (kd_with(finish=lambda losses, mask: jnp.mean(losses, where=mask)), "reduced to one number"),
    (kd_with(finish=lambda losses, mask: jnp.mean(losses * mask)), "reduced to one number"),
    (kd_with(finish=lambda losses, mask: losses.mean()), "reduced to one number"),
    (kd_with(finish=lambda losses, mask: losses), "padding counted"),
    (kd_log(log_of(jax.nn.softmax)), "logarithm of a probability"),
    (kd_log(log_of(naive_softmax)), "logarithm of a probability"),
    (kd_log(lambda z: z - jnp.log(jnp.exp(z).sum(-1, keepdims=True))), "logarithm of a probability"),
    (kd_with(soft=rel_entr), "logarithm of a probability"),
    (kd_with(hard=lambda z, y, T: -jnp.log(jnp.take_along_axis(jax.nn.softmax(z), y[:, None], 1)[:, 0])),
     "logarithm of a probability"),
    (kd_log(above(1e-8)), "an epsilon in the logarithm"),
    (kd_with(soft=lambda z, t, T: divergence(above(1e-10)(t / T), above(1e-10)(z / T))), "an epsilon in the logarithm"),
    (kd_with(teacher=lambda t: t), "the teacher learns"),
    (kd_with(soft=lambda z, t, T: stop(divergence(log_softmax(t / T), log_softmax(z / T)))), "aspect:gradient"),
    (lambda *args: stop(kd_optax(*args)), "aspect:gradient zero"),
    (lambda s, t, *rest: kd_optax(s, t, *rest).astype(s.dtype), "aspect:dtype"),
    (lambda *args: np.asarray(kd_optax(*args)), "aspect:jit"),
    (lambda *args: kd_optax(*args)[:, None], "aspect:shape"),
    (lambda *args: list(kd_optax(*args)), "aspect:structure"),
]  # fmt: skip

# The teacher's best words.


def listed(words, ids):
    """True for the words among the ids, ``[N, V]``."""
    return (ids[:, :, None] == jnp.arange(words)).any(1)


def log_rest(log_q, ids):
    return jax.nn.logsumexp(jnp.where(listed(log_q.shape[1], ids), -jnp.inf, log_q), axis=1)


def topk_joined(student, values, ids, tail):
    """k + 1 classes; where the teacher's last has nothing, the student's is not looked at."""
    log_q = log_softmax(student.astype(jnp.float32))
    used = tail > -jnp.inf
    rest = jnp.where(used, log_rest(jnp.where(used[:, None], log_q, 0.0), ids), 0.0)
    classes = jnp.concatenate([jnp.take_along_axis(log_q, ids, axis=1), rest[:, None]], axis=1)
    target = jnp.concatenate([values, jnp.where(used, tail, -1e30)[:, None]], axis=1).astype(jnp.float32)
    return divergence(target, classes)


def topk_scattered(student, values, ids, tail):
    """Cross-entropy less entropy; the k words are overwritten before the others are added up."""
    student, values, tail = wide(student, values, tail)
    rows = jnp.arange(len(ids))[:, None]
    whole = jax.scipy.special.logsumexp(student, axis=1)
    left = jax.nn.logsumexp(student.at[rows, ids].set(-1e9), axis=1) - whole
    p, finite = jnp.exp(values), jnp.maximum(tail, -1e6)
    inside = (p * values).sum(1) - (p * (student[rows, ids] - whole[:, None])).sum(1)
    return inside + jnp.exp(finite) * (finite - left)


def topk_with(
    log=log_softmax,
    inside=lambda values, chosen: divergence(values, chosen),
    rest=log_rest,
    outside=lambda tail, rest: jnp.where(tail > -jnp.inf, jnp.exp(tail) * (tail - rest), 0.0),
):
    def answer(student, values, ids, tail):
        student, values, tail = wide(student, values, tail)
        log_q = log(student)
        return inside(values, jnp.take_along_axis(log_q, ids, axis=1)) + outside(tail, rest(log_q, ids))

    return answer


def no_tail(tail, rest):
    return 0.0


def topk_spread(student, values, ids, tail):
    words = student.shape[1]
    even = jnp.broadcast_to((tail - jnp.log(words - ids.shape[1] + 0.0))[:, None], student.shape)
    log_p = even.at[jnp.arange(len(ids))[:, None], ids].set(values)
    return divergence(log_p, log_softmax(student))


def topk_reversed(student, values, ids, tail):
    log_q = log_softmax(student)
    return divergence(jnp.take_along_axis(log_q, ids, axis=1), values) + (
        jnp.exp(log_rest(log_q, ids)) * (log_rest(log_q, ids) - tail)
    )


def one_minus(log_q, ids):
    return 1 - jnp.exp(jnp.take_along_axis(log_q, ids, axis=1)).sum(1)


def others_summed(log_q, ids):
    return jnp.log(jnp.where(listed(log_q.shape[1], ids), 0.0, jnp.exp(log_q)).sum(1))


def ratio_in_the_logarithm(tail, rest):
    return jnp.where(tail > -jnp.inf, jnp.exp(tail) * jnp.log(jnp.exp(tail) / jnp.exp(rest)), 0.0)


TOPK_RIGHT = [topk_joined, topk_scattered]
TOPK_WRONG = [
    (topk_with(outside=no_tail), "tail ignored"),
    (topk_with(inside=lambda v, c: divergence(log_softmax(v), log_softmax(c)), outside=no_tail), "both renormalised"),
    (topk_with(inside=lambda v, c: divergence(v, log_softmax(c)), outside=no_tail), "student renormalised"),
    (topk_with(inside=lambda v, c: divergence(v, log_softmax(c))), "student renormalised"),
    (topk_with(inside=lambda v, c: divergence(log_softmax(v), c), outside=no_tail), "teacher renormalised"),
    (topk_spread, "tail spread evenly"),
    (topk_with(inside=lambda v, c: (v * (v - c)).sum(1)), "log-probabilities for probabilities"),
    (topk_with(inside=lambda v, c: (v * (v - c)).sum(1), outside=lambda t, r: t * (t - r)),
     "log-probabilities for probabilities"),
    (topk_with(inside=lambda v, c: (v * (jnp.log(v) - c)).sum(1)), "log-probabilities for probabilities"),
    (lambda s, v, ids, t: topk_joined(s, v, jnp.broadcast_to(jnp.arange(v.shape[1]), v.shape), t), "ids ignored"),
    (topk_with(log=lambda z: z), "logits for log-probabilities"),
    (topk_reversed, "KL the other way round"),
    (topk_with(outside=lambda tail, rest: jnp.exp(tail) * (tail - rest)), "NaN where no mass is left"),
    (topk_with(rest=lambda q, ids: jnp.log(one_minus(q, ids))), "tail underflows"),
    (topk_with(rest=lambda q, ids: jnp.log(jnp.maximum(one_minus(q, ids), 1e-8))), "tail underflows"),
    (topk_with(log=log_of(jax.nn.softmax)), "logarithm of a probability"),
    (topk_with(log=log_of(naive_softmax)), "logarithm of a probability"),
    (topk_with(rest=others_summed), "tail underflows"),
    (topk_with(log=log_of(jax.nn.softmax), rest=others_summed), "logarithm of a probability"),
    (topk_with(rest=lambda q, ids: jnp.log(jnp.exp(others_summed(q, ids)) + 1e-8)), "tail underflows"),
    (topk_with(log=above(1e-8)), "an epsilon in the logarithm"),
    (topk_with(log=above(1e-10), rest=others_summed), "an epsilon in the logarithm"),
    (topk_with(outside=ratio_in_the_logarithm), "NaN gradient where no mass is left"),
    (lambda *args: stop(topk_joined(*args)), "aspect:gradient zero"),
    (topk_with(rest=lambda q, ids: stop(log_rest(q, ids))), "aspect:gradient"),
    (lambda s, v, ids, t: topk_joined(s, v, ids, t).astype(s.dtype), "aspect:dtype"),
    (lambda *args: topk_joined(*args).mean(), "aspect:shape"),
    (lambda s, v, ids, t: topk_joined(s, v, np.asarray(ids), t), "aspect:jit"),
    (lambda *args: (topk_joined(*args), args[3]), "aspect:structure"),
]  # fmt: skip

# On policy.


def window(tokens, prompts, written, first=-1, last=-1):
    place = jnp.arange(tokens.shape[1])[None]
    return (place >= prompts[:, None] + first) & (place < (prompts + written)[:, None] + last)


def on_policy_where(student, teacher, tokens, prompt_lengths, written_lengths):
    log_q, log_p = log_softmax(student.astype(jnp.float32)), stop(log_softmax(teacher.astype(jnp.float32)))
    counted = window(tokens, prompt_lengths, written_lengths)
    terms = jnp.where(counted, divergence(log_q, log_p), 0.0)
    return terms.sum() / jnp.maximum(counted.sum(), 1)


def on_policy_shifted(student, teacher, tokens, prompt_lengths, written_lengths):
    """Logits and targets laid side by side, the loss with optax, the mean by weights."""
    student, teacher = wide(student[:, :-1], teacher[:, :-1])
    place = 1 + jnp.arange(tokens.shape[1] - 1)  # of the target
    end = prompt_lengths + written_lengths
    mine = jnp.logical_and(prompt_lengths[:, None] <= place, place < end[:, None]).astype(jnp.float32)
    terms = optax.losses.kl_divergence_with_log_targets(log_softmax(stop(teacher)), log_softmax(student))
    return jnp.vdot(terms, mine) / (mine.sum() + (mine.sum() == 0))


def on_policy_with(
    term=lambda q, p, tokens: divergence(q, p),
    at=window,
    mean=lambda terms, counted: jnp.where(counted, terms, 0.0).sum() / jnp.maximum(counted.sum(), 1),
    log=log_softmax,
    teacher=stop,
):
    def answer(student, t, tokens, prompt_lengths, written_lengths):
        student, t = wide(student, t)
        return mean(
            term(log(student), log(teacher(t)), tokens),
            jnp.broadcast_to(at(tokens, prompt_lengths, written_lengths), tokens.shape),
        )

    return answer


def shifted(first, last):
    return on_policy_with(at=lambda tokens, n, m: window(tokens, n, m, first, last))


def sample(q, p, tokens):
    ratio = jnp.take_along_axis((q - p)[:, :-1], tokens[:, 1:, None], axis=2)[:, :, 0]
    return jnp.pad(ratio, ((0, 0), (0, 1)))


def places(tokens):
    return jnp.arange(tokens.shape[1])[None]


def rows(terms, counted):
    return (jnp.where(counted, terms, 0.0).sum(1) / jnp.maximum(counted.sum(1), 1)).mean()


def total(terms, counted):
    return jnp.where(counted, terms, 0.0).sum()


ON_POLICY_RIGHT = [on_policy_where, on_policy_shifted]
ON_POLICY_WRONG = [
    (on_policy_with(lambda q, p, tokens: divergence(p, q)), "forward KL"),
    (on_policy_with(sample), "one sample for the whole vocabulary"),
    (shifted(0, 0), "position of the token"),
    (shifted(-1, 0), "one position too many or too few"),
    (shifted(0, -1), "one position too many or too few"),
    (shifted(-1, -2), "one position too many or too few"),
    (on_policy_with(at=lambda tokens, n, m: places(tokens) < (n + m)[:, None] - 1), "prompt counted"),
    (on_policy_with(at=lambda tokens, n, m: places(tokens) >= n[:, None] - 1), "padding counted"),
    (on_policy_with(at=lambda tokens, n, m: (places(tokens) >= n[:, None] - 1) & (places(tokens) < 5)),
     "padding counted"),
    (on_policy_with(at=lambda tokens, n, m: places(tokens) >= 0), "everything counted"),
    (on_policy_with(at=lambda tokens, n, m: places(tokens) < tokens.shape[1] - 1), "everything counted"),
    (on_policy_with(mean=lambda terms, counted: (terms * counted).mean()), "divided by all positions"),
    (on_policy_with(mean=lambda terms, counted: (terms * counted)[:, :-1].mean()), "divided by all positions"),
    (on_policy_with(mean=total), "sum for mean"),
    (on_policy_with(mean=rows), "mean of the rows' means"),
    (on_policy_with(mean=lambda terms, counted: total(terms, counted) / counted.sum()),
     "0/0 where nothing was written"),
    (on_policy_with(log=log_of(jax.nn.softmax)), "logarithm of a probability"),
    (on_policy_with(log=log_of(naive_softmax)), "logarithm of a probability"),
    (on_policy_with(lambda q, p, tokens: jax.scipy.special.rel_entr(q, p).sum(-1), log=jax.nn.softmax),
     "logarithm of a probability"),
    (on_policy_with(log=above(1e-8)), "an epsilon in the logarithm"),
    (on_policy_with(teacher=lambda t: t), "the teacher learns"),
    (on_policy_with(lambda q, p, tokens: divergence(stop(q), p)), "no gradient for the student"),
    (on_policy_with(lambda q, p, tokens: (stop(jnp.exp(q)) * (q - p)).sum(-1)), "no gradient for the student"),
    (on_policy_with(lambda q, p, tokens: (stop(jnp.exp(q)) * (q - p)).sum(-1), teacher=lambda t: t),
     "no gradient for the student"),
    (on_policy_with(lambda q, p, tokens: 2 * divergence(q, p) - stop(divergence(q, p))), "aspect:gradient"),
    (lambda s, *rest: on_policy_where(s, *rest).astype(s.dtype), "aspect:dtype"),
    (lambda *args: on_policy_where(*args)[None], "aspect:shape"),
    (lambda s, t, y, n, m: on_policy_where(s[window(y, n, m)], t, y, n, m), "aspect:error"),
    (lambda s, t, y, n, m: divergence(log_softmax(s[window(y, n, m)]), log_softmax(t[window(y, n, m)])).mean(),
     "aspect:jit"),
]  # fmt: skip

RIGHT = {
    "distillation.kd": KD_RIGHT,
    "distillation.topk": TOPK_RIGHT,
    "distillation.on_policy": ON_POLICY_RIGHT,
}
WRONG = {
    "distillation.kd": KD_WRONG,
    "distillation.topk": TOPK_WRONG,
    "distillation.on_policy": ON_POLICY_WRONG,
}
