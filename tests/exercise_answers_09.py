"""Answers to the exercises of lesson 09, right and wrong; see `exercise_answers`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Shown.


def shown_where(ours, others):
    gaps = ours - others
    mean, spread = gaps.mean(), gaps.max() - gaps.min()
    return mean, spread, jnp.where(mean > spread, 1, jnp.where(mean < -spread, -1, 0)).astype(jnp.int32)


def shown_sum(ours, others):
    gaps = jnp.sort(ours - others)
    mean, spread = jnp.average(gaps), gaps[-1] - gaps[0]
    return mean, spread, (mean > spread).astype(jnp.int32) - (mean + spread < 0).astype(jnp.int32)


def judge(mean, spread):
    return ((mean > spread) * 1 - (mean < -spread) * 1).astype(jnp.int32)


def shown_with(spread=lambda a, b: jnp.ptp(a - b), mean=lambda a, b: (a - b).mean(), rule=lambda m, s, g: judge(m, s)):
    def answer(ours, others):
        m, s = mean(ours, others), spread(ours, others)
        return m, s, jnp.asarray(rule(m, s, ours - others), jnp.int32)

    return answer


SHOWN_RIGHT = [shown_where, shown_sum]
SHOWN_WRONG = [
    (shown_with(lambda a, b: jnp.ptp(a)), "the spread of the scores"),
    (shown_with(lambda a, b: jnp.maximum(jnp.ptp(a), jnp.ptp(b))), "both spreads together"),
    (shown_with(lambda a, b: jnp.ptp(jnp.sort(a) - jnp.sort(b))), "sorted first"),
    (shown_with(lambda a, b: (a - b).std()), "standard deviation"),
    (shown_with(mean=lambda a, b: (b - a).mean()), "the other way round"),
    (shown_with(rule=lambda m, s, g: jnp.abs(m) > s), "size without a sign"),
    (shown_with(rule=lambda m, s, g: m > s), "losses never shown"),
    (shown_with(rule=lambda m, s, g: jnp.where(m >= s, 1, jnp.where(m <= -s, -1, 0))), "equal is enough"),
    (shown_with(rule=lambda m, s, g: jnp.where(jnp.abs(m) > s + 1e-3, jnp.sign(m), 0)), "a margin on top"),
    (
        shown_with(rule=lambda m, s, g: jnp.where((g > 0).all(), 1, jnp.where((g < 0).all(), -1, 0))),
        "a vote of the pairs",
    ),
    (shown_with(rule=lambda m, s, g: jnp.sign(m)), "the sign of the mean"),
    (lambda a, b: shown_where(a, b)[:2], "aspect:structure"),
    (lambda a, b: tuple(jnp.asarray(x, jnp.float32) for x in shown_where(a, b)), "aspect:dtype"),
    (lambda a, b: tuple(x[None] for x in shown_where(a, b)), "aspect:shape"),
    (lambda a, b: (shown_where(a, b)[0] * 2, *shown_where(a, b)[1:]), "aspect:values"),
    (lambda a, b: tuple(jnp.asarray(np.asarray(x)) for x in shown_where(a, b)), "aspect:jit"),
]

# Frontier.


def frontier_tables(costs, losses):
    worse = (costs[None] <= costs[:, None]) & (losses[None] <= losses[:, None])
    better = (costs[None] < costs[:, None]) | (losses[None] < losses[:, None])
    return ~(worse & better).any(axis=1)


def frontier_vmap(costs, losses):
    """A model is kept if everything as cheap is worse or its twin, and everything as good is dearer or its twin."""

    def kept(cost, loss):
        same = (costs == cost) & (losses == loss)
        return (same | (costs > cost) | (losses > loss)).all()

    return jax.vmap(kept)(costs, losses)


def frontier_with(rule):
    def answer(costs, losses):
        return ~rule(costs[:, None], losses[:, None], costs[None], losses[None]).any(axis=1)

    return answer


def frontier_scan(costs, losses):
    order = jnp.argsort(costs, stable=True)
    by_cost = losses[order]
    before = jnp.concatenate([jnp.array([jnp.inf]), jax.lax.cummin(by_cost)[:-1]])
    return jnp.zeros(len(costs), bool).at[order].set(by_cost < before)


FRONTIER_RIGHT = [frontier_tables, frontier_vmap]
FRONTIER_WRONG = [
    (frontier_with(lambda c, v, oc, ov: (oc < c) & (ov < v)), "better in both"),
    (frontier_with(lambda c, v, oc, ov: (oc < c) | (ov < v)), "better in one"),
    (frontier_with(lambda c, v, oc, ov: (oc <= c) & (ov <= v)), "everybody beats itself"),
    (lambda c, v: frontier_tables(c, -v), "more is better"),
    (lambda c, v: frontier_tables(-c, v), "higher cost is better"),
    (lambda c, v: (c == c.min()) | (v == v.min()), "the ends alone"),
    (lambda c, v: c * v == (c * v).min(), "the smallest product"),
    (frontier_scan, "ties by place"),
    (lambda c, v: ~frontier_tables(c, v), "the beaten ones"),
    (lambda c, v: frontier_tables(c, v).astype(jnp.int32), "aspect:dtype"),
    (lambda c, v: frontier_tables(c, v)[:, None], "aspect:shape"),
    (lambda c, v: jnp.asarray(np.asarray(frontier_tables(c, v))), "aspect:jit"),
    (lambda c, v: jnp.ones_like(frontier_tables(c, v)), "aspect:values"),
]

# Price.


def price_hours(seconds, sequences, chips, per_hour, busy):
    steps = 1e6 / sequences
    hours = steps * seconds / 3600 / busy
    return hours * chips * per_hour


def price_rate(seconds, sequences, chips, per_hour, busy):
    return float(np.prod([1e6, seconds, chips, per_hour])) / (3600.0 * sequences * busy)


def price_with(change):
    return lambda *a: price_hours(*a) * change(*a)


PRICE_RIGHT = [price_hours, price_rate]
PRICE_WRONG = [
    (price_with(lambda s, n, c, p, b: b), "idle hours for nothing"),
    (price_with(lambda s, n, c, p, b: b**2), "cheaper when idle"),
    (price_with(lambda s, n, c, p, b: n), "one sequence"),
    (price_with(lambda s, n, c, p, b: n**2), "a step for each sequence"),
    (price_with(lambda s, n, c, p, b: 1 / c), "one chip paid"),
    (price_with(lambda s, n, c, p, b: c**-2), "chips divide the step"),
    (price_with(lambda s, n, c, p, b: 3600), "euros a second"),
    (price_with(lambda s, n, c, p, b: 60), "euros a minute"),
    (price_with(lambda s, n, c, p, b: 1e-6), "one token"),
    (price_with(lambda s, n, c, p, b: 1e-3), "a thousand tokens"),
    (lambda *a: round(price_hours(*a)), "aspect:values"),
    (lambda *a: [price_hours(*a)], "aspect:structure"),
    (lambda *a: price_hours(*a) + 1.0, "aspect:values"),
]

RIGHT = {"ledger.shown": SHOWN_RIGHT, "ledger.frontier": FRONTIER_RIGHT, "ledger.price": PRICE_RIGHT}
WRONG = {"ledger.shown": SHOWN_WRONG, "ledger.frontier": FRONTIER_WRONG, "ledger.price": PRICE_WRONG}
