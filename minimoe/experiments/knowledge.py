"""What do idle parameters buy, when all that counts is how much a model can hold?

Small models learn one book of random facts by heart. ``dense`` and the three sparse models compute equally much for each
token. ``dense-total`` has about the parameters of ``experts-16`` and uses them all. ``dense-2x`` and ``dense-4x`` read
the book two and four times as often as the others, so equal time lies between two rows. Three seeds. The record has the
entries recalled and the bits held per parameter. Lesson 01 reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.fact_run import FactRun, book_of
from minimoe.experiments.run import Run

if TYPE_CHECKING:
    from minimoe.config import ModelConfig

ENTRIES, WIDTH = 4096, 32
STEPS = 2000
SEEDS = (0, 1, 2)


def fact_contestants(entries: int = ENTRIES, width: int = WIDTH) -> dict[str, ModelConfig]:
    """By name: what each model is."""
    from minimoe.training import fact_model

    book = book_of({"entries": entries})
    sparse = {f"experts-{num}": fact_model(book, num, width=width) for num in (4, 16, 64)}
    dense = sparse["experts-4"].dense_equivalent()
    return {"dense": dense, **sparse, "dense-total": dense.replace(d_ff=17 * width)}


def runs(done: Mapping[str, Any]) -> list[Run]:
    """A book of facts: dense, 4, 16 and 64 experts at equal FLOPs, dense of equal size, dense for longer; three seeds."""
    models, settings = fact_contestants(), {"entries": ENTRIES}
    found: list[Run] = []
    for seed in SEEDS:
        for name, model in models.items():
            found.append(
                FactRun(f"{name}-{seed}", changes={"steps": STEPS, "seed": seed}, settings=settings, model=model)
            )
        for times in (2, 4):
            longer = {"steps": times * STEPS, "seed": seed}
            found.append(FactRun(f"dense-{times}x-{seed}", changes=longer, settings=settings, model=models["dense"]))
    return found
