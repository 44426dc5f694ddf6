"""Lesson 08, first exercise: the time of a program at best, by what it computes and what it reads.

Axes: N programs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from minimoe.exercises.record import Arguments, Case, Exercise, Mistake, Output

Answer = tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"], Bool[np.ndarray, "N"]]


def roofline_oracle(
    flops: Float[np.ndarray, "N"], num_bytes: Float[np.ndarray, "N"], peak: float, bandwidth: float
) -> Answer:
    """Program by program."""
    seconds, rate, waits = np.zeros(len(flops)), np.zeros(len(flops)), np.zeros(len(flops), bool)
    for i, (work, read) in enumerate(zip(flops, num_bytes, strict=True)):
        computing, reading = work / peak, read / bandwidth
        seconds[i] = max(computing, reading)
        rate[i] = work / seconds[i]
        waits[i] = reading > computing
    return seconds, rate, waits


def timed(
    join: Callable[[Any, Any], Any] = np.maximum,
    rate: Callable[..., Any] | None = None,
    waits: Callable[[Any, Any], Any] = np.greater,
    turned: bool = False,
) -> Callable[..., Any]:
    """A mistaken roofline: other times joined in another way, another rate, another bound."""

    def outputs(flops: Any, num_bytes: Any, peak: float, bandwidth: float) -> Any:
        work, read = np.asarray(flops, np.float64), np.asarray(num_bytes, np.float64)
        if turned:
            peak, bandwidth = bandwidth, peak
        computing, reading = work / peak, read / bandwidth
        seconds = join(computing, reading)
        reached = work / seconds if rate is None else rate(work, read, peak, bandwidth)
        return seconds, reached, waits(reading, computing)

    return outputs


def programs(seed: int, peak: float, bandwidth: float, count: int = 6) -> Arguments:
    """Intensities from a tenth to ten times the ridge point."""
    rng = np.random.default_rng(seed)
    flops = rng.uniform(1, 100, count).astype(np.float32)
    intensity = peak / bandwidth * 10 ** rng.uniform(-1, 1, count)
    return flops, (flops / intensity).astype(np.float32), peak, bandwidth


def at_the_ridge() -> Arguments:
    """One below the ridge point, one exactly on it, one above. All numbers are powers of two."""
    return np.array([8, 8, 8], np.float32), np.array([4, 2, 1], np.float32), 16.0, 4.0


ROOFLINE = Exercise(
    id="hardware.roofline",
    lesson=8,
    title="A roofline: seconds, rate, and what a program waits for",
    signature="roofline(flops, num_bytes, peak, bandwidth)",
    task=(
        "N programs run on a chip, one at a time. Program i needs `flops[i]` operations and moves `num_bytes[i]` bytes "
        "between the chip and its memory; both are `[N]` float32 and positive. The chip computes at most `peak` operations a "
        "second and moves at most `bandwidth` bytes a second, both floats. Computing and moving happen *at the same time*, "
        "and a program is done when both are. Returns three arrays: `seconds` `[N]` float32, at best; `rate` `[N]` float32, "
        "the operations a second that the program then reaches; `waits` `[N]` bool, whether it waits for memory, that is "
        "moving takes *longer* than computing."
    ),
    difficulty=1,
    minutes=10,
    points=5,
    hints=(
        "8 operations and 4 bytes, 16 operations a second and 4 bytes a second: how long does each part take alone?",
        "Two things that happen at the same time are done when the slower one is.",
        "The rate is what was done over the time that it took. It is never above `peak`, and far below it where a program "
        "waits for memory.",
    ),
    outputs=(Output("seconds", "float32"), Output("rate", "float32"), Output("waits", "bool")),
    oracle=roofline_oracle,
    cases=(
        Case("six programs", lambda: programs(811, 50.25, 4.5)),
        Case("below, at and above the ridge point", at_the_ridge, exact=True),
        Case("a chip with slow memory", lambda: programs(812, 300.0, 0.5)),
        Case("one program", lambda: programs(813, 2.25, 7.5, 1)),
    ),
    mistakes=(
        Mistake(
            "one after the other",
            "adds the two times. Computing and moving overlap, so the program takes as long as the slower of them.",
            timed(np.add),
        ),
        Mistake(
            "the faster of the two",
            "takes the shorter time. The program is not done before both parts are.",
            timed(np.minimum),
        ),
        Mistake(
            "computing alone",
            "leaves memory out: time is operations over the peak. Most programs never see the peak.",
            timed(lambda computing, reading: computing),
        ),
        Mistake(
            "memory alone",
            "leaves computing out: time is bytes over bandwidth.",
            timed(lambda computing, reading: reading),
        ),
        Mistake(
            "peak and bandwidth exchanged",
            "divides operations by bytes a second. Look at the units.",
            timed(turned=True),
        ),
        Mistake(
            "the rate is always the peak",
            "says that the chip runs at its peak, also where it waits for memory.",
            timed(rate=lambda work, read, peak, bandwidth: np.full_like(work, peak)),
        ),
        Mistake(
            "a rate above the roof",
            "takes intensity times bandwidth as the rate everywhere. To the right of the ridge point the peak is the limit.",
            timed(rate=lambda work, read, peak, bandwidth: work / read * bandwidth),
        ),
        Mistake(
            "the rate in bytes",
            "divides the bytes by the seconds. The rate asked for counts operations.",
            timed(rate=lambda work, read, peak, bandwidth: read / np.maximum(work / peak, read / bandwidth)),
        ),
        Mistake(
            "waiting for memory, the wrong way round",
            "calls a program bound by memory when computing takes longer.",
            timed(waits=np.less),
        ),
        Mistake(
            "waiting at the ridge point",
            "says that a program waits for memory when both parts take equally long. Nothing waits there.",
            timed(waits=np.greater_equal),
        ),
    ),
)
