"""Which other ways of learning from a teacher work?

`teacher` must be finished. The record is to be read beside that of `distillation`, seed by seed. ``reverse-kl``, ``jsd``
and ``hinton-2`` use other losses. ``top-32`` sees the teacher's 32 best words only. ``text-sampled`` reads text that the
teacher wrote, ``text-sampled-logits`` learns its opinion of that text as well. ``dense-forward-kl`` is a dense student,
to be compared with ``dense-alone``. ``quantized`` is trained with rounded experts, to be compared with the rounded
weights of ``forward-kl`` in `distillation`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.distillation import ALONE, SEEDS, STEPS, TEACHER
from minimoe.experiments.run import Learning, Run
from minimoe.experiments.scores import rounded, solved
from minimoe.experiments.students import (
    opinion_of_teachers,
    pool_of_problems,
    solutions_of,
    text_written_by,
    with_problems,
    written_by_teacher,
)
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.training import RunConfig

LEARNS: dict[str, Any] = ALONE | {"teachers": [TEACHER]}
READS: dict[str, Any] = LEARNS | {"text": "sampled", "form": "sampled"}
WAYS: dict[str, dict[str, Any]] = {
    "reverse-kl": LEARNS | {"distill": {"divergence": "reverse_kl"}},
    "text-sampled": READS,
    "text-sampled-logits": READS | {"distill": {"alpha": 1.0}},
    "top-32": LEARNS | {"distill": {"top_k": 32}},
    "dense-alone": ALONE,
    "dense-forward-kl": LEARNS | {"distill": {"alpha": 0.9}},
    "quantized": LEARNS | {"distill": {"alpha": 0.9}, "qat": "mxfp4", "quantized": "mxfp4"},
    "hinton-2": LEARNS | {"distill": {"divergence": "hinton", "temperature": 2.0}},
    "jsd": LEARNS | {"distill": {"divergence": "jsd"}},
}


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``nano`` by other ways, three seeds: other losses, top 32 words, text alone, dense and quantized students."""
    found = []
    for seed in SEEDS:
        for name, settings in WAYS.items():
            more = (written_by_teacher,) if "form" in settings else (rounded,) if "quantized" in settings else ()
            run = Run(f"{name}-{seed}", "nano", {"steps": STEPS, "seed": seed}, dense=name.startswith("dense"))
            found.append(dataclasses.replace(run, learn=study, settings=settings, scores=(solved, *more)))
    return found


def study(
    work: Workplace,
    run: RunConfig,
    *,
    tasks: float,
    pool: int,
    teachers: list[str] | None = None,
    distill: Mapping[str, Any] | None = None,
    text: str = "corpus",
    form: str = "worked",
    qat: str | None = None,
    quantized: str | None = None,
) -> Learning:
    """Text and problems, of the corpus and with true steps or as a teacher writes both, by the way of the run."""
    from minimoe.quant.methods import QuantizationAware
    from minimoe.training import Combined

    documents, problems = work.corpus, pool_of_problems(pool)
    if teachers and form == "sampled":
        documents = text_written_by(work, teachers[0], run.model.context_length)
        problems = solutions_of(work, teachers[0], pool).documents
    data = with_problems(work, run, documents, tasks, problems)
    opinion = opinion_of_teachers(work, teachers, distill, pool, data)
    rounding = None if qat is None else QuantizationAware(qat)
    methods = [method for method in (opinion, rounding) if method is not None]
    return Learning(data, method=Combined(*methods) if methods else None)
