"""What does it cost when some experts do nothing, once a model needs all of them?

The model of `knowledge` with 16 experts, and a book of twice the size, too large to be learned whole. The ways of
balancing are those of `balance-methods`, where text shows no difference. Three seeds. The record has the entries
recalled. Lesson 03 reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimoe.experiments.fact_run import FactRun
from minimoe.experiments.knowledge import SEEDS, fact_contestants
from minimoe.experiments.run import Run

ENTRIES, STEPS = 8192, 3000
METHODS = ("none", "switch", "sequence", "loss-free")


def runs(done: Mapping[str, Any]) -> list[Run]:
    """A book of facts too large for 16 experts, under four ways of balancing them; three seeds."""
    from minimoe.training import BALANCE_METHODS

    model, settings = fact_contestants()["experts-16"], {"entries": ENTRIES}
    return [
        FactRun(
            f"{method}-{seed}",
            changes={"steps": STEPS, "seed": seed} | BALANCE_METHODS[method],
            settings=settings,
            model=model,
        )
        for seed in SEEDS
        for method in METHODS
    ]
