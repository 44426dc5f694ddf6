"""Can one student learn from several specialists? After the last stage of DeepSeek-V4's training.

`nano` and `reasoning` must be finished. A trained ``nano`` becomes three specialists, each of which reads its own domains
of the corpus; ``worked-0`` of `reasoning` is the fourth. ``several`` learns from all four, each of which judges its
domains, in a quarter of the steps on what the student writes itself (DeepSeek-V4: in all). ``onward`` takes the same steps
without them, ``onward-longer`` as many as they and it took together. All begin from the same ``nano``.
``several-from-reasoning`` and ``onward-from-reasoning`` begin from the best of three specialists of problems, which is
their teacher of problems too. Lesson 05 reads the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments import reasoning
from minimoe.experiments.run import Learning, Run
from minimoe.experiments.scores import solved
from minimoe.experiments.students import opinion_of_teachers, pool_of_problems, with_problems
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.training import RunConfig

SPECIALISTS: dict[str, list[str]] = {
    "stories": ["shakespeare", "austen"],
    "bibles": ["bible_en", "bible_es"],
    "exact": ["python", "math"],
}
OWN_STEPS, SHARED_STEPS = 300, 600
SLOW: dict[str, Any] = {"learning_rate": 1e-3, "warmup_steps": 20}
FAST: dict[str, Any] = {"learning_rate": 3e-3, "warmup_steps": 20}
NANO = "nano/nano"


def runs(done: Mapping[str, Any]) -> list[Run]:
    """A trained ``nano`` becomes four specialists, and one student learns from all; after DeepSeek-V4's last stage."""
    found = [
        Run(name, "nano", SLOW | {"steps": OWN_STEPS, "seed": 1}, learn=specialise, settings=own)
        for name, own in ((name, {"start": NANO, "domains": domains}) for name, domains in SPECIALISTS.items())
    ]
    for seed in (1, 2, 3):
        changes = FAST | {"steps": SHARED_STEPS, "seed": seed}
        found.append(student(f"several-{seed}", changes, several(NANO, "reasoning/worked-0")))
        found.append(student(f"onward-{seed}", changes, onward(NANO)))
    together = SHARED_STEPS + OWN_STEPS * len(SPECIALISTS) + reasoning.STEPS
    found.append(student("onward-longer-1", FAST | {"steps": together, "seed": 1}, onward(NANO)))
    best = "reasoning/worked-1"
    for seed in (1, 2, 3):
        changes = SLOW | {"steps": 400, "seed": seed}
        found.append(student(f"several-from-reasoning-{seed}", changes, several(best, best)))
        found.append(student(f"onward-from-reasoning-{seed}", changes, onward(best)))
    return found


def student(name: str, changes: Mapping[str, Any], settings: Mapping[str, Any]) -> Run:
    """A run of ``nano`` on all of the text and on problems."""
    return Run(name, "nano", changes, learn=study, settings=settings, scores=(solved,))


def onward(start: str) -> dict[str, Any]:
    """Half of all tokens are problems, and there is no teacher."""
    return {"start": start, "tasks": 0.5, "pool": reasoning.POOL}


def several(start: str, reasoner: str) -> dict[str, Any]:
    """The four teachers. Problems are a third of the tokens in three quarters of the steps, and all in the quarter on the
    student's own answers: half of all tokens, as without teachers.
    """
    names = {domain: f"specialists/{name}" for name, domains in SPECIALISTS.items() for domain in domains}
    names["reasoning"] = reasoner
    teachers = [f"{domain}={name}" for domain, name in names.items()]
    return onward(start) | {"tasks": 1 / 3, "teachers": teachers, "distill": {"alpha": 1.0, "on_policy_fraction": 0.25}}


def specialise(work: Workplace, run: RunConfig, *, start: str, domains: list[str]) -> Learning:
    """Some domains of the corpus, from the weights of a finished run."""
    from minimoe.data import training_data

    documents = [document for document in work.corpus if document.domain in domains]
    return Learning(training_data(documents, work.tokenizer), work.finished(start))


def study(
    work: Workplace,
    run: RunConfig,
    *,
    start: str,
    tasks: float,
    pool: int,
    teachers: list[str] | None = None,
    distill: Mapping[str, Any] | None = None,
) -> Learning:
    """The corpus and the pool of problems, from the weights of a finished run, with teachers or without."""
    data = with_problems(work, run, work.corpus, tasks, pool_of_problems(pool))
    method = opinion_of_teachers(work, teachers, distill, pool, data)
    return Learning(data, work.finished(start), method)
