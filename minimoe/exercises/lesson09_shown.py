"""Lesson 09, first exercise: whether paired seeds show an effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from minimoe.exercises.record import Case, Exercise, Mistake, Output

Scores = Float[np.ndarray, " S"]
Three = tuple[Any, Any, Any]  # mean, spread, judgement


def three(mean: Any, spread: Any, shown: Any) -> Three:
    return np.float64(mean), np.float64(spread), np.int32(shown)


def decide(mean: float, spread: float) -> int:
    return 1 if mean > spread else -1 if mean < -spread else 0


def shown_oracle(ours: Scores, others: Scores) -> Three:
    """Pair by pair."""
    gaps = [float(a) - float(b) for a, b in zip(ours, others, strict=True)]
    mean, spread = sum(gaps) / len(gaps), max(gaps) - min(gaps)
    return three(mean, spread, decide(mean, spread))


def judging(
    spread: Callable[[Scores, Scores], Any] = lambda a, b: np.ptp(a - b),
    mean: Callable[[Scores, Scores], Any] = lambda a, b: (a - b).mean(),
    rule: Callable[[float, float, Scores], int] = lambda mean, spread, gaps: decide(mean, spread),
) -> Callable[..., Three]:
    """A mistaken judgement: another spread, another mean, another rule."""

    def outputs(ours: Scores, others: Scores) -> Three:
        a, b = ours.astype(np.float64), others.astype(np.float64)
        found, wide = float(mean(a, b)), float(spread(a, b))
        return three(found, wide, rule(found, wide, a - b))

    return outputs


def scores(*values: int | float) -> np.ndarray:
    return np.array(values, np.float32)


HAIR = 2.0**-18  # 4e-6; float32 holds the scores of the two cases that use it without an error


SHOWN = Exercise(
    id="ledger.shown",
    lesson=9,
    title="Is the effect shown?",
    signature="shown(ours, others)",
    task=(
        "Two ways of training were run with the same seeds. `ours` and `others` are their scores `[S]` float32, "
        "seed by seed; more is better. A seed fixes the data and much of the luck, so compare *within* pairs. "
        "Return three values: the mean of the differences `ours - others` (float32 scalar); "
        "their spread, the largest difference less the smallest (float32 scalar); and the judgement, an int32 scalar: "
        "1 if the mean is above the spread, -1 if it is below minus the spread, else 0: nothing is shown."
    ),
    difficulty=2,
    minutes=15,
    points=5,
    hints=(
        "Write down the three differences of ours 5, 9, 7 and others 4, 8, 6. "
        "What is their spread? What would the spread of `ours` alone have been?",
        "Everything is a function of the differences alone. The scores themselves are not needed again.",
        "`jnp.where` twice, or a sum of two comparisons: one for the good side, one, with a minus, for the bad side.",
    ),
    outputs=(Output("mean", "float32"), Output("spread", "float32"), Output("shown", "int32")),
    oracle=shown_oracle,
    cases=(
        Case("a clear gain, seeds that differ much", lambda: (scores(30, 51, 61), scores(18, 42, 51))),
        Case("a gain within the spread", lambda: (scores(1.0, 3.0, 2.0), scores(0.5, 1.0, 2.5003))),
        Case("a clear loss", lambda: (scores(1.0, 5.0, 3.0), scores(4.0, 7.5, 6.25))),
        Case("all pairs agree, but not on how much", lambda: (scores(2.0, 6.0, 3.0), scores(1.0, 1.0, 2.5))),
        Case("mean and spread are equal", lambda: (scores(3.0, 4.0, 6.0, 5.0), scores(2.0, 1.0, 4.0, 3.0)), exact=True),
        Case("a gain just above the spread", lambda: (scores(2.5 + HAIR, 2.5), scores(2.0, 1.0))),
        Case("a loss just below minus the spread", lambda: (scores(2.0, 1.0), scores(2.5 + HAIR, 2.5))),
        Case("no difference at all", lambda: (scores(0.5, 0.25, 4.0), scores(0.5, 0.25, 4.0)), exact=True),
        Case("one seed", lambda: (scores(7.5), scores(7.0))),
        Case("the losses of other pairs", lambda: (scores(9.0, 1.0, 5.0), scores(1.0, 9.0, 5.5))),
    ),
    mistakes=(
        Mistake(
            "the spread of the scores",
            "measures how far the scores of one way lie apart. Much of that is the seed, and both ways share it: "
            "what counts is how far the *differences* lie apart.",
            judging(spread=lambda a, b: np.ptp(a)),
        ),
        Mistake(
            "both spreads together",
            "takes the larger spread of the two ways. The pairs share their seeds: look at the differences.",
            judging(spread=lambda a, b: max(np.ptp(a), np.ptp(b))),
        ),
        Mistake(
            "sorted first",
            "sorts the scores before subtracting. Then best meets best, whatever their seeds: the pairs are lost.",
            judging(spread=lambda a, b: np.ptp(np.sort(a) - np.sort(b))),
        ),
        Mistake(
            "standard deviation",
            "uses the standard deviation. The rule here is the range: largest less smallest.",
            judging(spread=lambda a, b: (a - b).std()),
        ),
        Mistake(
            "the other way round",
            "subtracts ours from the others: a gain becomes a loss.",
            judging(mean=lambda a, b: (b - a).mean()),
        ),
        Mistake(
            "size without a sign",
            "calls a clear loss a gain: it looks at the size of the mean and not at its sign.",
            judging(rule=lambda mean, spread, gaps: int(abs(mean) > spread)),
        ),
        Mistake(
            "losses never shown",
            "finds gains only. A way that is clearly worse is a result too.",
            judging(rule=lambda mean, spread, gaps: int(mean > spread)),
        ),
        Mistake(
            "equal is enough",
            "takes a mean that equals the spread for shown. It must be larger: two equal ways would else differ.",
            judging(rule=lambda mean, spread, gaps: 1 if mean >= spread else -1 if mean <= -spread else 0),
        ),
        Mistake(
            "a margin on top",
            "asks the mean to exceed the spread by some margin. The rule has none: a mean above the spread, by however "
            "little, is shown.",
            judging(rule=lambda mean, spread, gaps: int(np.sign(mean)) if abs(mean) > spread + 1e-3 else 0),
        ),
        Mistake(
            "a vote of the pairs",
            "asks only whether all pairs agree on the sign. The rule asks more: the mean must exceed the spread.",
            judging(
                rule=lambda mean, spread, gaps: int(np.sign(gaps[0])) if abs(np.sign(gaps).sum()) == len(gaps) else 0
            ),
        ),
        Mistake(
            "the sign of the mean",
            "forgets the spread: every mean that is not zero is called a result.",
            judging(rule=lambda mean, spread, gaps: int(np.sign(mean))),
        ),
    ),
)
