"""``minimoe experiments``: the long experiments behind the recorded numbers, each one command that resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minimoe.console import print_json, start, write_out

app = typer.Typer(help="Long experiments behind the recorded numbers; each resumes.", no_args_is_help=True)


@app.command("list")
def list_experiments() -> None:
    """Name the experiments and say which are recorded.

    Example: minimoe experiments list
    """
    from minimoe.experiments import EXPERIMENTS, MEASUREMENTS, missing_runs, read_record
    from minimoe.experiments.records import RECORDS

    for name, make in {**EXPERIMENTS, **MEASUREMENTS}.items():
        there = (RECORDS / f"{name}.json").is_file()
        done = read_record(name).get("runs", {}) if there else {}
        missing = len(missing_runs(name, done))
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
    from minimoe.experiments import missing_runs, read_record
    from minimoe.experiments.show import show_record

    record = read_record(name)
    if json or not {"runs", "recipes"} & set(record):
        print_json(record)
    else:
        show_record(record, [run.name for run in missing_runs(name, record.get("runs", {}))])


@app.command("run")
def run(
    name: Annotated[str, typer.Argument(help="An experiment; see `minimoe experiments list`.")],
    work: Annotated[
        Path | None, typer.Option(help="Folder for the runs' checkpoints; default: runs/experiments.")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Record to write; default: the one in the package.")] = None,
    minutes: Annotated[float, typer.Option(help="Start no further run after this long.")] = 1e9,
    only: Annotated[
        str, typer.Option(help="Runs whose name matches, as '*-0'; two processes may share a record.")
    ] = "*",
    together: Annotated[
        bool, typer.Option("--together", help="All seeds of a run at once, in memory: for an accelerator.")
    ] = False,
) -> int:
    """Run an experiment, or what is left of it; Ctrl-C loses nothing.

    Example: minimoe experiments run sparse-vs-dense --work runs/experiments
    """
    from minimoe.experiments import run_experiment, run_together
    from minimoe.experiments.workplace import default_folder

    start()
    if together:
        run_together(name, work or default_folder(), record, only=only)
        return 0
    return 0 if run_experiment(name, work or default_folder(), record, minutes=minutes, only=only) else 130


@app.command("ship")
def ship(
    name: Annotated[str, typer.Argument(help="What it will be called.")],
    checkpoint: Annotated[Path, typer.Option(help="Its training folder.")],
    recipe: Annotated[str, typer.Option(help="Quantization recipe it is stored with.")] = "int8",
    into: Annotated[Path | None, typer.Option(help="Folder of all shipped models; default: the package's.")] = None,
) -> None:
    """Quantize a trained model, save it in the package, score what was saved, and write its card.

    Example: minimoe experiments ship small --checkpoint runs/experiments/small-hour/small
    """
    from minimoe.experiments.ship import ship_model

    start()
    write_out(f"{name}: {ship_model(name, checkpoint, recipe, into):.4f} bits per byte (full)")


@app.command("results")
def results(
    out: Annotated[Path | None, typer.Option(help="File to write; default: print the page.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="A PNG to draw as well: what idle parameters buy on facts.")
    ] = None,
) -> None:
    """All recorded numbers as one page of tables, in Markdown.

    Example: minimoe experiments results --out notebooks/RESULTS.md --figure notebooks/figures/facts_recalled.png
    """
    from minimoe import plots
    from minimoe.experiments.results import facts_recalled, results_page
    from minimoe.files import write_atomically

    if figure is not None:
        plots.save(facts_recalled(), figure)
    if out is None:
        write_out(results_page().rstrip("\n"))
    else:
        write_atomically(out, results_page())
