"""The options that `train` and `distill` share: where a run is kept, how long it is, what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="Folder for checkpoints, metrics.jsonl and curve.png.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps; the preset's recipe by default.")]
BatchSize = Annotated[int | None, typer.Option(help="Sequences a step.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak of the warm-up and cosine schedule.")]
Text = Annotated[Path | None, typer.Option(help="Your own text: a file or a folder. Default: the corpus.")]
Tasks = Annotated[float, typer.Option(help="Share of training tokens from reasoning problems.")]
CheckpointEvery = Annotated[int | None, typer.Option(help="Steps between checkpoints; 0: at the end.")]
EvalEvery = Annotated[int | None, typer.Option(help="Steps between evaluations; 0: at the end.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in --out.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; the rest on stderr.")]
