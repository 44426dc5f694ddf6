"""How does a small trained model learn to reason: from answers, from its teacher's steps, from true ones?

`nano` and `teacher` must be finished. A trained ``nano`` goes on with three seeds; nine tenths of all tokens are problems
from one pool. ``direct`` reads the answers only. ``sampled-right`` reads the steps of the teacher where they led to the
right answer, ``sampled`` all of them. ``worked`` reads the true steps of all problems, ``worked-right`` those of the
problems that the teacher solved. ``forward-kl`` reads as ``worked`` and has the teacher's opinion of each word.

Then 150 steps more from ``sampled-right``: ``onward`` on the same text, ``offline`` with the teacher's opinion of it,
``on-policy`` with its opinion of what the student writes. ``direct-equal-time`` takes as long as ``sampled-right`` and the
writing of its text together. Lesson 05 reads the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments import students
from minimoe.experiments.distillation import SEEDS, TEACHER
from minimoe.experiments.records import training_speed
from minimoe.experiments.run import Learning, Run
from minimoe.experiments.scores import solved
from minimoe.experiments.students import WRITTEN_FORMS, opinion_of_teachers, with_problems, written_by_teacher
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.data import Document
    from minimoe.training import RunConfig

STEPS = 1600
POOL = 18432
STUDENT: dict[str, Any] = {"start": "nano/nano", "tasks": 0.9, "pool": POOL}
TAUGHT = STUDENT | {"teachers": [TEACHER]}
WAYS: dict[str, dict[str, Any]] = {
    "direct": STUDENT | {"form": "direct"},
    "sampled-right": TAUGHT | {"form": "sampled-right"},
    "worked": STUDENT,
    "worked-right": TAUGHT | {"form": "worked-right"},
    "forward-kl": TAUGHT | {"distill": {"alpha": 0.9}},
}
MORE: dict[str, dict[str, Any]] = {
    "onward": {},
    "offline": {"distill": {"alpha": 0.9}},
    "on-policy": {"distill": {"alpha": 0.9, "on_policy_fraction": 1.0}},
}


def runs(done: Mapping[str, Any]) -> list[Run]:
    """A trained ``nano`` learns to reason, three seeds: from answers, its teacher's steps, true steps, and its logits."""
    changes: dict[str, Any] = {"steps": STEPS, "learning_rate": 3e-3, "warmup_steps": 50}
    found = [student(f"{name}-{seed}", changes | {"seed": seed}, way) for seed in SEEDS for name, way in WAYS.items()]
    unchecked = TAUGHT | {"form": "sampled"}
    found += [student(f"sampled-{seed}", changes | {"seed": seed}, unchecked) for seed in SEEDS]
    for seed in SEEDS:
        shorter = {"steps": 150, "learning_rate": 5e-4, "warmup_steps": 15, "seed": 10 + seed}
        begun = WAYS["sampled-right"] | {"start": f"reasoning/sampled-right-{seed}"}
        found += [student(f"{name}-{seed}", shorter, begun | more) for name, more in MORE.items()]
    if {"direct-0", "sampled-right-0"} <= set(done):
        direct, sampled = done["direct-0"], done["sampled-right-0"]
        spent = sampled["sampled_seconds"] + sampled["tokens"] / training_speed(sampled)
        longer = 10 * round(STEPS * spent * training_speed(direct) / direct["tokens"] / 10)
        found.append(student("direct-equal-time-0", changes | {"steps": longer}, WAYS["direct"]))
    return found


def student(name: str, changes: Mapping[str, Any], settings: Mapping[str, Any]) -> Run:
    """A run of ``nano`` that reads problems; its teacher's text is described where it reads that."""
    scores = (solved, written_by_teacher) if settings.get("form") in WRITTEN_FORMS else (solved,)
    return Run(name, "nano", changes, learn=study, settings=settings, scores=scores)


def study(
    work: Workplace,
    run: RunConfig,
    *,
    start: str,
    tasks: float,
    pool: int,
    form: str = "worked",
    teachers: list[str] | None = None,
    distill: Mapping[str, Any] | None = None,
) -> Learning:
    """The corpus and the pool of problems in the form of the run, from the weights of a finished run."""
    problems = problems_to_read(work, teachers, pool, form)
    data = with_problems(work, run, work.corpus, tasks, problems)
    method = opinion_of_teachers(work, teachers, distill, pool, data)
    return Learning(data, work.finished(start), method)


def problems_to_read(work: Workplace, teachers: list[str] | None, pool: int, form: str) -> list[Document]:
    """The pool as it is, or those problems that the teacher solved right, in its words or with the true steps.

    Raises:
      UserError: if the teacher solved none.
    """
    if not teachers or form not in students.WRITTEN_FORMS:
        return students.pool_of_problems(pool, form)
    solutions = students.solutions_of(work, teachers[0], pool).documents
    if form == "sampled":
        return solutions
    texts = students.pool_of_problems(pool) if form == "worked-right" else solutions
    return students.those_solved(texts, solutions)
