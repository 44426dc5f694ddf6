"""Reasoning problems as the commands use them: mixed into training text, and answered in the end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from minimoe.console import Bar, counter
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer, TrainingData
    from minimoe.model import MoETransformer
    from minimoe.training import RunConfig, TaskEvaluation

MOST_PROBLEMS = 100_000  # beyond that they are read again
SAMPLED_PROBLEMS = 200  # from which the mean length is taken
VALIDATION_PROBLEMS = 300  # as text, for bits per byte: what the quick protocol takes
GRADED = 50  # problems of each level that a model answers in the end
NEW_TOKENS = 96  # enough for a worked problem


def mixed_data(
    documents: list[Document],
    tokenizer: Tokenizer,
    run: RunConfig,
    share: float,
    form: str = "worked",
    problems: list[Document] | None = None,
) -> tuple[TrainingData, list[Document]]:
    """Training data of which reasoning problems are ``share``, and the documents to evaluate on.

    Args:
      documents: the text; empty if ``share`` is 1.
      run: whose seed the problems have, and whose length decides how many there are.
      share: of the tokens, 0..1.
      form: of the problems in training, as for `minimoe.data.task_documents`.
      problems: to train on instead, solved, repeated so often that they are about ``share``.
    """
    from minimoe.data import TrainingData, task_documents, training_data

    seed = run.recipe.seed
    parts = [training_data(documents, tokenizer)] if share < 1 else []
    validation = [document for document in documents if document.split == "val"]
    if share and problems is not None:
        parts.append(_repeated(training_data(problems, tokenizer), share, parts))
    elif share:
        in_all = run.recipe.steps * run.recipe.batch_size * run.model.context_length
        wanted = share / (1 - share) * parts[0].num_tokens if parts else in_all
        some = task_documents(SAMPLED_PROBLEMS, seed=seed, form=form)
        mean = training_data(some, tokenizer).num_tokens / SAMPLED_PROBLEMS
        num = min(math.ceil(wanted / mean), MOST_PROBLEMS)
        parts.append(training_data(task_documents(num, seed=seed, form=form), tokenizer))
    if share:
        validation += task_documents(VALIDATION_PROBLEMS, split="val", seed=seed)
    domains, streams = ([item for part in parts for item in getattr(part, name)] for name in ("domains", "streams"))
    return TrainingData(tuple(domains), tuple(streams), tokenizer.eot_id), validation


def _repeated(tasks: TrainingData, share: float, text: list[TrainingData]) -> TrainingData:
    from minimoe.data import TrainingData

    in_text = sum(part.num_tokens for part in text)
    times = max(1, round(share / (1 - share) * in_text / tasks.num_tokens)) if share < 1 else 1
    return TrainingData(tasks.domains, tuple(np.tile(stream, times) for stream in tasks.streams), tasks.eot_id)


def check_share(share: float) -> None:
    """Raises:
    UserError: if ``share`` is none.
    """
    if not 0 <= share <= 1:
        raise UserError(f"--tasks {share} must be in 0..1; 0.2 gives reasoning problems a fifth of the tokens")


def check_length(run: RunConfig, tokenizer: Tokenizer, max_new_tokens: int = NEW_TOKENS) -> None:
    """Raises:
    UserError: if reasoning problems and their answers are too long for the model's context.
    """
    from minimoe.distill import task_prompts

    prompts = tokenizer.encode_documents([prompt.text for prompt in task_prompts(GRADED * 5, split="val")])
    needed = 1 + max(map(len, prompts)) + max_new_tokens
    if needed > run.model.context_length:
        raise UserError(
            f"reasoning problems take up to {needed} tokens, the model has context_length="
            f"{run.model.context_length}; leave --tasks and --on-policy out or use a longer context"
        )


def grade(model: MoETransformer, tokenizer: Tokenizer, form: str = "worked", num: int | None = None) -> TaskEvaluation:
    """A model's answers to ``num`` validation problems of each level (`GRADED`), with a progress bar."""
    from minimoe.training import evaluate_tasks

    with Bar("problems", 1) as bar:
        return evaluate_tasks(
            model, tokenizer, num=num or GRADED, form=form, max_new_tokens=NEW_TOKENS, progress=counter(bar)
        )
