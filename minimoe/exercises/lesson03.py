"""Lesson 03, load balancing: the Switch loss for any K, the same by sequence, and the loss-free bias.

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


# By sequence.


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


# The bias.


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

EXERCISES = (SWITCH_LOSS, SEQUENCE_LOSS, BIAS_UPDATE)
