"""Lesson 09, second exercise: models that no other model beats in both price and quality."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from minimoe.exercises.record import Case, Exercise, Mistake, Output

Prices = Float[np.ndarray, " R"]


def frontier_oracle(costs: Prices, losses: Prices) -> Bool[np.ndarray, " R"]:
    """Model by model: is there one that is nowhere worse and somewhere better?"""
    kept = []
    for cost, loss in zip(costs, losses, strict=True):
        beaten = False
        for other, other_loss in zip(costs, losses, strict=True):
            nowhere_worse = other <= cost and other_loss <= loss
            beaten |= bool(nowhere_worse and (other < cost or other_loss < loss))
        kept.append(not beaten)
    return np.array(kept)


def beaten_by(rule: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A mistaken front: ``rule(cost, loss, other cost, other loss)`` says who is beaten by whom."""

    def outputs(costs: Prices, losses: Prices) -> np.ndarray:
        return np.asarray(~rule(costs[:, None], losses[:, None], costs[None], losses[None]).any(axis=1))

    return outputs


def running_minimum(costs: Prices, losses: Prices) -> np.ndarray:
    """By rising cost, whoever sets a new record; of two that cost the same, the one that comes first too."""
    kept, best = np.zeros(len(costs), bool), np.inf
    for i in np.argsort(costs, kind="stable"):
        if losses[i] < best:
            kept[i], best = True, losses[i]
    return kept


def numbers(*values: int | float) -> np.ndarray:
    return np.array(values, np.float32)


FRONTIER = Exercise(
    id="ledger.frontier",
    lesson=9,
    title="The models that nothing beats",
    signature="frontier(costs, losses)",
    task=(
        "Each of R models has a cost (bytes, say) and a loss (bits per byte, say); of both, less is better. `costs` and "
        "`losses` are `[R]` float32. A model is *beaten* if another one is worse in neither and better in at least one. "
        "Return which models are not beaten, `[R]` bool. "
        "Two models that are equal in both do not beat each other. The order is any."
    ),
    difficulty=3,
    minutes=20,
    points=10,
    hints=(
        "Draw four points on paper, cost to the right and loss upwards. "
        "Which region of the paper must be empty for a point to be kept?",
        "Compare all with all: `costs[:, None]` against `costs[None]` is a table `[R, R]`. You need four such tables.",
        "Beaten: (nowhere worse) and (somewhere better), for any other. "
        "A model does not beat itself, since it is not better.",
    ),
    outputs=(Output("kept", "bool"),),
    oracle=frontier_oracle,
    cases=(
        Case("one that beats all", lambda: (numbers(1, 2, 3), numbers(1, 3, 2))),
        Case("a ladder with one useless rung", lambda: (numbers(8, 4, 2, 5), numbers(1.0, 1.2, 3.0, 1.3))),
        Case("twins", lambda: (numbers(2, 2, 5, 1), numbers(1.5, 1.5, 1.0, 3.0))),
        Case("two that cost the same", lambda: (numbers(3, 3, 1, 5), numbers(2.5, 1.5, 4.0, 1.0))),
        Case("two of equal loss", lambda: (numbers(2, 6, 1, 7), numbers(1.0, 1.0, 3.0, 0.5))),
        Case("the best in the middle loses nowhere", lambda: (numbers(1, 2, 3, 4, 5), numbers(5, 1, 4, 2, 3))),
        Case("unbeaten, and best in nothing", lambda: (numbers(9, 5, 1, 5.25), numbers(1, 4, 9, 3.5))),
        Case("one model", lambda: (numbers(4), numbers(2))),
    ),
    mistakes=(
        Mistake(
            "better in both",
            "asks that the other is better in *both*. A model that costs as much and is worse is beaten too.",
            beaten_by(lambda c, v, oc, ov: (oc < c) & (ov < v)),
        ),
        Mistake(
            "better in one",
            "calls a model beaten as soon as another is better in one of the two. Then a cheap model beats every good one.",
            beaten_by(lambda c, v, oc, ov: (oc < c) | (ov < v)),
        ),
        Mistake(
            "everybody beats itself",
            "asks only that the other is nowhere worse. Each model is nowhere worse than itself, so nothing is left.",
            beaten_by(lambda c, v, oc, ov: (oc <= c) & (ov <= v)),
        ),
        Mistake(
            "more is better",
            "prefers large losses. Bits per byte count down.",
            beaten_by(lambda c, v, oc, ov: (oc <= c) & (ov >= v) & ((oc < c) | (ov > v))),
        ),
        Mistake(
            "higher cost is better",
            "prefers what costs more.",
            beaten_by(lambda c, v, oc, ov: (oc >= c) & (ov <= v) & ((oc > c) | (ov < v))),
        ),
        Mistake(
            "the ends alone",
            "keeps the cheapest and the best model only. Between them are models that nothing beats.",
            lambda costs, losses: (costs == costs.min()) | (losses == losses.min()),
        ),
        Mistake(
            "the smallest product",
            "multiplies cost and loss and keeps the smallest. That is one exchange rate of many; "
            "the front keeps what is best under some rate, and more.",
            lambda costs, losses: costs * losses == (costs * losses).min(),
        ),
        Mistake(
            "ties by place",
            "goes through the models by cost and keeps each new best loss. "
            "Of models that cost the same it may keep the worse one, and of twins only one.",
            running_minimum,
        ),
        Mistake(
            "the beaten ones",
            "returns the models that are beaten.",
            lambda costs, losses: ~frontier_oracle(costs, losses),
        ),
    ),
)
