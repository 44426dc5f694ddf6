"""Do idle experts help to reason, as they help to know?

The contestants of `longer-text` read half text and half problems, with their steps written out, four times as many
tokens as the `reasoning` students. Three seeds. The record has the problems solved. Read it beside `knowledge`.
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

STEPS = 6000
SEEDS = (0, 1, 2)


def runs(done: Mapping[str, Any]) -> list[Run]:
    """Four models, equal tokens, three seeds; scored on problems, with steps and without."""
    return [
        Run(
            f"{name}-{seed}",
            "nano",
            {"steps": STEPS, "seed": seed, "eval_every": 1000},
            learn=half_problems,
            settings={"tasks": 0.5},
            scores=(solved,),
            model=model,
        )
        for seed in SEEDS
        for name, model in contestants().items()
    ]


def half_problems(work: Workplace, run: RunConfig, *, tasks: float) -> Learning:
    """The corpus and worked problems, ``tasks`` of the tokens."""
    from minimoe.training.mixing import mixed_data

    data, _ = mixed_data(work.corpus, work.tokenizer, run, tasks)
    return Learning(data)
