"""What the runs of an experiment learn from: text, reasoning problems, and teachers that earlier runs left behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minimoe.cli.lab_trials import SPECIALISTS
from minimoe.cli.teacher_text import Written, answered_right, of_the_solved, written
from minimoe.console import messages
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.cli.lab_trials import Trial
    from minimoe.data import Document, Tokenizer, TrainingData
    from minimoe.model import MoETransformer
    from minimoe.training import RunConfig

POOL_SEED = 1000  # of the problems that all students share
EXCERPTS = 2304  # pieces of text that a teacher goes on from
EXCERPT = 32  # tokens of real text, below which a teacher fills the context
SLACK = 8  # an excerpt, cut from its text, may take a few more tokens
WRITTEN_FORMS = ("sampled", "sampled-right", "worked-right")  # which ask what a teacher wrote
SHIPPED_AS = {
    "teacher/teacher": "teacher",
    "small-hour/small": "small",
    "nano/nano": "nano",
    "reasoning/forward-kl-0": "student",
    **{f"specialists/{name}": name for name in SPECIALISTS},
}


def finished(work: Path, name: str) -> MoETransformer:
    """The model of a finished run, ``experiment/run``; if only its shipped weights are here, those, decoded.

    Raises:
      UserError: if there is neither, with the command that makes it.
    """
    from minimoe.hub import load_pretrained, shipped
    from minimoe.quant import dequantize_model
    from minimoe.training import load_checkpoint
    from minimoe.training.checkpoint import CONFIG_FILE, CheckpointFolder

    folder = work / name
    steps = CheckpointFolder(folder).steps() if (folder / CONFIG_FILE).is_file() else []
    if steps:
        model, _, run = load_checkpoint(folder)
        if steps[-1] < run.recipe.steps:
            raise UserError(
                f"{folder} is at step {steps[-1]} of {run.recipe.steps}; let `minimoe experiments run` finish it"
            )
        return model
    if SHIPPED_AS.get(name) in shipped():
        messages.print(f"{folder} is not here: using the shipped model {SHIPPED_AS[name]!r}, decoded")
        return dequantize_model(load_pretrained(SHIPPED_AS[name])[0])
    experiment = name.split("/")[0]
    raise UserError(f"{folder} holds no trained model; run `minimoe experiments run {experiment} --work {work}` first")


def training_text(
    trial: Trial, run: RunConfig, corpus: list[Document], tokenizer: Tokenizer, work: Path
) -> TrainingData:
    """The corpus or some of its domains, and the problems of the pool in the trial's share and form.

    ``text="sampled"`` begins with real excerpts, an eighth of its tokens.
    """
    from minimoe.cli.reasoning import mixed_data
    from minimoe.data import task_documents

    text = [document for document in corpus if not trial.domains or document.domain in trial.domains]
    if trial.text == "sampled":
        prompts = excerpts(text, tokenizer, EXCERPTS)
        length = run.model.context_length - EXCERPT - SLACK
        text = sampled(work, trial.teachers[0], "text", prompts, tokenizer, length).documents
    if not trial.pool or not trial.tasks:
        return mixed_data(text, tokenizer, run, trial.tasks, trial.form)[0]
    if trial.form in WRITTEN_FORMS:
        problems = chosen(trial, solutions(work, trial, tokenizer).documents)
    else:
        problems = task_documents(trial.pool, seed=POOL_SEED, form=trial.form)
    return mixed_data(text, tokenizer, run, trial.tasks, problems=problems)[0]


def solutions(work: Path, trial: Trial, tokenizer: Tokenizer) -> Written:
    """The pool as the trial's first teacher solves it in writing. It was trained on problems of another seed."""
    from minimoe.cli.reasoning import NEW_TOKENS
    from minimoe.distill import task_prompts

    prompts = task_prompts(trial.pool, seed=POOL_SEED)
    return sampled(work, trial.teachers[0], "reasoning", prompts, tokenizer, NEW_TOKENS)


def chosen(trial: Trial, solved: list[Document]) -> list[Document]:
    """Of the teacher's solutions, or of the true ones of the same problems, those that the trial's form asks for.

    Raises:
      UserError: if none is right.
    """
    from minimoe.data import task_documents

    if trial.form == "sampled":
        return solved
    texts = solved if trial.form == "sampled-right" else task_documents(trial.pool, seed=POOL_SEED)
    return of_the_solved(texts, answered_right(solved, POOL_SEED))


def teachers_text(trial: Trial, solved: Written) -> dict[str, float]:
    """What the record says of it: the share of right answers, how many of these have just the true steps, seconds."""
    from minimoe.data import task_documents

    right = answered_right(solved.documents, POOL_SEED)
    true = task_documents(trial.pool, seed=POOL_SEED)
    same = [one.text == other.text for one, other, fits in zip(solved.documents, true, right, strict=True) if fits]
    shares = {"sampled_right": sum(right) / len(right), "sampled_same": sum(same) / max(len(same), 1)}
    return shares | {"sampled_seconds": solved.seconds}


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


def sampled(
    work: Path, teacher: str, name: str, prompts: list[Document], tokenizer: Tokenizer, max_new_tokens: int
) -> Written:
    """What a finished run writes below prompts, kept beside its checkpoints."""
    folder = work / teacher / "sampled"
    return written(folder, lambda: finished(work, teacher), name, prompts, tokenizer, max_new_tokens)


def teacher_hooks(trial: Trial, run: RunConfig, data: TrainingData, tokenizer: Tokenizer, work: Path) -> dict[str, Any]:
    """What distillation adds to training, as arguments of `minimoe.training.train`; nothing if only text passes."""
    from minimoe.distill import DistillRecipe, distill_hooks, task_prompts

    if not trial.distill:
        return {}
    recipe = DistillRecipe(**trial.distill)
    prompts = task_prompts(trial.pool, seed=POOL_SEED) if recipe.on_policy_fraction else []
    names = {*data.domains, *(prompt.domain for prompt in prompts)}
    return distill_hooks(run, recipe, teachers(trial, work, names), data, tokenizer, prompts=prompts)


def teachers(trial: Trial, work: Path, domains: set[str]) -> Any:
    """One model, or one for each domain if the trial names several."""
    named = dict(name.split("=", 1) for name in trial.teachers if "=" in name)
    if not named:
        return finished(work, trial.teachers[0])
    models = {name: finished(work, name) for name in set(named.values())}
    return {domain: models[name] for domain, name in named.items() if domain in domains}
