"""Lesson 09, third exercise: what a million written tokens cost."""

from __future__ import annotations

from collections.abc import Callable

from minimoe.exercises.record import Case, Exercise, Mistake, Output


def price_oracle(seconds: float, sequences: int, chips: int, per_hour: float, busy: float) -> float:
    """Hours that are paid for a million tokens, times chips, times their price."""
    tokens_per_paid_hour = 3600 / seconds * sequences * busy
    return 1e6 / tokens_per_paid_hour * chips * per_hour


def priced(change: Callable[..., float]) -> Callable[..., float]:
    """A mistaken price: the right one, changed."""

    def outputs(seconds: float, sequences: int, chips: int, per_hour: float, busy: float) -> float:
        right = price_oracle(seconds, sequences, chips, per_hour, busy)
        return right * change(seconds, sequences, chips, per_hour, busy)

    return outputs


PRICE = Exercise(
    id="ledger.price",
    lesson=9,
    title="The price of a million tokens",
    signature="price(seconds, sequences, chips, per_hour, busy)",
    task=(
        "A model writes on `chips` chips at once (one copy, spread over all of them). One step takes `seconds` and gives "
        "each of `sequences` sequences one token. A chip costs `per_hour` euros an hour, whether it works or not; it "
        "works in the share `busy` of the hours that are paid. Return the euros for a million written tokens, one float."
    ),
    difficulty=1,
    minutes=10,
    points=5,
    hints=(
        "How many tokens does the whole installation write in one hour in which it works?",
        "What is paid does not depend on what is written: chips times hours. Idle hours are paid as well.",
        "Write the units beside every number: seconds a step, tokens a step, steps an hour, euros an hour and chip.",
    ),
    outputs=(Output("euros", "float"),),
    oracle=price_oracle,
    cases=(
        Case("one chip, always busy", lambda: (0.036, 1, 1, 2.0, 1.0)),
        Case("many sequences", lambda: (0.05, 64, 1, 3.0, 1.0)),
        Case("several chips", lambda: (0.02, 32, 8, 2.0, 1.0)),
        Case("half the time idle", lambda: (0.03, 16, 4, 2.5, 0.5)),
        Case("a small share busy", lambda: (0.011, 256, 64, 1.7, 0.35)),
    ),
    mistakes=(
        Mistake(
            "idle hours for nothing",
            "leaves `busy` out: hours in which nothing is written are paid too.",
            priced(lambda s, n, c, p, b: b),
        ),
        Mistake(
            "cheaper when idle",
            "multiplies by `busy`: an installation that is idle half the time would halve the price.",
            priced(lambda s, n, c, p, b: b * b),
        ),
        Mistake(
            "one sequence",
            "counts one token a step. Every sequence gets one, and they share the step.",
            priced(lambda s, n, c, p, b: n),
        ),
        Mistake(
            "a step for each sequence",
            "multiplies by the sequences: it makes a fuller batch dearer.",
            priced(lambda s, n, c, p, b: n * n),
        ),
        Mistake(
            "one chip paid",
            "pays for one chip. The step needs all of them.",
            priced(lambda s, n, c, p, b: 1 / c),
        ),
        Mistake(
            "chips divide the step",
            "divides by the chips: the seconds given are those of a step on all chips together.",
            priced(lambda s, n, c, p, b: 1 / (c * c)),
        ),
        Mistake(
            "euros a second",
            "takes the price of an hour for the price of a second.",
            priced(lambda s, n, c, p, b: 3600),
        ),
        Mistake(
            "euros a minute",
            "takes the price of an hour for the price of a minute.",
            priced(lambda s, n, c, p, b: 60),
        ),
        Mistake(
            "one token",
            "gives the price of one token; a million is asked for.",
            priced(lambda s, n, c, p, b: 1e-6),
        ),
        Mistake(
            "a thousand tokens",
            "gives the price of a thousand tokens; a million is asked for.",
            priced(lambda s, n, c, p, b: 1e-3),
        ),
    ),
    jit=False,
)
