"""Which way of balancing the experts costs the least quality?

``nano`` is trained in five ways for the same 300 steps, with three seeds: without balancing, with the balance loss over
the batch or within each sequence, with the selection bias, and with bias and sequence loss together. The record has
quality, balance and specialisation of each. Lesson 03 reads it: a difference counts if it is larger than the range
between seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimoe.experiments.run import Run


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``nano`` under five ways of balancing, equal steps, three seeds: quality, balance, specialisation."""
    from minimoe.training import BALANCE_METHODS

    return [
        Run(f"{method}-{seed}", "nano", {"steps": 300, "seed": seed} | changes)
        for seed in (0, 1, 2)
        for method, changes in BALANCE_METHODS.items()
    ]
