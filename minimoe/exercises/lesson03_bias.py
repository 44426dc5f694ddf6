"""Lesson 03, third exercise: the controller that balances without a loss.

Axes: E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from minimoe.exercises.record import Arguments, Case, Exercise, Mistake, Output


def bias_update_oracle(bias: Float[np.ndarray, "E"], load: Float[np.ndarray, "E"], rate: int | float) -> Any:
    """Expert by expert: up if starved, down if overloaded; then everything so that the mean is 0."""
    even = load.sum() / len(load)
    moved = np.array([b + rate * ((c < even) * 1.0 - (c > even) * 1.0) for b, c in zip(bias, load, strict=True)])
    return moved - moved.sum() / len(moved)


def controller(step: Callable[..., Any], finish: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A mistaken controller: ``step(error, load)`` times the rate, and another last step."""

    def outputs(bias: np.ndarray, load: np.ndarray, rate: int | float) -> np.ndarray:
        load = load.astype(np.float64)
        moved = bias.astype(np.float64) + rate * step(load.mean() - load, load)
        return finish(moved) if finish else moved - moved.mean()

    return outputs


def bias_arguments(seed: int, num_experts: int, rate: float, *, size: float = 0.01, offset: float = 0.0) -> Arguments:
    """A bias of the given size, and counts none of which is the mean."""
    rng = np.random.default_rng(seed)
    bias = size * rng.normal(size=num_experts) + offset
    load = rng.integers(1, 60, num_experts).astype(np.float32)
    load[load == load.mean()] += 3
    return bias.astype(np.float32), load, rate


def near_mean_arguments() -> Arguments:
    """All but one expert a sixteenth below the mean, which float32 holds exactly; that is 1e-6 of their load."""
    bias = 0.01 * np.random.default_rng(323).normal(size=32)
    load = np.full(32, 65536, np.float32)
    load[3] += 2
    return bias.astype(np.float32), load, 0.01


BIAS_UPDATE = Exercise(
    id="balance.bias_update",
    lesson=3,
    title="One step of loss-free balancing",
    signature="bias_update(bias, load, rate)",
    task=(
        "The controller of loss-free balancing (arXiv 2408.15664, algorithm 1): after every training step, the selection "
        "bias of an expert with *more* than the mean load goes down by `rate`, of one with *less* up by `rate`, of one "
        "with exactly the mean load not at all. Then shift all biases alike, so that their mean is 0: no choice changes, "
        "and the bias cannot drift.\n\n"
        "`bias [E]` float32; `load [E]` float32 counts; `rate` a Python float. Returns the new bias `[E]`, float32. The "
        "arguments are not to be changed."
    ),
    difficulty=1,
    minutes=10,
    points=5,
    hints=(
        "What must happen to an expert that everybody chooses: should its score rise or fall? Write that down as a sign "
        "first.",
        "The step is always rate, up or down, however uneven the load is. There is a NumPy function that turns a number "
        "into -1, 0 or 1.",
        "Two lines: first move every bias by rate times the sign of (mean load - its load), which is 0 for an expert at "
        "the mean; then subtract something that makes the mean 0.",
    ),
    outputs=(Output("bias", "float32"),),
    oracle=bias_update_oracle,
    cases=(
        Case("first shape", lambda: bias_arguments(321, 4, 0.001)),
        Case("second shape", lambda: bias_arguments(322, 7, 0.02, offset=0.3)),
        Case(
            "an expert at the mean",
            lambda: (np.array([0.01, -0.02, 0.0, 0.01], np.float32), np.array([9, 1, 5, 5], np.float32), 0.01),
        ),
        Case(
            "a mean that is no whole number",
            lambda: (np.array([0.01, -0.02, 0.0, 0.01], np.float32), np.array([2, 3, 1, 3], np.float32), 0.01),
        ),
        Case("loads close to the mean", near_mean_arguments),
        Case("a single expert", lambda: (np.array([0.25], np.float32), np.array([7], np.float32), 0.01)),
        Case("balanced load", lambda: (np.array([0.5, -0.5, 0.0], np.float32), np.full(3, 8, np.float32), 0.1)),
        Case(
            "extreme inputs",
            lambda: (np.array([3.0, 0.0, -3.0, 0.0], np.float32), np.array([4e6, 0, 0, 0], np.float32), 0.5),
        ),
    ),
    mistakes=(
        Mistake(
            "wrong sign",
            "raises the bias of overloaded experts, so that the rich get richer: the router collapses.",
            controller(lambda error, load: -np.sign(error)),
        ),
        Mistake(
            "wrong sign, not centred",
            "raises the bias of overloaded experts, and leaves out the shift to mean 0.",
            controller(lambda error, load: -np.sign(error), finish=lambda moved: moved),
        ),
        Mistake(
            "not centred",
            "leaves out the shift to mean 0. Steps up and down need not cancel, so the bias drifts away.",
            controller(lambda error, load: np.sign(error), finish=lambda moved: moved),
        ),
        Mistake(
            "proportional step",
            "moves by the size of the imbalance. Counts are large, affinities below about 1: one step would throw an "
            "expert out. Only the direction is used.",
            controller(lambda error, load: error),
        ),
        Mistake(
            "step proportional to the relative imbalance",
            "moves by the imbalance over the mean load. The paper tried steps that grow with the imbalance "
            "and found no gain in quality; here only the direction is used.",
            controller(lambda error, load: error / load.mean()),
        ),
        Mistake(
            "an expert at the mean is moved",
            "gives an expert with exactly the mean load a step down. It is where it should be: its step is 0.",
            controller(lambda error, load: np.where(error > 0, 1.0, -1.0)),
        ),
        Mistake(
            "an expert at the mean is moved up",
            "gives an expert with exactly the mean load a step up. It is where it should be: its step is 0.",
            controller(lambda error, load: np.where(error >= 0, 1.0, -1.0)),
        ),
        Mistake(
            "an expert near the mean is not moved",
            "takes a load that is close to the mean for the mean. Among many experts a load can be off by less than a "
            "tenth of a token; only one with *exactly* the mean stays where it is.",
            controller(lambda error, load: np.where(np.abs(error) < 0.1, 0.0, np.sign(error))),
        ),
        Mistake(
            "divided by the largest bias",
            "rescales the bias. Dividing changes who is chosen; subtracting the same number from all does not.",
            controller(lambda error, load: np.sign(error), finish=lambda moved: moved / np.abs(moved).max()),
        ),
        Mistake(
            "compared with the median",
            "takes the median for the mean load. The mean is what an even distribution would give each expert.",
            controller(lambda error, load: np.sign(np.median(load) - load)),
        ),
    ),
    jit=False,
)
