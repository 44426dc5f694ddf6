"""Answers to the exercises of lesson 08, right and wrong; see `exercise_answers`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Roofline.


def roofline_max(flops, num_bytes, peak, bandwidth):
    computing, reading = flops / peak, num_bytes / bandwidth
    seconds = jnp.maximum(computing, reading)
    return seconds, flops / seconds, reading > computing


def roofline_intensity(flops, num_bytes, peak, bandwidth):
    """By the intensity and the two roofs."""
    rate = jnp.minimum(peak, flops / num_bytes * bandwidth)
    return flops / rate, rate, flops * bandwidth < num_bytes * peak


def roofline_with(join=jnp.maximum, rate=None, waits=jnp.greater, turned=False):
    def answer(flops, num_bytes, peak, bandwidth):
        if turned:
            peak, bandwidth = bandwidth, peak
        computing, reading = flops / peak, num_bytes / bandwidth
        seconds = join(computing, reading)
        reached = flops / seconds if rate is None else rate(flops, num_bytes, peak, bandwidth)
        return seconds, reached, waits(reading, computing)

    return answer


def seen(change):
    return lambda *a: change(*roofline_max(*a))


ROOFLINE_RIGHT = [roofline_max, roofline_intensity]
ROOFLINE_WRONG = [
    (roofline_with(jnp.add), "one after the other"),
    (roofline_with(jnp.minimum), "the faster of the two"),
    (roofline_with(lambda c, r: c), "computing alone"),
    (roofline_with(lambda c, r: r), "memory alone"),
    (roofline_with(turned=True), "peak and bandwidth exchanged"),
    (roofline_with(rate=lambda f, b, p, w: jnp.full_like(f, p)), "the rate is always the peak"),
    (roofline_with(rate=lambda f, b, p, w: f / b * w), "a rate above the roof"),
    (roofline_with(rate=lambda f, b, p, w: b / jnp.maximum(f / p, b / w)), "the rate in bytes"),
    (roofline_with(waits=jnp.less), "waiting for memory, the wrong way round"),
    (roofline_with(waits=jnp.greater_equal), "waiting at the ridge point"),
    (seen(lambda s, r, w: (s, r)), "aspect:structure"),
    (seen(lambda s, r, w: (s, r, w.astype(jnp.int32))), "aspect:dtype"),
    (seen(lambda s, r, w: (s[:, None], r, w)), "aspect:shape"),
    (seen(lambda s, r, w: (1000 * s, r, w)), "aspect:values"),
    (lambda f, b, p, w: tuple(jnp.asarray(a) for a in roofline_max(np.asarray(f), np.asarray(b), p, w)), "aspect:jit"),
]  # fmt: skip

# Bytes of a step.


def step_bytes_formula(batch, layers, experts, top_k, expert, dense, cache):
    hit = experts * (1 - (1 - top_k / experts) ** batch)
    return dense + layers * hit * expert + batch * cache


def step_bytes_token_by_token(batch, layers, experts, top_k, expert, dense, cache):
    """Every token finds a share K/E of the experts that are still unread."""
    unread = float(experts)
    for _ in range(batch):
        unread -= unread * top_k / experts
    return dense + layers * (experts - unread) * expert + batch * cache


def step_bytes_with(hit=lambda b, e, k: e * (1 - (1 - k / e) ** b), dense_times=None, cache_times=None, layered=True):
    def answer(batch, layers, experts, top_k, expert, dense, cache):
        read = (layers if layered else 1) * expert * hit(batch, experts, top_k)
        return (
            read + dense * (dense_times or 1) ** (batch > 0) + cache * (batch if cache_times is None else cache_times)
        )

    return answer


def dense_again(batch, layers, experts, top_k, expert, dense, cache):
    return step_bytes_formula(batch, layers, experts, top_k, expert, dense * batch, cache)


STEP_BYTES_RIGHT = [step_bytes_formula, step_bytes_token_by_token]
STEP_BYTES_WRONG = [
    (step_bytes_with(lambda b, e, k: b * k), "no two tokens meet"),
    (step_bytes_with(lambda b, e, k: min(b * k, e)), "no two tokens meet"),
    (step_bytes_with(lambda b, e, k: e), "all experts"),
    (step_bytes_with(lambda b, e, k: k), "the experts of one token"),
    (step_bytes_with(lambda b, e, k: e * (1 - (1 - 1 / e) ** (b * k))), "a token may choose an expert twice"),
    (step_bytes_with(lambda b, e, k: e * (1 - (1 - 1 / e) ** b)), "one choice a token"),
    (step_bytes_with(lambda b, e, k: e * (1 - k / e) ** b), "the experts that nobody chose"),
    (step_bytes_with(cache_times=1), "one cache for all"),
    (dense_again, "weights read once a sequence"),
    (step_bytes_with(layered=False), "one sparse layer"),
    (lambda *a: 2 * step_bytes_formula(*a), "aspect:values"),
    (lambda *a: round(step_bytes_formula(*a)), "aspect:values"),
    (lambda *a: (step_bytes_formula(*a), 0.0), "aspect:structure"),
    (lambda *a: np.array([step_bytes_formula(*a)]), "aspect:shape"),
]  # fmt: skip

# Rows that travel.


def rows_table(experts, num_experts, devices):
    tokens = len(experts)
    needs = np.zeros((tokens, devices), bool)
    needs[np.arange(tokens)[:, None], np.asarray(experts) // (num_experts // devices)] = True
    rows = needs.reshape(devices, tokens // devices, devices).sum(1).astype(np.int32)
    np.fill_diagonal(rows, 0)
    return rows


def rows_one_hot(experts, num_experts, devices):
    to = jnp.asarray(experts) // (num_experts // devices)
    needs = jax.nn.one_hot(to, devices).max(axis=1)
    home = jax.nn.one_hot(jnp.arange(len(experts)) * devices // len(experts), devices)
    return ((home.T @ needs) * (1 - jnp.eye(devices))).astype(jnp.int32)


def rows_with(once=True, own=False, token=lambda t, n, p: t // (n // p), expert=lambda e, n, p: e // (n // p), k=None):
    def answer(experts, num_experts, devices):
        rows = np.zeros((devices, devices), np.int32)
        for t, chosen in enumerate(np.asarray(experts)[:, :k]):
            i, to = token(t, len(experts), devices), [int(expert(e, num_experts, devices)) for e in chosen]
            for j in set(to) if once else to:
                rows[i, j] += own or i != j
        return rows

    return answer


def rows_by_expert(experts, num_experts, devices):
    rows = np.zeros((devices, devices), np.int32)
    for i, block in enumerate(np.split(np.asarray(experts), devices)):
        for e in np.unique(block):
            rows[i, e // (num_experts // devices)] += 1
    np.fill_diagonal(rows, 0)
    return rows


ROWS_RIGHT = [rows_table, rows_one_hot]
ROWS_WRONG = [
    (rows_with(once=False), "one row an expert"),
    (rows_with(own=True), "rows that stay at home"),
    (rows_with(once=False, own=True), "one row an expert, also at home"),
    (lambda *a: rows_table(*a).T, "sender and receiver exchanged"),
    (rows_with(expert=lambda e, n, p: e % p), "experts dealt like cards"),
    (rows_with(token=lambda t, n, p: t % p), "tokens dealt like cards"),
    (rows_with(k=1), "the first choice alone"),
    (rows_by_expert, "one row an expert that somebody chose"),
    (lambda *a: rows_table(*a) + rows_table(*a).T, "both directions together"),
    (lambda *a: rows_table(*a).astype(np.int64), "aspect:dtype"),
    (lambda *a: rows_table(*a).sum(1, dtype=np.int32), "aspect:shape"),
    (lambda *a: rows_table(*a).tolist(), "aspect:structure"),
    (lambda *a: 2 * rows_table(*a), "aspect:values"),
]  # fmt: skip

RIGHT = {"hardware.roofline": ROOFLINE_RIGHT, "hardware.step_bytes": STEP_BYTES_RIGHT, "hardware.rows_sent": ROWS_RIGHT}
WRONG = {"hardware.roofline": ROOFLINE_WRONG, "hardware.step_bytes": STEP_BYTES_WRONG, "hardware.rows_sent": ROWS_WRONG}
