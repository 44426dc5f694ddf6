"""Lesson 03, first exercise: the load-balance loss of Switch Transformers, for any K.

Axes: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from minimoe.exercises.numeric import numerical_gradient
from minimoe.exercises.record import Arguments, Arrays, Case, Exercise, Mistake, Output


def counts(experts: np.ndarray, num_experts: int) -> np.ndarray:
    """Assignments per expert, counted one by one."""
    load = np.zeros(num_experts)
    for expert in experts.ravel():
        load[expert] += 1
    return load


def shares(probs: np.ndarray) -> np.ndarray:
    """Rows that sum to 1, in float64."""
    probs = probs.astype(np.float64)
    return probs / probs.sum(axis=1, keepdims=True)


def switch_loss_oracle(probs: Float[np.ndarray, "T E"], experts: Int[np.ndarray, "T K"]) -> Any:
    """Expert by expert: share of the assignments, relative to an even share, times mean probability."""
    tokens, num_experts = probs.shape
    load, rows = counts(experts, num_experts), shares(probs)
    total = 0.0
    for e in range(num_experts):
        even = experts.size / num_experts
        total += load[e] / even * sum(rows[t, e] for t in range(tokens)) / tokens
    return np.float64(total)


def loss(term: Callable[..., Any]) -> Callable[..., Any]:
    """A mistaken loss: ``term(load, rows, probs, experts)``, with rows normalised and load in counts."""

    def outputs(probs: np.ndarray, experts: np.ndarray, *rest: Any) -> Any:
        probs = probs.astype(np.float64)
        return np.float64(term(counts(experts, probs.shape[1]), shares(probs), probs, experts))

    return outputs


def chosen_only(rows: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """Probabilities with those of the experts that were not chosen set to 0."""
    kept = np.zeros_like(rows)
    for t, chosen in enumerate(experts):
        kept[t, chosen] = rows[t, chosen]
    return kept


def product(load: np.ndarray, mass: np.ndarray, experts: np.ndarray) -> Any:
    """``E * sum f P`` with f the share of the assignments and P given."""
    return len(load) * (load / experts.size * mass).sum()


def frozen_row_sums(arguments: Arguments, expected: Arrays) -> Arrays:
    """Gradient of the loss with the divisor of every row held constant."""
    probs, experts = arguments[0].astype(np.float64), arguments[1]
    sums = probs.sum(axis=1, keepdims=True)

    def frozen(varied: np.ndarray) -> Any:
        return product(counts(experts, varied.shape[1]), (varied / sums).mean(axis=0), experts)

    return numerical_gradient(frozen, (probs,), (0,))


def affinity_arguments(seed: int, tokens: int, num_experts: int, top_k: int, *, normalised: bool = True) -> Arguments:
    """Affinities and the experts chosen by them, unevenly."""
    rng = np.random.default_rng(seed)
    probs = rng.uniform(0.05, 0.95, (tokens, num_experts)) + np.linspace(0.6, 0.0, num_experts)
    experts = np.argsort(-probs, axis=1)[:, :top_k].astype(np.int32)
    probs = probs / probs.sum(axis=1, keepdims=True) if normalised else probs
    return probs.astype(np.float32), experts


def balanced_arguments() -> Arguments:
    """Every expert chosen three times, all affinities equal: the loss is 1."""
    experts = np.array([[0, 1], [2, 3], [1, 0], [3, 2], [0, 3], [1, 2]], np.int32)
    return np.full((6, 4), 0.25, np.float32), experts


def collapsed_arguments() -> Arguments:
    """Two of four experts take everything, and rows sum to anything between 1e-6 and 1e3: the loss is 2."""
    probs = np.zeros((6, 4), np.float32)
    probs[:, 1] = probs[:, 3] = [5e-7, 1.0, 500.0, 5e-7, 1e-3, 0.5]
    return probs, np.array([[1, 3], [3, 1]] * 3, np.int32)


SWITCH_LOSS = Exercise(
    id="balance.switch_loss",
    lesson=3,
    title="The load-balance loss, 1 when balanced",
    signature="switch_loss(probs, experts)",
    task=(
        "The loss of Switch Transformers (arXiv 2101.03961, eq. 4 to 6) for any K:\n\n"
        "$$L = E \\sum_{e=1}^{E} f_e P_e$$\n\n"
        "with $f_e$ the share of all $T K$ assignments that went to expert e, and $P_e$ the mean over tokens of its "
        "affinity, each token's affinities divided by their sum first. It is 1 when everything is even, *whatever K*.\n\n"
        "`probs [T, E]` float32 affinities over all experts, not negative, rows **not** necessarily summing to 1 (sigmoid "
        "and sqrt-softplus do not); `experts [T, K]` int32. Returns a float32 scalar. The gradient must reach `probs`; "
        "`f` is a count and carries none."
    ),
    difficulty=2,
    minutes=15,
    points=10,
    hints=(
        "Work out the balanced case by hand: what are f and P when E experts share everything evenly? The factor in front "
        "must make the result 1, for K = 1 and for K = 2.",
        "f has to sum to 1 over the experts, so it counts assignments and divides by the number of assignments, not of "
        "tokens. Comparing experts[:, :, None] with jnp.arange(E) counts without a loop.",
        "P uses all E affinities of each token, also those of experts that were not chosen: they are what the gradient "
        "can still change. Normalise rows with keepdims=True, then mean over axis 0.",
    ),
    outputs=(Output("loss", "float32"),),
    oracle=switch_loss_oracle,
    cases=(
        Case("first shape", lambda: affinity_arguments(301, 6, 4, 2)),
        Case("rows do not sum to 1", lambda: affinity_arguments(303, 6, 4, 2, normalised=False), gradient=True),
        Case("balanced", balanced_arguments),
        Case("extreme inputs", collapsed_arguments),
        Case("one expert a token, other sizes", lambda: affinity_arguments(302, 4, 6, 1), gradient=True),
    ),
    mistakes=(
        Mistake(
            "K when balanced",
            "counts assignments but divides by tokens, so f sums to K. The value at balance is then K instead of 1, and a "
            "coefficient tuned for one K is wrong for another.",
            loss(lambda load, rows, probs, experts: product(load, rows.mean(0), experts) * experts.shape[1]),
        ),
        Mistake(
            "probabilities of the chosen experts only",
            "P leaves out the experts that were not chosen. They are the ones whose probability should rise, and get no "
            "gradient this way.",
            loss(lambda load, rows, probs, experts: product(load, chosen_only(rows, experts).mean(0), experts)),
        ),
        Mistake(
            "probabilities renormalised over the chosen experts",
            "P is built from combine weights, that is, from the chosen experts alone. It needs the affinities of all "
            "experts: the others get no gradient this way.",
            loss(lambda load, rows, probs, experts: product(load, shares(chosen_only(rows, experts)).mean(0), experts)),
        ),
        Mistake(
            "squared counts",
            "multiplies the share of assignments with itself. That measures imbalance but has no gradient: counting is a "
            "step function. One of the two factors must be the mean affinity.",
            loss(lambda load, rows, probs, experts: product(load, load / experts.size, experts)),
        ),
        Mistake(
            "squared probabilities",
            "multiplies the mean affinity with itself. What must be even is the load, and f has to be counted from the "
            "experts that were used.",
            loss(lambda load, rows, probs, experts: len(load) * (rows.mean(0) ** 2).sum()),
        ),
        Mistake(
            "affinities not normalised",
            "uses the affinities as they are. Sigmoid and sqrt-softplus rows do not sum to 1, so the loss could be "
            "lowered by making all affinities small.",
            loss(lambda load, rows, probs, experts: product(load, probs.mean(0), experts)),
        ),
        Mistake(
            "first choice only",
            "counts only each token's first expert. That is the loss for K = 1; here all K assignments are work.",
            loss(
                lambda load, rows, probs, experts: product(
                    counts(experts[:, :1], len(load)), rows.mean(0), experts[:, :1]
                )
            ),
        ),
        Mistake(
            "sum instead of mean over tokens",
            "P is summed over tokens, so the loss grows with the batch.",
            loss(lambda load, rows, probs, experts: product(load, rows.sum(0), experts)),
        ),
        Mistake(
            "not multiplied by E",
            "without the factor E the value at balance is 1/E, and shrinks as experts are added.",
            loss(lambda load, rows, probs, experts: product(load, rows.mean(0), experts) / len(load)),
        ),
        Mistake(
            "row sums without gradient",
            "the values are right, but the divisor of each row is treated as a constant. Raising one affinity lowers the "
            "share of all others, and the gradient has to know.",
            gradient=frozen_row_sums,
        ),
    ),
    wrt=("probs",),
)
