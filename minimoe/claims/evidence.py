"""Numbers from the records of experiments: a score of each seed, differences of pairs, and how they are written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minimoe.experiments import read_record

Score = Callable[[Mapping[str, Any]], float]


def text(run: Mapping[str, Any]) -> float:
    """Bits per byte of the whole validation text, mean of the domains: lower is better."""
    return run["full"]["bits_per_byte"]


def solved(run: Mapping[str, Any]) -> float:
    """Problems solved with their steps, in percent."""
    return 100 * run["tasks"]["worked"]["mean_exact_match"]


def answered(run: Mapping[str, Any]) -> float:
    """Problems solved by a student that read answers alone, asked for the answer alone, in percent."""
    return 100 * run["tasks"]["direct"]["mean_exact_match"]


def recalled(run: Mapping[str, Any]) -> float:
    """Entries of the book recalled, in percent."""
    return 100 * run["recalled"]


def by_seed(record: str, way: str, score: Score) -> list[float]:
    """The score of each seed of a way that is recorded, in the order of the seeds.

    Example:
      >>> [round(share) for share in by_seed("knowledge", "dense", recalled)]
      [31, 51, 61]
    """
    runs = read_record(record)["runs"]
    seeds = sorted(
        int(seed) for name in runs for base, _, seed in [name.rpartition("-")] if base == way and seed.isdigit()
    )
    return [score(runs[f"{way}-{seed}"]) for seed in seeds]


def gain(record: str, way: str, other: str, score: Score) -> list[float]:
    """``way`` less ``other``, seed by seed, for the seeds that both have.

    Example:
      >>> [round(points) for points in gain("knowledge", "experts-16", "dense", recalled)]
      [67, 48, 39]
    """
    return [a - b for a, b in zip(by_seed(record, way, score), by_seed(record, other, score), strict=False)]


def mean(values: Sequence[float]) -> float:
    """Of the seeds."""
    return statistics.mean(values)


def won(values: Sequence[float]) -> str:
    """In how many pairs a difference is above zero.

    Example:
      >>> won([0.1, -0.2, 0.3])
      '2 of 3'
    """
    return f"{sum(value > 0 for value in values)} of {len(values)}"


def clear(values: Sequence[float]) -> bool:
    """Whether every pair has the same sign and the smallest is not zero.

    Example:
      >>> clear([1.0, 2.0, 3.0]), clear([1.0, -0.1, 2.0])
      (True, False)
    """
    return min(values) > 0 or max(values) < 0


def signed(values: Sequence[float], digits: int = 3) -> str:
    """Differences by seed, with their signs.

    Example:
      >>> signed([0.5, -0.25], 2)
      '+0.50, -0.25'
    """
    return ", ".join(f"{value:+.{digits}f}" for value in values)


def all_signed(values: Sequence[float], digits: int = 3, unit: str = "") -> str:
    """The mean with its sign, and each seed in brackets.

    Example:
      >>> all_signed([1.0, 3.0], 1, " points")
      '+2.0 points (+1.0, +3.0)'
    """
    return f"{mean(values):+.{digits}f}{unit} ({signed(values, digits)})"
