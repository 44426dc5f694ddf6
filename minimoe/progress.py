"""Training and grading with a progress bar: what commands, experiments and the tour show meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimoe.console import Bar, counter, messages

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
    **training: Any,
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
            **training,
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
    from minimoe.training.run_folder import CURVE_FILE

    if any(record["kind"] == "train" for record in result.records):
        save(training_curve(result.records, title=out.resolve().name), out / CURVE_FILE)


def grade(model: MoETransformer, tokenizer: Tokenizer, form: str = "worked", num: int | None = None) -> TaskEvaluation:
    """A model's answers to ``num`` validation problems of each level (`GRADED`), with a progress bar."""
    from minimoe.training import evaluate_tasks

    with Bar("problems", 1) as bar:
        return evaluate_tasks(
            model, tokenizer, num=num or GRADED, form=form, max_new_tokens=NEW_TOKENS, progress=counter(bar)
        )


def check_resume(out: Path, run: RunConfig, resume: bool, *, method: bool = False) -> int:
    """The step to continue from; says so.

    Args:
      out: of `train_with_bar`. run: what will be trained. resume: whether to continue what is there.
      method: whether ``run.method`` is the method of the training, and not filled in later.

    Raises:
      UserError: if ``out`` holds something else, or a run although ``resume`` is off, or another run, or is being
        written.
    """
    from minimoe.files import check_free
    from minimoe.training.checkpoint import CheckpointFolder
    from minimoe.training.run_folder import DESCRIBED, check_folder

    check_folder(out, run, resume=resume, parts=(*DESCRIBED, "method") if method else DESCRIBED)
    check_free(out)
    if not resume:
        return 0
    step = max(CheckpointFolder(out).steps(), default=0)
    messages.print(f"resuming at step {step}" if step else f"no checkpoint in {out} yet: starting at step 0")
    return step
