"""``minimoe doctor``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minimoe import console

if TYPE_CHECKING:
    from minimoe.doctor import Finding


def doctor(
    measure: Annotated[bool, typer.Option(help="Measure matmuls and memory too, about ten seconds.")] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """What this machine can do, and what is wrong with the set-up: versions, devices, cores, memory, cache folder.

    It measures the largest rate of matmuls in float32 and bfloat16, the bandwidth of the memory, and what the smallest
    operation costs. Exit code 0: usable. 1: something must be repaired first, and the lines below say what.

    Example: minimoe doctor --json
    """
    from minimoe.doctor import diagnose, gather

    facts = gather()
    if measure and not facts["devices"]["error"]:
        facts["machine"] = _measured()
    found = diagnose(facts)
    usable = not any(finding.level == "repair" for finding in found)
    if json:
        plain = [{"level": each.level, "what": each.what, "repair": each.repair} for each in found]
        console.print_json(facts | {"findings": plain, "usable": usable})
    else:
        _show(facts, found, usable)
    return 0 if usable else 1


def _measured() -> dict[str, Any]:
    """The record of the machine, with a bar meanwhile."""
    from minimoe.cost import measure_machine

    with console.Bar("measuring", 1) as bar:
        return measure_machine(lambda done, total, what: bar.update(done, what, total=total)).to_record()


def _show(facts: Mapping[str, Any], found: Sequence[Finding], usable: bool) -> None:
    from rich.table import Table

    table = Table("", "", title="this machine", show_header=False)
    for name, value in _rows(facts).items():
        table.add_row(name, value)
    verdict = "usable" if usable else "not usable yet: repair the first lines below"
    console.show(table, verdict, *(f"  {finding}" for finding in found))


def _rows(facts: Mapping[str, Any]) -> dict[str, str]:
    cores, memory, cache = facts["cores"], facts["memory"], facts["cache"]
    rows = {
        "versions": ", ".join(f"{name} {value or 'missing'}" for name, value in facts["versions"].items()),
        "devices": ", ".join(facts["devices"]["names"]) or "none",
        "cores": f"{cores['usable']} usable of {cores['machine']}",
        "memory": f"{_gb(memory['available_bytes'])} free of {_gb(memory['total_bytes'])}",
        "cache folder": f"{cache['folder']}, {cache['files']} files, {_gb(cache['bytes'])}",
        "disk": f"{_gb(cache['free_bytes'])} free there",
        "environment": ", ".join(f"{name}={value}" for name, value in facts["environment"].items()) or "nothing set",
    }
    if machine := facts.get("machine"):
        for kind, rate in machine["peak_flops"].items():
            rows[f"large matmul, {kind}"] = f"{rate / 1e9:,.0f} GFLOP/s"
        for size, rate in machine["bandwidth"]:
            rows[f"moving {size / 2**20:,.0f} MB"] = f"{rate / GB:,.1f} GB/s"
        for few, size, rate in machine["reading"]:
            rows[f"reading {size / 2**20:,.0f} MB of weights, {few} rows"] = f"{rate / GB:,.1f} GB/s"
        for size, rate in machine["turning"]:
            rows[f"turning {size / 2**10:,.0f} KB heads-first"] = f"{rate / GB:,.1f} GB/s"
        for size, rate in machine["slicing"]:
            rows[f"copying pieces out of {size / 2**20:,.0f} MB"] = f"{rate / GB:,.1f} GB/s"
        for kind, rate in machine["per_second"].items():
            rows[f"numbers {kind.replace('exponentials', 'exponentiated')}"] = f"{rate / 1e9:.2f} billion a second"
        for size, seconds in machine["call_seconds"]:
            rows[f"an operation of {size}"] = f"{1e9 * seconds:.0f} ns"
    return rows


GB = 1e9


def _gb(size: int | float | None) -> str:
    return "unknown" if size is None else f"{size / GB:.2f} GB"
