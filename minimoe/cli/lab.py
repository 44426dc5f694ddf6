"""``minimoe experiments``: the long experiments behind the recorded numbers, each one command that resumes.

An experiment is a list of training runs. Each run lives in a folder of its own, is resumed where it stopped, is scored
on the full validation text when done, and then stands in the experiment's record: a JSON file in `minimoe/records`. A
few experiments train nothing and measure a model that another one left (`MEASUREMENTS`).
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from minimoe.cli import lab_quant, lab_ship, lab_show
from minimoe.cli.lab_run import run_trial
from minimoe.cli.lab_trials import EXPERIMENTS, Trial
from minimoe.console import messages, print_json, start, write_out
from minimoe.errors import UserError
from minimoe.experiments.records import RECORDS, read_record, read_record_file, write_record

app = typer.Typer(help="Long experiments behind the recorded numbers; each resumes.", no_args_is_help=True)
app.command("ship")(lab_ship.ship)


# Experiments that train nothing: from the folder of runs, into the record, saving it as they go.
MEASUREMENTS: dict[str, Callable[[Path, dict[str, Any], Callable[[], None]], None]] = {
    "quant-recipes": lab_quant.recipes,
}


@app.command("list")
def list_experiments() -> None:
    """Name the experiments and say which are recorded.

    Example: minimoe experiments list
    """
    for name, make in {**EXPERIMENTS, **MEASUREMENTS}.items():
        there = (RECORDS / f"{name}.json").is_file()
        done = read_record(name).get("runs", {}) if there else {}
        missing = len(_missing(name, done))
        recorded = f"{missing} of {missing + len(done)} runs missing" if missing else "recorded"
        summary = (make.__doc__ or "").partition("\n")[0].replace("``", "")
        write_out(f"{name} ({recorded if there else 'not recorded'}): {summary}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="An experiment.")],
    json: Annotated[bool, typer.Option("--json", help="The whole record, one JSON object on stdout.")] = False,
) -> None:
    """Print what an experiment found, a line a run.

    Example: minimoe experiments show sparse-vs-dense
    """
    record = read_record(name)
    if json or not {"runs", "recipes"} & set(record):
        print_json(record)
        return
    lab_show.show_record(record, [trial.name for trial in _missing(name, record.get("runs", {}))])


@app.command("run")
def run(
    name: Annotated[str, typer.Argument(help="An experiment; see `minimoe experiments list`.")],
    work: Annotated[Path, typer.Option(help="Folder for the runs' checkpoints.")] = Path("runs/lab"),
    record: Annotated[Path | None, typer.Option(help="Record to write; default: the one in the package.")] = None,
    minutes: Annotated[float, typer.Option(help="Start no further run after this long.")] = 1e9,
    only: Annotated[
        str, typer.Option(help="Runs whose name matches, as '*-0'; two processes may share a record.")
    ] = "*",
) -> int:
    """Run an experiment, or what is left of it; Ctrl-C loses nothing.

    Example: minimoe experiments run sparse-vs-dense --work runs/lab
    """
    if name not in {**EXPERIMENTS, **MEASUREMENTS}:
        raise UserError(f"experiment {name!r} is not known; choose one of {', '.join({**EXPERIMENTS, **MEASUREMENTS})}")
    path = record or RECORDS / f"{name}.json"
    values: dict[str, Any] = {"experiment": name, "command": f"minimoe experiments run {name}"}
    if path.is_file():
        values = read_record_file(path)
    start(f"experiment {name}")
    if name in MEASUREMENTS:
        MEASUREMENTS[name](work, values, lambda: write_record(path, values))
        return 0
    values.setdefault("runs", {})
    began = time.monotonic()
    while (trial := _next(name, values["runs"], only)) is not None:
        if time.monotonic() - began > 60 * minutes:
            messages.print("time is up; the same command continues")
            break
        outcome = run_trial(trial, work, work / name / trial.name)
        if outcome is None:
            return 130
        if path.is_file():  # another process may have added runs of its own
            values["runs"] |= read_record_file(path)["runs"]
        values["runs"][trial.name] = outcome
        write_record(path, values)
        messages.print(f"{trial.name}: {outcome['full']['bits_per_byte']:.3f} bits per byte (full)")
    return 0


def _missing(name: str, done: Mapping[str, Any]) -> list[Trial]:
    """The runs of an experiment that are not done; none of a measurement."""
    return [trial for trial in EXPERIMENTS[name](done) if trial.name not in done] if name in EXPERIMENTS else []


def _next(name: str, done: Mapping[str, Any], only: str) -> Trial | None:
    return next((trial for trial in _missing(name, done) if fnmatch.fnmatchcase(trial.name, only)), None)
