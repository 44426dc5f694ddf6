"""``minimoe bench predict``."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from minimoe import console
from minimoe.errors import UserError


def predict(
    model: Annotated[list[str] | None, typer.Option(help="nano, dense-nano, v4-nano, small, dense-small.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Sequences decoded at once; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; the fastest counts.")] = 5,
    figure: Annotated[Path | None, typer.Option(help="Draw predicted against measured into this file.")] = None,
    record: Annotated[Path | None, typer.Option(help="Write the numbers into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Times of training steps and decoded tokens: predicted from the machine's rates, then measured.

    The machine is measured as by minimoe doctor. Every model is traced: its matmuls by shape, the bytes it moves and its
    operations, each at its own rate, are the prediction. Nothing is fitted to a model. Nothing else should run meanwhile.

    Example: minimoe bench predict --model nano --batch 1 --batch 8
    """
    from minimoe.bench.predict_models import BATCHES, MODEL_NAMES
    from minimoe.bench.timing import environment
    from minimoe.process import keep_memory

    names, sizes = list(dict.fromkeys(model or MODEL_NAMES)), list(dict.fromkeys(batch or BATCHES))
    if unknown := set(names) - set(MODEL_NAMES):
        raise UserError(f"--model {min(unknown)!r} is not known; choose one of {', '.join(MODEL_NAMES)}")
    keep_memory()
    console.start()
    from minimoe.bench import predict as benchmark
    from minimoe.cost import measure_machine

    with console.Bar("machine", 1) as bar:
        machine = measure_machine(lambda done, total, what: bar.update(done, what, total=total))
    with console.Bar("models", 1) as bar:
        found = benchmark.measure(
            machine, names, sizes, rounds=rounds, progress=lambda done, total, what: bar.update(done, what, total=total)
        )
    whole = {"benchmark": "predict", "environment": environment(), "settings": {"rounds": rounds}} | found
    _keep(whole, figure, record)
    if as_json:
        console.print_json(whole)
        return
    _show(whole)


def _keep(whole: Mapping[str, Any], figure: Path | None, record: Path | None) -> None:
    from minimoe.files import write_atomically

    if record is not None:
        write_atomically(record, json_text.dumps(whole, separators=(",", ":")) + "\n")
    if figure is not None:
        from minimoe import plots

        plots.save(plots.predicted_times(whole["rows"]), figure)


def _show(whole: Mapping[str, Any]) -> None:
    from rich.table import Table

    rows: Sequence[Mapping[str, Any]] = whole["rows"]
    parts = list(rows[0]["parts_ms"])
    table = Table("", "measured, ms", "predicted, ms", "off", *parts, "peaks alone", title="fastest of the rounds")
    for row in rows:
        what = "a training step" if row["kind"] == "train" else f"a token each for {row['batch']}"
        cells = (f"{row['parts_ms'][part]:.3g}" for part in parts)
        times = (f"{row['measured_ms']:.3g}", f"{row['predicted_ms']:.3g}", f"{row['error']:+.0%}")
        table.add_row(f"{row['model']}, {what}", *times, *cells, f"{row['peak_roofline_ms']:.3g}")
    ours, peaks = whole["errors"]["predicted"], whole["errors"]["peak_roofline"]
    console.show(
        table,
        f"Median error {ours['median_error']:.0%}, largest {ours['largest_error']:.0%}.",
        f"From peak and bandwidth alone: median {peaks['median_error']:.0%}, largest {peaks['largest_error']:.0%}.",
    )
