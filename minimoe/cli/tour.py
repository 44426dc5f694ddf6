"""``minimoe tour``: the whole story in one run, and a page to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from minimoe import console
from minimoe.checks import random_seed
from minimoe.console import print_json, start, write_out


def tour(
    out: Annotated[Path, typer.Option(help="Folder for the report; an earlier report there is replaced.")] = Path(
        "minimoe-tour"
    ),
    fast: Annotated[
        bool, typer.Option("--fast", help="A minute instead of five; the race over text comes from a record.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides weights and order of data.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="The report as one JSON object on stdout.")] = False,
) -> int:
    """Try each claim about sparse models: text, facts, collapse, fewer bits, a student, and a dense twin on real text.

    The report says which numbers were measured in this run and which were recorded. Under five minutes on two cores.

    Example: minimoe tour --out my-tour && open my-tour/report.html
    """
    from minimoe.tour import run_tour
    from minimoe.tour.report import prepare

    random_seed("--seed", seed)
    prepare(out)  # before anything is said: a folder of something else is one line
    start("tour: trained models first, then facts and a collapse, fewer bits, and two models that learn the same text")
    values = run_tour(out, fast=fast, seed=seed)
    if values is None:
        return 130
    if json:
        print_json(values)
    else:
        show(values, out)
    return 0


def show(values: dict[str, Any], out: Path) -> None:
    """The tables on the terminal; the claims last, because the last one is what is seen."""
    from rich.table import Table

    table = Table("model", "total", "active", "MFLOPs/token", "bits per byte", "tokens/s", "seconds")
    for row in values["models"]:
        sizes = (
            f"{row['total_params'] / 1e6:.2f}M",
            f"{row['active_params'] / 1e6:.2f}M",
            f"{row['flops_per_token'] / 1e6:.1f}",
        )
        table.add_row(
            row["name"],
            *sizes,
            f"{row['bits_per_byte']:.3f}",
            *(f"{row[measured]:,.0f}" if measured in row else "-" for measured in ("tokens_per_second", "seconds")),
        )
    console.show(table)
    rung = values["quantized"]
    solved = [f"solved of {rung['asked']}"] if rung["asked"] else []
    table = Table(f"{values['writer']} as", "megabytes", "bits per byte", *solved)
    table.add_row("bfloat16", f"{rung['bytes_bfloat16'] / 1e6:.2f}", "-", *["-" for _ in solved])
    rows = [{"name": "float32"} | rung["before"], *rung["recipes"]]
    for row in rows:
        size = f"{row['bytes'] / 1e6:.2f}" if "bytes" in row else "-"
        table.add_row(row["name"], size, f"{row['bits_per_byte']:.3f}", *[str(row["solved"]) for _ in solved])
    console.show(table)
    table = Table("claim", "verdict", "numbers")
    for claim in values["claims"]:
        table.add_row(claim["claim"], claim["verdict"], claim["numbers"])
    console.show(table)
    write_out(f"{out / 'report.html'}: the report, with figures ({values['seconds']:.0f} s in all)")
