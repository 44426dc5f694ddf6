"""What does it cost when some experts do nothing, once a model needs all of them?

The book and the models of `knowledge`, with 16 experts. The ways of balancing are those of `balance-methods`, where text
shows no difference. Three seeds. The record has the entries recalled. Lesson 03 reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimoe.experiments.fact_run import FactRun
from minimoe.experiments.knowledge import ENTRIES, SEEDS, STEPS, fact_contestants


def runs(done: Mapping[str, Any]) -> list[FactRun]:
    """A book of facts under five ways of balancing 16 experts; three seeds."""
    from minimoe.training import BALANCE_METHODS

    model, settings = fact_contestants()["experts-16"], {"entries": ENTRIES}
    return [
        FactRun(f"{method}-{seed}", changes={"steps": STEPS, "seed": seed} | changes, settings=settings, model=model)
        for seed in SEEDS
        for method, changes in BALANCE_METHODS.items()
    ]
