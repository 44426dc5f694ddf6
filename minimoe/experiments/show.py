"""A record as a table, a line a run; the record itself has much more."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from minimoe import console
from minimoe.experiments.records import training_speed

Rows = list[tuple[str, ...]]
MEANING = {
    "needles found": "percent, by how many tokens back they were said; guessing finds 10",
    "bits/byte": "of the validation text, mean of its domains",
    "rounded": "the same, once quantized",
    "worked": "problems solved when asked for the steps",
    "direct": "when asked for the answer alone",
    "MaxVio": "load of the fullest expert over the mean load, less 1",
    "min": "minutes of training",
    "change": "of bits per byte",
    "drafts": "accepted in greedy text",
    "recalled": "entries of the book whose whole number is right",
    "bits/parameter": "of the book, held by the model",
    "rounded by": "recipe; its row has the entries recalled after that",
    "read": "entries recalled of the half of the book that the student read",
    "unread": "of the half that only the teacher read",
}


def show_record(record: Mapping[str, Any], missing: Sequence[str]) -> None:
    """Prints the runs of an experiment, or the recipes of a measurement, and which runs it lacks."""
    from rich.table import Table

    tables = _tables(record)
    if any("formats" in run for run in record.get("runs", {}).values()):
        tables.append(format_rows(record["runs"]))
    for heads, rows in tables:
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold underline")
        for index, head in enumerate(heads):
            table.add_column(head, justify="right" if index else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.show(table)
    if missing:
        console.show(
            f"Not run yet: {', '.join(missing)}. `minimoe experiments run {record['experiment']}` goes on with them."
        )
    console.show(
        "; ".join(f"{head}: {MEANING[head]}" for heads, _ in tables for head in heads if head in MEANING) + "."
    )
    console.show("All there is, with settings and scores by domain: --json.")


def _tables(record: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Rows]]:
    """Heads and cells, a table for each kind of run: scored on text, on a book of facts, on needles."""
    if "runs" not in record:
        return [recipe_rows(record)]
    kinds: dict[str, dict[str, Any]] = {"full": {}, "recalled": {}, "found": {}}
    for name, run in record["runs"].items():
        kinds[next(key for key in ("found", "recalled", "full") if key in run)][name] = run
    makers = {"full": run_rows, "recalled": fact_rows, "found": needle_rows}
    return [makers[key](runs) for key, runs in kinds.items() if runs] or [run_rows({})]


def needle_rows(runs: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, ...], Rows]:
    """Heads and cells of models that look for needles: the percentage found at each distance."""
    distances = sorted({distance for run in runs.values() for distance in run["found"]}, key=int)
    rows = [
        (name, *(f"{100 * run['found'][far]:.0f}" if far in run["found"] else "" for far in distances))
        for name, run in runs.items()
    ]
    return ("needles found", *distances), rows


def fact_rows(runs: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, ...], Rows]:
    """Heads and cells of models that learned a book of facts: parameters, entries recalled, bits held, once rounded."""
    cells = []
    for name, run in runs.items():
        halves = [f"{run[half]:.1%}" if half in run else "" for half in ("read", "unread")]
        sizes = f"{run['total_params']:,}", f"{run['active_params']:,}"
        cells.append((name, *sizes, f"{run['recalled']:.1%}", f"{run['bits_per_param']:.2f}", *halves))
    heads = ("run", "parameters", "active", "recalled", "bits/parameter", "read", "unread")
    return _filled(heads, cells)


def format_rows(runs: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, ...], Rows]:
    """Heads and cells of what models recall once their weights are rounded: a row for each way and recipe."""
    shares: dict[tuple[str, str], dict[str, float]] = {}
    for name, run in runs.items():
        way, _, seed = name.rpartition("-")
        for recipe, share in run.get("formats", {}).items():
            shares.setdefault((way, recipe), {})[seed] = share
    seeds = sorted({seed for row in shares.values() for seed in row})
    rows = [
        (recipe, way, *(f"{row[seed]:.1%}" if seed in row else "" for seed in seeds))
        for (way, recipe), row in shares.items()
    ]
    return ("rounded by", "run", *(f"seed {seed}" for seed in seeds)), rows


def _filled(heads: tuple[str, ...], cells: list[tuple[str, ...]]) -> tuple[tuple[str, ...], Rows]:
    """Without the columns that no row fills."""
    filled = [index for index in range(len(heads)) if any(row[index] for row in cells)]
    return tuple(heads[index] for index in filled), [tuple(row[index] for index in filled) for row in cells]


def run_rows(runs: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, ...], Rows]:
    """Heads and cells: tokens, bits per byte of the whole validation text and once quantized, problems solved with steps
    and without, drafts accepted, the fullest expert of that text (`minimoe.moe.max_violation`, mean of the layers),
    minutes of training.

    Columns that no run fills are left out.
    """
    cells = []
    for name, run in runs.items():
        tasks = run.get("tasks") or {}
        solved = [f"{tasks[form]['mean_exact_match']:.1%}" if form in tasks else "" for form in ("worked", "direct")]
        rounded = run.get("quantized")
        minutes = run["tokens"] / training_speed(run) / 60
        bits = run["full"]["bits_per_byte"], rounded["bits_per_byte"] if rounded else None
        written = [f"{value:.4f}" if value is not None else "" for value in bits]
        routing = run.get("routing")
        fullest = f"{statistics.mean(routing['max_violation_global']):.2f}" if routing else ""
        drafts = f"{run['drafts']['temperature 0']['acceptance_rate']:.1%}" if "drafts" in run else ""
        cells.append((name, f"{run['tokens'] / 1e6:.2f}M", *written, *solved, drafts, fullest, f"{minutes:.1f}"))
    heads = ("run", "tokens", "bits/byte", "rounded", "worked", "direct", "drafts", "MaxVio", "min")
    return _filled(heads, cells)


def recipe_rows(record: Mapping[str, Any]) -> tuple[tuple[str, ...], Rows]:
    """Heads and cells of a model quantized by every recipe, against its float32 self, on the record's protocol."""
    protocol = record["protocol"]
    before = record["float32"]
    rows: Rows = [("float32", f"{before['bytes'] / 1e6:.2f}", f"{before[protocol]['bits_per_byte']:.4f}", "", "")]
    for name, recipe in record["recipes"].items():
        scored = recipe[protocol]
        change, routes = f"{scored['relative_change']:+.2%}", recipe.get("routing_changed")
        moved = "" if routes is None else f"{routes:.1%}"
        rows.append((name, f"{recipe['bytes'] / 1e6:.2f}", f"{scored['bits_per_byte']:.4f}", change, moved))
    return ("recipe", "megabytes", "bits/byte", "change", "routes changed"), rows
