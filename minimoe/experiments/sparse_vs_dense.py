"""Is a sparse model better than a dense one that computes as much for each token?

``nano`` and its dense model of equal active FLOPs are trained with three seeds, with the same number of tokens. Then the
dense one gets as much time as the sparse one took, because a step of the sparse one takes longer. The speeds of the first
two runs say how many steps that is. The conclusion is the table that ``minimoe experiments show sparse-vs-dense``
prints: compare the bits per byte of ``sparse`` with those of ``dense`` and ``dense-equal-time``, seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimoe.experiments.run import Run

STEPS = 600
SEEDS = (0, 1, 2)


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``nano`` against the dense model of equal active FLOPs, three seeds: at equal tokens, then at equal time."""
    found = []
    for seed in SEEDS:
        found.append(Run(f"sparse-{seed}", "nano", {"steps": STEPS, "seed": seed}))
        found.append(Run(f"dense-{seed}", "nano", {"steps": STEPS, "seed": seed}, dense=True))
    if {"sparse-0", "dense-0"} <= set(done):
        ratio = done["sparse-0"]["train_seconds"] / done["dense-0"]["train_seconds"]
        changes = {"steps": 10 * round(STEPS * ratio / 10)}
        found += [Run(f"dense-equal-time-{seed}", "nano", changes | {"seed": seed}, dense=True) for seed in SEEDS]
    return found
