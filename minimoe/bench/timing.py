"""Timing for benchmarks: contestants take turns in one process, and every number comes with its spread.

A clock on a busy machine drifts by more than the effects we look for. So the contestants run A B C, A B C, ... and a
ratio is the median over rounds of (time of A / time of B in the same round): what slows the whole round cancels.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from minimoe import process

VERSIONED = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of each round, warm-up excluded."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def summary_ms(self) -> dict[str, float]:
        """Median, quartiles and minimum in milliseconds."""
        low, high = _quartiles(self.seconds)
        values = {"median": self.median, "p25": low, "p75": high, "min": min(self.seconds)}
        return {name: round(1e3 * value, 4) for name, value in values.items()}


def alternate(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int, pause: float = 0.0
) -> dict[str, Timing]:
    """Runs every contestant once a round, in turn.

    Args:
      contestants: functions that return only when their work is done (call `jax.block_until_ready` inside).
      rounds: timed rounds. warmup: rounds before them that are not timed; the first one compiles.
      pause: seconds of rest before each timed call, the same for all: thread pools spin for a moment after their work,
        which would be charged to whoever comes next.
    """
    for _ in range(warmup):
        for run in contestants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            time.sleep(pause)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(numerator: Timing, denominator: Timing) -> dict[str, float]:
    """Time over time, round by round: median and quartiles.

    Example:
      >>> ratio(Timing((2.0, 4.0, 9.0)), Timing((1.0, 2.0, 3.0)))["median"]
      2.0
    """
    ratios = [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)]
    low, high = _quartiles(ratios)
    return {"median": round(statistics.median(ratios), 4), "p25": round(low, 4), "p75": round(high, 4)}


def _quartiles(values) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def environment() -> dict[str, Any]:
    """Versions (None where not installed), cores and settings: a time means nothing without them."""
    import jax

    versions = {name: _version(name) for name in VERSIONED}
    return versions | {
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": str(jax.devices()[0].device_kind),  # of an accelerator its name, or cpu
        "memory": process.memory_in_words(),  # it serves all contestants
        "compilation_cache": bool(jax.config.values["jax_compilation_cache_dir"]),  # then a first step may not compile
        "python_additions_per_second": python_speed(),
    }


@functools.cache  # a run measures it once: its file and what it prints agree
def python_speed(additions: int = 200_000) -> int:
    """Additions a second of a plain loop, the best of five.

    PyTorch is driven from Python one operation at a time, a compiled step is not: a ratio between the two depends on
    this number as well as on the matmuls, and machines differ in it by 3 and more.
    """

    def seconds() -> float:
        start, total = time.perf_counter(), 0
        for value in range(additions):
            total += value
        return time.perf_counter() - start

    return round(additions / min(seconds() for _ in range(5)))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
