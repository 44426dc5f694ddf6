"""Lesson 02, first exercise: the best experts under a selection bias, and their weights without it.

Axes: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from minimoe.exercises.numeric import numerical_gradient
from minimoe.exercises.record import Arguments, Arrays, Case, Exercise, Mistake, Output


def ranked(scores: np.ndarray, top_k: int, *, best_first: bool = True, ties_up: bool = False) -> np.ndarray:
    """Ids of the ``top_k`` largest (or smallest) of a row, ties to the lower (or higher) id."""
    sign, tie = (-1 if best_first else 1), (-1 if ties_up else 1)
    order = sorted(range(len(scores)), key=lambda e: (sign * float(scores[e]), tie * e))
    return np.array(order[:top_k], np.int32)


def topk_oracle(
    affinities: Float[np.ndarray, "T E"], bias: Float[np.ndarray, "E"], k: int
) -> tuple[Int[np.ndarray, "T K"], Float[np.ndarray, "T K"]]:
    """Token by token: order by biased score, weigh by the affinity itself."""
    experts, weights = [], []
    for row in affinities:
        chosen = ranked(row + bias, k)
        experts.append(chosen)
        weights.append(row[chosen] / sum(row[chosen]))
    return np.array(experts), np.array(weights)


def routed(
    choose: Callable[..., np.ndarray] | None = None, weigh: Callable[..., np.ndarray] | None = None
) -> Callable[..., Any]:
    """A mistaken router: another choice ``(row, bias, k)`` or other weights ``(row, bias, chosen)``."""

    def outputs(affinities: np.ndarray, bias: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        experts, weights = [], []
        for row in affinities.astype(np.float64):
            chosen = choose(row, bias, k) if choose else topk_oracle(row[None], bias, k)[0][0]
            experts.append(chosen)
            weights.append(weigh(row, bias, chosen) if weigh else row[chosen] / row[chosen].sum())
        return np.array(experts), np.array(weights)

    return outputs


def softmax(row: np.ndarray) -> np.ndarray:
    raised = np.exp(row - row.max())
    return raised / raised.sum()


def frozen_divisor(arguments: Arguments, expected: Arrays) -> Arrays:
    """Gradients of weights whose divisor counts as a constant."""
    affinities, bias, k = arguments
    experts, _ = topk_oracle(affinities.astype(np.float64), bias, k)
    divisor = np.take_along_axis(affinities, experts, 1).sum(1, keepdims=True)
    return numerical_gradient(lambda a: np.take_along_axis(a, experts, 1) / divisor, (affinities,), (0,))


def router_arguments(seed: int, tokens: int, num_experts: int, k: int) -> Arguments:
    """Sigmoid-like affinities and a bias large enough to change choices."""
    rng = np.random.default_rng(seed)
    affinities = rng.uniform(0.05, 0.95, (tokens, num_experts)).astype(np.float32)
    return affinities, rng.uniform(-0.4, 0.4, num_experts).astype(np.float32), k


def tied_arguments() -> Arguments:
    """Equal scores, exactly representable; in the second row they are equal only after the bias."""
    affinities = np.full((4, 6), 0.25, np.float32)
    affinities[0, 1:4] = 0.5
    affinities[1, :2] = 0.5, 0.75
    return affinities, np.array([0.25, 0.0, 0.5, 0.0, 0.0, 0.0], np.float32), 2


def small_and_large_arguments() -> Arguments:
    """Affinities near 1e-12 and near 100, as sqrt-softplus gives them for logits far out."""
    affinities, bias, k = router_arguments(203, 4, 6, 2)
    return affinities * np.array([[1e-12], [1e2], [1e-12], [1.0]], np.float32), 0 * bias, k


def negative_score_arguments() -> Arguments:
    affinities, bias, k = router_arguments(204, 4, 6, 2)
    return affinities, bias - np.float32(8), k


def far_below_zero_arguments() -> Arguments:
    """Scores near -1e6, in eighths: float32 holds them without an error, so its choice is that of float64."""
    rng = np.random.default_rng(207)
    affinities = rng.integers(1, 25, (4, 6)) / 8
    return affinities.astype(np.float32), (rng.integers(0, 9, 6) / 8 - 1e6).astype(np.float32), 3


TOPK = Exercise(
    id="routing.topk",
    lesson=2,
    title="Top-k with a selection bias",
    signature="topk(affinities, bias, k)",
    task=(
        "Choose each token's K experts and their combine weights, as DeepSeek-V3 does (arXiv 2412.19437, eq. 13 to 16): "
        "the bias helps to *choose*, the weights come from the affinities alone, divided by the sum of the chosen ones.\n\n"
        "`affinities [T, E]` float32, positive, of any size; `bias [E]` float32, of any sign; `k` a Python int. Returns "
        "`(experts, weights)`: `experts [T, K]` int32, best score first, ties to the lower id; `weights [T, K]` float32, "
        "rows summing to 1, in the order of `experts`."
    ),
    difficulty=2,
    minutes=15,
    points=10,
    hints=(
        "There are two quantities and they must not be mixed up: the score, which only picks, and the affinity, which "
        "weighs. Which of the two does a gradient have to reach?",
        "jax.lax.top_k works on the last axis, returns the largest first and gives ties to the lower index. It returns "
        "values too: think about whether you want them.",
        "Once you have the ids, jnp.take_along_axis fetches the affinities that belong to them. Divide by their sum over "
        "the last axis with keepdims=True; affinities may be tiny, so anything added to that sum must be far tinier.",
    ),
    outputs=(Output("experts", "int32"), Output("weights", "float32")),
    oracle=topk_oracle,
    cases=(
        Case("first shape", lambda: router_arguments(201, 4, 6, 2)),
        Case("equal scores", tied_arguments),
        Case("extreme inputs", small_and_large_arguments),
        Case("all scores negative", negative_score_arguments, gradient=True),
        Case("other sizes", lambda: router_arguments(202, 7, 5, 3), gradient=True),
        Case("one expert for one token", lambda: router_arguments(206, 1, 5, 1)),
        Case("every expert chosen", lambda: router_arguments(208, 4, 6, 6)),
        Case("biases far below 0", far_below_zero_arguments),
    ),
    mistakes=(
        Mistake(
            "bias in the weights",
            "the right experts, but weighted by affinity plus bias. The bias is a controller that balances load; if it "
            "leaks into the weights it changes what the layer computes.",
            routed(weigh=lambda row, bias, chosen: (row + bias)[chosen] / (row + bias)[chosen].sum()),
        ),
        Mistake(
            "unnormalised bias in the weights",
            "the weights are the biased scores, and not divided by their sum either.",
            routed(weigh=lambda row, bias, chosen: (row + bias)[chosen]),
        ),
        Mistake(
            "bottom-k",
            "picks the experts that fit the token least. argsort sorts upwards.",
            routed(choose=lambda row, bias, k: ranked(row + bias, k, best_first=False)),
        ),
        Mistake(
            "bias ignored",
            "chooses by affinity alone, so nothing could balance the load: the bias belongs to the choice.",
            routed(choose=lambda row, bias, k: ranked(row, k)),
        ),
        Mistake(
            "not normalised",
            "the weights are the chosen affinities as they are. They do not sum to 1, so tokens with small affinities "
            "would get a small output.",
            routed(weigh=lambda row, bias, chosen: row[chosen]),
        ),
        Mistake(
            "normalised over all experts",
            "divides by the sum over all experts. The weights of the chosen ones then sum to less than 1.",
            routed(weigh=lambda row, bias, chosen: row[chosen] / row.sum()),
        ),
        Mistake(
            "softmax of the affinities",
            "applies softmax to the chosen affinities. They are no logits: divide by their sum. A softmax of numbers "
            "between 0 and 1 is nearly uniform.",
            routed(weigh=lambda row, bias, chosen: softmax(row[chosen])),
        ),
        Mistake(
            "equal weights",
            "every chosen expert counts the same, and the router gets no gradient.",
            routed(weigh=lambda row, bias, chosen: np.full(len(chosen), 1 / len(chosen))),
        ),
        Mistake(
            "ties to the higher id",
            "among equal scores takes the higher id. A sorted and then reversed row does that; then two "
            "implementations route the same token differently.",
            routed(choose=lambda row, bias, k: ranked(row + bias, k, ties_up=True)),
        ),
        Mistake(
            "ordered by id",
            "the right experts and weights, but ordered by id instead of best first.",
            routed(choose=lambda row, bias, k: np.sort(ranked(row + bias, k))),
        ),
        Mistake(
            "worst of the chosen first",
            "the right experts and weights, but the other way round: the best score comes first.",
            routed(choose=lambda row, bias, k: ranked(row + bias, k)[::-1]),
        ),
        Mistake(
            "an expert chosen twice",
            "one expert fills more than one place. What marks an expert as taken must lose against *every* score, and a "
            "bias may push scores far below 0.",
            routed(choose=lambda row, bias, k: np.repeat(ranked(row + bias, 1), k)),
        ),
        Mistake(
            "a large epsilon",
            "adds about 1e-6 to the divisor. Affinities may be smaller than that, and then the weights do not sum to 1; "
            "DeepSeek's code adds 1e-20.",
            routed(weigh=lambda row, bias, chosen: row[chosen] / (row[chosen].sum() + 1e-6)),
        ),
        Mistake(
            "divisor without gradient",
            "the values are right, but the sum of the chosen affinities is treated as a constant. Raising one weight has "
            "to lower the others.",
            gradient=frozen_divisor,
        ),
    ),
    wrt=("affinities",),
)
