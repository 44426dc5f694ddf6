"""How `minimoe bench` prints what it measured: one JSON object, or tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from minimoe import console
from minimoe.console import print_json


def in_words(sizes: Mapping[str, int]) -> str:
    """``T=8 D=4``."""
    return " ".join(f"{name}={size}" for name, size in sizes.items())


def whole_report(benchmark: str, settings: dict[str, Any], reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON object of a benchmark: what was measured, where, and how."""
    from minimoe.bench.timing import environment

    return {"benchmark": benchmark, "environment": environment(), "settings": settings, "reports": reports}


def print_reports(
    benchmark: str, settings: dict[str, Any], reports: list[dict[str, Any]], columns: dict[str, str], as_json: bool
) -> None:
    """One JSON object, or one table a report with its remaining facts below."""
    whole = whole_report(benchmark, settings, reports)
    if as_json:
        print_json(whole)
        return
    from rich.table import Table

    for report in reports:
        named = f" {report['config']} with random weights," if "config" in report else ""
        named += f" {report['situation']}," if "situation" in report else ""
        table = Table(title=f"{benchmark}:{named} {in_words(report['shape'])}")
        for heading in ("", *columns):
            table.add_column(heading, justify="right" if heading else "left", no_wrap=not heading)
        for name, result in report["results"].items():
            table.add_row(name, *(_cell(result.get(key)) for key in columns.values()))
        console.show(table)
        for line in _facts(report):
            console.show(line)
    shown = {name: value for name, value in whole["environment"].items() if name != "memory" and value is not None}
    versions = ", ".join(f"{name} {value}" for name, value in shown.items())
    console.show(f"Median [quartiles] of {settings['rounds']} rounds. {versions}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{_number(value['median'])} [{_number(value['p25'])}, {_number(value['p75'])}]"
    return _number(value)


def _number(value: int | float) -> str:
    """Three significant digits, more for what is above 1000."""
    if not math.isfinite(value) or value == 0:
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _facts(report: dict[str, Any]) -> Iterable[str]:
    """What a report says beside its times, one line each."""
    if "reference" in report and report["reference"] != "measured":
        yield f"Transformers: {report['reference']}"
    if "differences" in report:
        largest = report["differences"]["largest_value"]
        for name, values in report["differences"]["max_abs_difference"].items():
            parts = (f"{key} {value:.1e} of {largest[key]:.1e}" for key, value in values.items())
            yield f"Largest difference from {name}: {', '.join(parts)}"
    if "max_abs_difference" in report:
        parts = (f"{key} {value:.1e}" for key, value in report["max_abs_difference"].items())
        yield f"Largest difference: {', '.join(parts)}"
    if "first_losses" in report:
        for name, losses in report["first_losses"].items():
            yield f"Losses of the first steps, {name}: {', '.join(f'{loss:.6f}' for loss in losses)}"
    if report.get("tokens_identical") is not None:
        yield f"Tokens identical: {report['tokens_identical']} ({report['tokens_agreeing']:.1%} of the new ones)"
        if not report["tokens_identical"]:
            yield f"Tokens before the texts part: {report['tokens_before_parting']} of {report['shape']['new_tokens']}"
    if report.get("speculation"):
        drafts = report["speculation"]
        rate = "none written" if drafts["acceptance_rate"] is None else f"{drafts['acceptance_rate']:.1%}"
        yield f"Drafts accepted: {rate}; {drafts['tokens_per_forward']:.2f} tokens for each forward pass"
        yield f"Speculative tokens identical to plain ones: {drafts['tokens_identical']}"
    if "parameters" in report:
        yield f"Parameters: {report['parameters']['total']:,} total, {report['parameters']['active']:,} active"
    if "max_violation" in report:
        yield f"MaxVio of the load: {report['max_violation']}"
