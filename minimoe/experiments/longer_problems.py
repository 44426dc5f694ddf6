"""Do idle experts help to reason, as they help to know?

The contestants of `longer-text` begin from nothing and read 8.2M tokens, nine tenths of them problems with their steps
written out. Three seeds. The record has the problems solved. Read it beside `knowledge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.contestants import contestants
from minimoe.experiments.run import Learning, Run
from minimoe.experiments.scores import solved
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.training import RunConfig

STEPS = 4000
SEEDS = (0, 1, 2)


def runs(done: Mapping[str, Any]) -> list[Run]:
    """Four models, equal tokens, three seeds; scored on problems, with steps and without."""
    return [
        Run(
            f"{name}-{seed}",
            "nano",
            {"steps": STEPS, "seed": seed, "eval_every": 2000},
            learn=mostly_problems,
            settings={"tasks": 0.9},
            scores=(solved,),
            model=model,
        )
        for seed in SEEDS
        for name, model in contestants().items()
    ]


def mostly_problems(work: Workplace, run: RunConfig, *, tasks: float) -> Learning:
    """The corpus and worked problems, ``tasks`` of the tokens."""
    from minimoe.training.mixing import mixed_data

    data, _ = mixed_data(work.corpus, work.tokenizer, run, tasks)
    return Learning(data)
