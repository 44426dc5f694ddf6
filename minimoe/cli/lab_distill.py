"""What the runs of an experiment learn from: text, reasoning problems, and teachers that earlier runs left behind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minimoe.cli.console import Bar, counter
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.cli.lab_trials import Trial
    from minimoe.data import Document, Tokenizer, TrainingData
    from minimoe.model import MoETransformer
    from minimoe.training import RunConfig

SAMPLES = 9216  # problems that a teacher solves in writing: about as many as 600 steps of nano read
PER_FILE = 1024  # of them: a kill loses at most these
SAMPLE_TEMPERATURE = 0.6  # at which DeepSeek-R1 was sampled
EXCERPT = 32  # tokens of real text, below which a teacher fills the context
SLACK = 8  # an excerpt, cut from its text, may take a few more tokens


def finished(work: Path, name: str) -> MoETransformer:
    """The model of a finished run, ``experiment/run``.

    Raises:
      UserError: if it is not there, with the command that makes it.
    """
    from minimoe.training import load_checkpoint

    folder = work / name
    if not (folder / "config.json").is_file():
        experiment = name.split("/")[0]
        raise UserError(f"{folder} holds no trained model; run `minimoe lab run {experiment} --work {work}` first")
    return load_checkpoint(folder)[0]


def training_text(
    trial: Trial, run: RunConfig, corpus: list[Document], tokenizer: Tokenizer, work: Path
) -> TrainingData:
    """The corpus or some of its domains, and reasoning problems in the trial's share and form."""
    from minimoe.cli.reasoning import mixed_data
    from minimoe.data import training_data

    text = [document for document in corpus if not trial.domains or document.domain in trial.domains]
    if trial.text == "sampled":
        prompts = excerpts(text, tokenizer, SAMPLES // 4)
        text = sampled(work, trial.teachers[0], "text", prompts, tokenizer, run.model.context_length - EXCERPT - SLACK)
    if trial.form != "sampled":
        return mixed_data(text, tokenizer, run, trial.tasks, trial.form)[0]
    from minimoe.cli.reasoning import NEW_TOKENS
    from minimoe.distill import task_prompts

    solved = sampled(work, trial.teachers[0], "reasoning", task_prompts(SAMPLES), tokenizer, NEW_TOKENS)
    return joined(training_data(text, tokenizer), training_data(solved, tokenizer), trial.tasks)


def joined(text: TrainingData, tasks: TrainingData, share: float) -> TrainingData:
    """Both, the second repeated so often that it is about ``share`` of all tokens."""
    from minimoe.data import TrainingData

    times = max(1, round(share / (1 - share) * text.num_tokens / tasks.num_tokens))
    repeated = tuple(np.tile(stream, times) for stream in tasks.streams)
    return TrainingData((*text.domains, *tasks.domains), (*text.streams, *repeated), text.eot_id)


def excerpts(documents: list[Document], tokenizer: Tokenizer, num: int) -> list[Document]:
    """``num`` pieces of training text of `EXCERPT` tokens, evenly spread over each domain, to be continued."""
    from minimoe.data import training_data

    data = training_data(documents, tokenizer)
    pieces = []
    for domain, stream in zip(data.domains, data.streams, strict=True):
        for number, start in enumerate(np.linspace(0, len(stream) - EXCERPT, num // len(data.domains), dtype=int)):
            ids = [int(token) for token in stream[start : start + EXCERPT] if token != data.eot_id]
            pieces.append(_document(domain, f"excerpt/{domain}/{number}", tokenizer.decode(ids)))
    return pieces


def sampled(
    work: Path, teacher: str, name: str, prompts: list[Document], tokenizer: Tokenizer, max_new_tokens: int
) -> list[Document]:
    """What a teacher writes below prompts, kept beside its checkpoints: written once, by files of `PER_FILE`."""
    from minimoe.distill import sample_documents
    from minimoe.files import write_atomically

    folder = work / teacher / "sampled"
    folder.mkdir(parents=True, exist_ok=True)
    model = None
    found = []
    for first in range(0, len(prompts), PER_FILE):
        path = folder / f"{name}-{first:06d}.json"
        if not path.is_file():
            model = finished(work, teacher) if model is None else model
            with Bar(f"{teacher} writes {name}, {first}/{len(prompts)}", 1) as bar:
                some = sample_documents(
                    model,
                    tokenizer,
                    prompts[first : first + PER_FILE],
                    max_new_tokens=max_new_tokens,
                    temperature=SAMPLE_TEMPERATURE,
                    seed=first,
                    progress=counter(bar),
                )
            write_atomically(path, json.dumps([dataclasses.asdict(document) for document in some]))
        found += [_document(**values) for values in json.loads(path.read_text(encoding="utf-8"))]
    return found


def _document(domain: str, key: str, text: str, split: str = "train") -> Document:
    from minimoe.data import Document

    return Document(domain, split, key, text)


def teacher_hooks(trial: Trial, run: RunConfig, data: TrainingData, tokenizer: Tokenizer, work: Path) -> dict[str, Any]:
    """What distillation adds to training, as arguments of `minimoe.training.train`; nothing if only text passes."""
    from minimoe.distill import DistillRecipe, distill_hooks, task_prompts

    if not trial.distill:
        return {}
    recipe = DistillRecipe(**trial.distill)
    num = round(run.recipe.steps * run.recipe.batch_size * recipe.on_policy_fraction)
    prompts = task_prompts(num, seed=run.recipe.seed) if num else []
    names = {*data.domains, *(prompt.domain for prompt in prompts)}
    return distill_hooks(run, recipe, teachers(trial, work, names), data, tokenizer, prompts=prompts)


def teachers(trial: Trial, work: Path, domains: set[str]) -> Any:
    """One model, or one for each domain if the trial names several."""
    named = dict(name.split("=", 1) for name in trial.teachers if "=" in name)
    if not named:
        return finished(work, trial.teachers[0])
    models = {name: finished(work, name) for name in set(named.values())}
    return {domain: models[name] for domain, name in named.items() if domain in domains}
