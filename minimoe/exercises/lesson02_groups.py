"""Lesson 02, third exercise: the best groups of experts first, then the best experts among theirs.

Axes: T tokens, E experts, K experts per token, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from minimoe.exercises.lesson02_topk import ranked
from minimoe.exercises.record import Arguments, Case, Exercise, Mistake, Output


def group_limited_oracle(
    scores: Float[np.ndarray, "T E"], num_groups: int, top_k_groups: int, k: int
) -> Int[np.ndarray, "T K"]:
    """Token by token: rank the groups by their two best experts, then the experts of the best groups."""
    experts = []
    for row in scores:
        groups = np.array_split(np.arange(len(row)), num_groups)
        strength = np.array([sum(sorted(row[group])[-2:]) for group in groups])
        members = np.concatenate([groups[g] for g in np.sort(ranked(strength, top_k_groups))])
        experts.append(members[ranked(row[members], k)])
    return np.array(experts, np.int32)


def grouped(
    strength: Callable[[np.ndarray], float] = lambda group: float(np.sort(group)[-2:].sum()),
    *,
    outside: float = -np.inf,
    strided: bool = False,
    best_first: bool = True,
) -> Callable[..., Any]:
    """A mistaken choice: another score of a group, another value for the experts left out, other groups."""

    def outputs(scores: np.ndarray, num_groups: int, top_k_groups: int, k: int) -> np.ndarray:
        num_experts = scores.shape[1]
        ids = np.arange(num_experts)
        group_of = ids % num_groups if strided else ids // (num_experts // num_groups)
        experts = []
        for row in scores.astype(np.float64):
            values = np.array([strength(row[group_of == g]) for g in range(num_groups)])
            kept = ranked(values, top_k_groups, best_first=best_first)
            experts.append(ranked(np.where(np.isin(group_of, kept), row, outside), k))
        return np.array(experts)

    return outputs


def no_groups(scores: np.ndarray, num_groups: int, top_k_groups: int, k: int) -> np.ndarray:
    return np.array([ranked(row, k) for row in scores])


def group_arguments(
    seed: int, tokens: int, num_experts: int, num_groups: int, top_k_groups: int, k: int, shift: float = 0.0
) -> Arguments:
    scores = np.random.default_rng(seed).uniform(0.05, 0.95, (tokens, num_experts)) + shift
    return scores.astype(np.float32), num_groups, top_k_groups, k


def far_below_zero_arguments() -> Arguments:
    """Scores near -1e6, whole numbers: float32 holds them and their sums without an error."""
    scores = np.random.default_rng(225).integers(0, 1000, (6, 12)) - 1e6
    return scores.astype(np.float32), 4, 2, 3


def tied_groups() -> Arguments:
    """Equal groups and equal experts: lower ids win both times, also where the better group has the higher ids."""
    scores = np.full((6, 12), 0.25, np.float32)
    scores[::2, ::2] = scores[1::2, 4:] = 0.5
    scores[5] = 0.25
    scores[5, [0, 6, 7]] = 0.5
    return scores, 4, 2, 3


GROUP_LIMITED = Exercise(
    id="routing.group_limited",
    lesson=2,
    title="Group-limited routing",
    signature="group_limited(scores, num_groups, top_k_groups, k)",
    task=(
        "DeepSeek-V3 keeps a token on few machines (arXiv 2412.19437, section 2.1.2): the E experts form G equal groups "
        "of neighbours, expert 0 to E/G-1 being the first. A group's score is the sum of its *two* best expert scores. "
        "A token keeps its `top_k_groups` best groups and chooses its K experts among theirs.\n\n"
        "`scores [T, E]` float32, biased already, so of any sign; the others Python ints, with at least two experts in a "
        "group and at least K in the groups kept. Returns `experts [T, K]` int32, best score first; ties, of groups and "
        "of experts, go to the lower id."
    ),
    difficulty=3,
    minutes=20,
    points=10,
    hints=(
        "There are two top-k in it, one after the other: first over G group scores, then over E expert scores of which "
        "some have been made impossible.",
        "Reshaping to [T, G, E/G] puts neighbours together. jax.lax.top_k on the last axis gives the two best of every "
        "group.",
        "To make an expert impossible its score must lose against *every* score, also a negative one. A mask over groups "
        "[T, G] becomes one over experts [T, E] with jnp.repeat(mask, E // G, axis=1).",
    ),
    outputs=(Output("experts", "int32"),),
    oracle=group_limited_oracle,
    cases=(
        Case("first shape", lambda: group_arguments(224, 6, 12, 4, 2, 3)),
        Case("negative scores", lambda: group_arguments(223, 6, 12, 4, 2, 3, shift=-1.0)),
        Case("equal scores", tied_groups),
        Case("extreme inputs", far_below_zero_arguments),
        Case("other sizes", lambda: group_arguments(222, 4, 16, 2, 1, 5)),
        Case("one expert for one token", lambda: group_arguments(226, 1, 12, 4, 2, 1)),
    ),
    mistakes=(
        Mistake(
            "masked with a number",
            "experts of the other groups get the score 0, or some number far below it. A bias can push the right ones "
            "below any number, and then the masked ones win: use minus infinity.",
            grouped(outside=0.0),
        ),
        Mistake(
            "group judged by its best expert",
            "scores a group by its single best expert. With K experts spread over the kept groups, a group should have "
            "more than one to offer: V3 adds up two.",
            grouped(lambda group: float(group.max())),
        ),
        Mistake(
            "group judged by all its experts",
            "scores a group by the sum or the mean of all its experts. A token uses only the best of them; the others say "
            "nothing about what the group has to offer.",
            grouped(lambda group: float(group.sum())),
        ),
        Mistake(
            "groups by stride",
            "puts experts 0, G, 2G, ... into one group. Neighbours live on the same machine: reshape to [G, E/G], not "
            "[E/G, G].",
            grouped(strided=True),
        ),
        Mistake(
            "no groups",
            "this is plain top-k: the choice is not limited to the best groups.",
            no_groups,
        ),
        Mistake(
            "worst groups kept",
            "keeps the groups with the lowest scores.",
            grouped(best_first=False),
        ),
    ),
)
