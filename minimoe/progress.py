"""Training with a progress bar: what commands, experiments and the tour show while a model learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimoe.console import Bar, messages

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer, TrainingData
    from minimoe.training import RunConfig, StepMetrics, TrainResult


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
