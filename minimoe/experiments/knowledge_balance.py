"""What does it cost when some experts do nothing, once a model needs all of them?

The book and the models of `knowledge`, with 16 experts. The ways of balancing are those of `balance-methods`, where text
shows no difference. Three seeds. The record has the entries recalled. Lesson 03 reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimoe.experiments.fact_run import FactRun
from minimoe.experiments.knowledge import CHANGES, ENTRIES, SEEDS, WIDTH, fact_contestants


def runs(
    done: Mapping[str, Any], entries: int = ENTRIES, width: int = WIDTH, recipe: Mapping[str, Any] | None = None
) -> list[FactRun]:
    """A book of facts under five ways of balancing 16 experts; three seeds."""
    from minimoe.training import BALANCE_METHODS

    model, base = fact_contestants(entries, width)["experts-16"], dict(recipe or CHANGES)
    return [
        FactRun(f"{method}-{seed}", changes=base | {"seed": seed} | changes, settings={"entries": entries}, model=model)
        for seed in SEEDS
        for method, changes in BALANCE_METHODS.items()
    ]
