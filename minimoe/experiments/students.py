"""What students of a teacher read, and how they learn its opinion: the pool of problems, and what the teacher writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minimoe.console import Bar, counter
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer, TrainingData
    from minimoe.distill import Distillation
    from minimoe.distill.teacher_text import Written
    from minimoe.model import MoETransformer
    from minimoe.training import RunConfig

POOL_SEED = 1000  # of the problems that all students share; teachers were trained on problems of another seed
EXCERPTS = 2304  # pieces of text that a teacher goes on from
EXCERPT = 32  # tokens of real text, below which a teacher fills the context
SLACK = 8  # an excerpt, cut from its text, may take a few more tokens
WRITTEN_FORMS = ("sampled", "sampled-right", "worked-right")  # which ask what a teacher wrote


def pool_of_problems(pool: int, form: str = "worked") -> list[Document]:
    """The first ``pool`` problems that all students share, with the true steps or as `minimoe.data.FORMS` says."""
    from minimoe.data import task_documents

    return task_documents(pool, seed=POOL_SEED, form=form)


def solutions_of(work: Workplace, teacher: str, pool: int) -> Written:
    """The pool as a teacher solves it in writing, right or wrong."""
    from minimoe.distill import task_prompts
    from minimoe.progress import NEW_TOKENS

    return _written(work, teacher, "reasoning", task_prompts(pool, seed=POOL_SEED), NEW_TOKENS)


def text_written_by(work: Workplace, teacher: str, context_length: int) -> list[Document]:
    """The text that a teacher writes below short excerpts of the corpus; an eighth of it is the real excerpts."""
    prompts = excerpts(work.corpus, work.tokenizer, EXCERPTS)
    return _written(work, teacher, "text", prompts, context_length - EXCERPT - SLACK).documents


def _written(work: Workplace, teacher: str, name: str, prompts: list[Document], max_new_tokens: int) -> Written:
    """What a finished run writes below prompts, kept beside its checkpoints."""
    from minimoe.distill.teacher_text import written

    with Bar(f"teacher writes {name}", len(prompts)) as bar:
        folder, report = work.folder / teacher / "sampled", counter(bar)
        return written(folder, lambda: work.finished(teacher), name, prompts, work.tokenizer, max_new_tokens, report)


def those_solved(texts: list[Document], solutions: list[Document]) -> list[Document]:
    """Those ``texts``, one for each problem of the pool, whose problem the teacher solved right.

    Raises:
      UserError: if it solved none.
    """
    from minimoe.distill.teacher_text import answered_right, texts_of_solved

    return texts_of_solved(texts, answered_right(solutions, POOL_SEED))


def written_by_teacher(work: Workplace, model: MoETransformer, settings: Mapping[str, Any]) -> dict[str, float]:
    """For the record: the share of the teacher's answers that are right, how many of these have just the true steps, and
    the seconds that it wrote.
    """
    from minimoe.distill.teacher_text import answered_right

    wrote = solutions_of(work, settings["teachers"][0], settings["pool"])
    right = answered_right(wrote.documents, POOL_SEED)
    true = pool_of_problems(settings["pool"])
    same = [one.text == other.text for one, other, fits in zip(wrote.documents, true, right, strict=True) if fits]
    shares = {"sampled_right": sum(right) / len(right), "sampled_same": sum(same) / max(len(same), 1)}
    return shares | {"sampled_seconds": wrote.seconds}


def excerpts(documents: list[Document], tokenizer: Tokenizer, num: int) -> list[Document]:
    """``num`` pieces of training text of `EXCERPT` tokens, evenly spread over each domain, to be continued."""
    from minimoe.data import Document, training_data

    data = training_data(documents, tokenizer)
    pieces = []
    for domain, stream in zip(data.domains, data.streams, strict=True):
        for number, start in enumerate(np.linspace(0, len(stream) - EXCERPT, num // len(data.domains), dtype=int)):
            ids = [int(token) for token in stream[start : start + EXCERPT] if token != data.eot_id]
            pieces.append(Document(domain, "train", f"excerpt/{domain}/{number}", tokenizer.decode(ids)))
    return pieces


def with_problems(
    work: Workplace, run: RunConfig, documents: list[Document], tasks: float, problems: list[Document]
) -> TrainingData:
    """Documents and problems, of which problems are ``tasks`` of the tokens (0..1)."""
    from minimoe.training.mixing import mixed_data

    return mixed_data(documents, work.tokenizer, run, tasks, problems=problems)[0]


def opinion_of_teachers(
    work: Workplace,
    teachers: Sequence[str] | None,
    distill: Mapping[str, Any] | None,
    pool: int,
    data: TrainingData,
) -> Distillation | None:
    """Distillation from finished runs; None for a run that has no teachers, or only their text.

    Args:
      teachers: one run for all the text, or ``domain=experiment/run`` for each domain.
      distill: arguments of `minimoe.distill.DistillRecipe`.
      pool: problems that the student answers in on-policy steps. data: whose domains need a teacher.
    """
    if not teachers or not distill:
        return None
    from minimoe.distill import Distillation, DistillRecipe, task_prompts

    recipe = DistillRecipe(**distill)
    prompts = task_prompts(pool, seed=POOL_SEED) if recipe.on_policy_fraction else []
    named = dict(name.split("=", 1) for name in teachers if "=" in name)
    guide: Any = None
    if named:
        domains = {*data.domains, *(prompt.domain for prompt in prompts)}
        models = {name: work.finished(name) for name in set(named.values())}
        guide = {domain: models[name] for domain, name in named.items() if domain in domains}
    else:
        guide = work.finished(teachers[0])
    return Distillation(recipe, guide, prompts)
