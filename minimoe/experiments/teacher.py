"""How well does ``small`` solve reasoning problems when half of its further training is made of them?

`small-hour` must be finished: the run goes on from its weights. Problems come with their steps or with the answer alone,
in turn. The result is the teacher of lesson 05, and the package ships it as ``teacher``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.run import Learning, Run
from minimoe.experiments.scores import solved
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.training import RunConfig


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``small`` goes on with text and as many tokens of reasoning problems: the teacher of lesson 05."""
    changes = {"steps": 4000, "learning_rate": 1.5e-3, "warmup_steps": 100, "eval_every": 1000}
    settings = {"start": "small-hour/small", "tasks": 0.5, "form": "mixed"}
    return [Run("teacher", "small", changes, learn=go_on_with_problems, settings=settings, scores=(solved,))]


def go_on_with_problems(work: Workplace, run: RunConfig, *, start: str, tasks: float, form: str) -> Learning:
    """The corpus and problems of the run's own seed, from the weights of a finished run."""
    from minimoe.training.mixing import mixed_data

    data, _ = mixed_data(work.corpus, work.tokenizer, run, tasks, form)
    return Learning(data, work.finished(start))
