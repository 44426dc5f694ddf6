"""Training and grading with a progress bar: what commands, experiments and the tour show meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimoe.console import Bar, counter, messages
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer, TrainingData
    from minimoe.model import MoETransformer
    from minimoe.training import RunConfig, StepMetrics, TaskEvaluation, TrainResult

GRADED = 50  # problems of each level that a model answers in the end
NEW_TOKENS = 96  # enough for a worked problem


def train_with_bar(
    title: str,
    run: RunConfig,
    data: TrainingData,
    validation: list[Document],
    tokenizer: Tokenizer,
    *,
    first: int = 0,
    out: Path | None = None,
    resume: bool = False,
    **hooks: Any,
) -> TrainResult:
    """`minimoe.training.train` with a progress bar that starts at step ``first``; ``hooks`` are passed on to it."""
    from minimoe.training import train as run_training

    note = Note()
    with Bar(title, run.recipe.steps, first) as bar:
        return run_training(
            run,
            data,
            validation,
            tokenizer,
            out=out,
            resume=resume,
            **hooks,
            on_record=note.record,
            on_step=lambda step, metrics: bar.update(step, note.step(metrics)),
        )


class Note:
    """The text beside the progress bar: loss, balance and speed."""

    def __init__(self) -> None:
        self.speed = ""

    def record(self, record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            self.speed = f"{record['tokens_per_second']:,.0f} tok/s"
        else:
            messages.print(f"step {record['step']}: {record['bits_per_byte']:.3f} bits per byte (quick)")

    def step(self, metrics: StepMetrics) -> str:
        from minimoe.moe import max_violation

        balance = f"  MaxVio {float(max_violation(metrics.load).mean()):.2f}" if metrics.load.size else ""
        return f"loss {float(metrics.loss):.3f}{balance}  {self.speed}"


def draw_curve(out: Path, result: TrainResult) -> None:
    """Writes the run's curve into its folder."""
    from minimoe.plots import save, training_curve
    from minimoe.training.checkpoint import CURVE_FILE

    if any(record["kind"] == "train" for record in result.records):
        save(training_curve(result.records, title=out.resolve().name), out / CURVE_FILE)


def grade(model: MoETransformer, tokenizer: Tokenizer, form: str = "worked", num: int | None = None) -> TaskEvaluation:
    """A model's answers to ``num`` validation problems of each level (`GRADED`), with a progress bar."""
    from minimoe.training import evaluate_tasks

    with Bar("problems", 1) as bar:
        return evaluate_tasks(
            model, tokenizer, num=num or GRADED, form=form, max_new_tokens=NEW_TOKENS, progress=counter(bar)
        )


# How often a run is looked at and saved: free to change on the way, since no weight depends on it.
WATCHING = frozenset({"log_every", "eval_every", "checkpoint_every"})


def check_resume(out: Path, run: RunConfig, resume: bool) -> int:
    """The step to continue from.

    Raises:
      UserError: if ``out`` holds a run and ``resume`` is off, or the run there is another one.
    """
    from minimoe.training.checkpoint import CONFIG_FILE, CheckpointFolder, read_run_config

    if not (out / CONFIG_FILE).is_file():
        if resume:
            messages.print(f"no checkpoint in {out} yet: starting at step 0")
        return 0
    if not resume:
        raise UserError(f"--out {out} already holds a run; add --resume to continue it or name another folder")
    there = read_run_config(out).to_dict()
    here = run.to_dict()
    for part in ("model", "recipe", "data"):
        for name in here[part] | there[part]:
            value, was = here[part].get(name), there[part].get(name)
            if name not in WATCHING and value != was:
                raise UserError(
                    f"--resume: {part} {name}={value!r}, but the run in {out} was started with {name}={was!r}; "
                    f"use the same or name another folder"
                )
    steps = CheckpointFolder(out).steps()
    step = steps[-1] if steps else 0
    messages.print(f"resuming at step {step}" if steps else f"no checkpoint in {out} yet: starting at step 0")
    return step


def prepare_run(out: Path, run: RunConfig, tokenizer: Tokenizer) -> int:
    """Makes ``out`` ready for a run that is begun or continued there; the step to continue from.

    Raises:
      UserError: if ``out`` holds something else, or another run.
    """
    from minimoe.training.checkpoint import prepare_folder, write_run_config

    prepare_folder(out)
    first = check_resume(out, run, resume=True)
    if not first:
        write_run_config(out, run, tokenizer)
    return first
