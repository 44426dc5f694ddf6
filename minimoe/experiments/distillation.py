"""Does a teacher help a student that reads the same text?

`teacher` must be finished. ``nano`` is trained with three seeds, ``alone`` and with the teacher's opinion of each word
(``forward-kl``), on the same tokens. Half of all tokens are reasoning problems from one pool, with the true steps.
``alone-equal-time`` takes as long as ``forward-kl``, by the median speeds of three seeds. Lesson 05 reads the record. At
equal tokens the teacher helps if every seed gains, by more than the seeds differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.records import training_speed
from minimoe.experiments.run import Learning, Run
from minimoe.experiments.scores import rounded, solved
from minimoe.experiments.students import opinion_of_teachers, pool_of_problems, with_problems
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.training import RunConfig

STEPS = 600
SEEDS = (0, 1, 2)
TEACHER = "teacher/teacher"
ALONE = {"tasks": 0.5, "pool": 9216}  # problems: about as many as 600 steps read once
TAUGHT = ALONE | {"teachers": [TEACHER], "distill": {"alpha": 0.9}, "quantized": "mxfp4"}


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``nano`` alone and with its teacher's help, three seeds: equal tokens, then equal time."""
    found = []
    for seed in SEEDS:
        changes = {"steps": STEPS, "seed": seed, "eval_every": 100}
        found.append(Run(f"alone-{seed}", "nano", changes, learn=study, settings=ALONE, scores=(solved,)))
        found.append(Run(f"forward-kl-{seed}", "nano", changes, learn=study, settings=TAUGHT, scores=(rounded, solved)))
    if {f"{name}-{seed}" for name in ("alone", "forward-kl") for seed in SEEDS} <= set(done):
        alone, taught = (
            sum(training_speed(done[f"{name}-{seed}"]) for seed in SEEDS) for name in ("alone", "forward-kl")
        )
        changes = {"steps": 10 * round(STEPS * alone / taught / 10)}
        for seed in SEEDS:
            longer = changes | {"seed": seed}
            found.append(Run(f"alone-equal-time-{seed}", "nano", longer, learn=study, settings=ALONE, scores=(solved,)))
    return found


def study(
    work: Workplace,
    run: RunConfig,
    *,
    tasks: float,
    pool: int,
    teachers: list[str] | None = None,
    distill: Mapping[str, Any] | None = None,
    quantized: str | None = None,
) -> Learning:
    """The corpus and the pool of problems, with a teacher's opinion of each word if there is one."""
    data = with_problems(work, run, work.corpus, tasks, pool_of_problems(pool))
    method = opinion_of_teachers(work, teachers, distill, pool, data)
    return Learning(data, method=method)
