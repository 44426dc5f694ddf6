"""Training text with reasoning problems in it, in the share that is asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from minimoe.data import Document, Tokenizer, TrainingData, task_documents, training_data

if TYPE_CHECKING:
    from minimoe.training.checkpoint import RunConfig

MOST_PROBLEMS = 100_000  # beyond that they are read again
SAMPLED_PROBLEMS = 200  # from which the mean length is taken
VALIDATION_PROBLEMS = 300  # as text, for bits per byte: what the quick protocol takes


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
    in_text = sum(part.num_tokens for part in text)
    times = max(1, round(share / (1 - share) * in_text / tasks.num_tokens)) if share < 1 else 1
    return TrainingData(tasks.domains, tuple(np.tile(stream, times) for stream in tasks.streams), tasks.eot_id)
