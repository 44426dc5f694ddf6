"""Lesson 03, second exercise: the same loss, of each sequence on its own.

Axes: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from minimoe.exercises.lesson03_switch import (
    affinity_arguments,
    chosen_only,
    collapsed_arguments,
    counts,
    loss,
    product,
    shares,
    switch_loss_oracle,
)
from minimoe.exercises.record import Arguments, Case, Exercise, Mistake, Output


def sequence_loss_oracle(
    probs: Float[np.ndarray, "T E"], experts: Int[np.ndarray, "T K"], segments: Int[np.ndarray, "T"], num_segments: int
) -> Any:
    """The loss of each sequence that has tokens, then their plain mean."""
    return np.mean([switch_loss_oracle(p, e) for p, e in by_sequence(probs, experts, segments, num_segments)])


def by_sequence(
    probs: np.ndarray, experts: np.ndarray, segments: np.ndarray, num_segments: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    mine = [segments == s for s in range(num_segments)]
    return [(probs[rows], experts[rows]) for rows in mine if rows.any()]


def sequences(combine: Callable[..., Any], each: Callable[..., Any] = switch_loss_oracle) -> Callable[..., Any]:
    """A mistaken loss: ``combine(losses, lengths, num_segments)``, of ``each(probs, experts)`` by sequence."""

    def outputs(probs: np.ndarray, experts: np.ndarray, segments: np.ndarray, num_segments: int) -> Any:
        parts = by_sequence(probs.astype(np.float64), experts, segments, num_segments)
        losses, lengths = np.array([each(*part) for part in parts]), np.array([len(p) for p, _ in parts])
        return np.float64(combine(losses, lengths, num_segments))

    return outputs


def mean(losses: np.ndarray, lengths: np.ndarray, num_segments: int) -> Any:
    return losses.mean()


def counted_over_the_batch(probs: np.ndarray, experts: np.ndarray, segments: np.ndarray, num_segments: int) -> Any:
    parts = by_sequence(shares(probs), experts, segments, num_segments)
    load = counts(experts, probs.shape[1])
    return np.float64(np.mean([product(load, rows.mean(0), experts) for rows, _ in parts]))


def sequence_arguments(seed: int, segments: list[int], num_segments: int, **kwargs: Any) -> Arguments:
    sizes = {"num_experts": 4, "top_k": 2} | kwargs
    probs, experts = affinity_arguments(seed, len(segments), **sizes)
    return probs, experts, np.array(segments, np.int32), num_segments


def opposite_arguments() -> Arguments:
    """Two sequences, each on experts of its own: balanced over the batch, collapsed in each sequence."""
    probs, first = np.full((8, 4), 0.03125, np.float32), np.arange(8) < 4
    probs[:4, :2] = probs[4:, 2:] = 0.46875
    experts = np.where(first[:, None], [0, 1], [2, 3]).astype(np.int32)
    return probs, experts, np.where(first, 0, 2).astype(np.int32), 3


def extreme_sequences() -> Arguments:
    """Collapsed, rows of any size, one sequence of a single token."""
    probs, experts = collapsed_arguments()
    segments = np.array([0, 0, 2, 0, 0, 0, 0, 0], np.int32)
    return np.concatenate([probs, probs[:2]]), np.concatenate([experts, experts[:2]]), segments, 3


SEQUENCE_LOSS = Exercise(
    id="balance.sequence_loss",
    lesson=3,
    title="Balance within each sequence",
    signature="sequence_loss(probs, experts, segments, num_segments)",
    task=(
        "DeepSeek-V3 adds a small balance loss for each sequence on its own (arXiv 2412.19437, eq. 17 to 20): the loss of "
        "`balance.switch_loss`, computed from the tokens of one sequence, then the **mean over sequences**, each counting "
        "the same whatever its length.\n\n"
        "`probs [T, E]` float32 affinities, rows not necessarily summing to 1; `experts [T, K]` int32; `segments [T]` "
        "int32, the sequence of each token, in 0..num_segments-1 and in any order; `num_segments` a Python int. A "
        "sequence without tokens does not count. Returns a float32 scalar, 1 when every sequence is balanced in itself."
    ),
    difficulty=4,
    minutes=25,
    points=15,
    hints=(
        "Under jax.jit a sequence's tokens cannot be cut out: their number is unknown. But sums over them can be taken, "
        "with a mask or with jax.ops.segment_sum(values, segments, num_segments).",
        "For each sequence you need three things: its length, its counts [E] and its summed normalised affinities [E]. "
        "With rows of one sequence each they are arrays [num_segments], [num_segments, E] and [num_segments, E].",
        "An empty sequence has length 0: divide by the length or 1, whichever is larger, then divide the sum of the "
        "losses by the number of sequences that have tokens. Do check with one sequence: it must equal your switch_loss.",
    ),
    outputs=(Output("loss", "float32"),),
    oracle=sequence_loss_oracle,
    cases=(
        Case("first shape", lambda: sequence_arguments(311, [0, 0, 1, 1, 1, 1, 1, 2], 3)),
        Case(
            "rows do not sum to 1",
            lambda: sequence_arguments(314, [0, 1, 1, 2, 1, 0, 1, 0], 3, normalised=False),
            gradient=True,
        ),
        Case("opposite imbalances", opposite_arguments),
        Case("an empty sequence", lambda: sequence_arguments(313, [0, 2, 2, 0, 2, 0, 0, 0], 3), gradient=True),
        Case("extreme inputs", extreme_sequences),
        Case(
            "other sizes", lambda: sequence_arguments(312, [1, 0, 1, 1, 0, 1], 2, num_experts=5, top_k=3), gradient=True
        ),
    ),
    mistakes=(
        Mistake(
            "over the whole batch",
            "ignores the sequences. Over a batch opposite imbalances cancel, and every sequence may use only a few "
            "experts without being noticed: which is exactly what this loss is to prevent.",
            lambda probs, experts, segments, num_segments: switch_loss_oracle(probs, experts),
        ),
        Mistake(
            "sum over sequences",
            "adds the sequences' losses up: the value at balance is their number, and grows with the batch.",
            sequences(lambda losses, lengths, num_segments: losses.sum()),
        ),
        Mistake(
            "weighted by length",
            "long sequences count more than short ones. Each sequence counts the same here.",
            sequences(lambda losses, lengths, num_segments: (losses * lengths).sum() / lengths.sum()),
        ),
        Mistake(
            "counts of the whole batch",
            "the affinities are averaged by sequence, but the load is counted over the whole batch. Both factors belong "
            "to one sequence.",
            counted_over_the_batch,
        ),
        Mistake(
            "empty sequences counted",
            "divides by num_segments although a sequence has no tokens; the loss is then below 1 at balance.",
            sequences(lambda losses, lengths, num_segments: losses.sum() / num_segments),
        ),
        Mistake(
            "K when balanced",
            "f sums to K within a sequence: it counts assignments but divides by tokens.",
            sequences(
                mean,
                loss(lambda load, rows, probs, experts: product(load, rows.mean(0), experts) * experts.shape[1]),
            ),
        ),
        Mistake(
            "affinities not normalised",
            "uses the affinities as they are; rows have to sum to 1 first.",
            sequences(mean, loss(lambda load, rows, probs, experts: product(load, probs.mean(0), experts))),
        ),
        Mistake(
            "probabilities of the chosen experts only",
            "P leaves out the experts that were not chosen: those are the ones whose probability should rise.",
            sequences(
                mean,
                loss(lambda load, rows, probs, experts: product(load, chosen_only(rows, experts).mean(0), experts)),
            ),
        ),
        Mistake(
            "squared counts",
            "multiplies the share of assignments with itself; counting has no gradient.",
            sequences(mean, loss(lambda load, rows, probs, experts: product(load, load / experts.size, experts))),
        ),
    ),
    wrt=("probs",),
)
