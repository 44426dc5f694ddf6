"""``minimoe claims``: the ledger, what of it holds when measured again here, and the ladder."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minimoe.console import Bar, print_json, show, start, write_out
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.claims import Row, Rung
    from minimoe.claims.again import Again


def claims(
    run: Annotated[
        bool, typer.Option("--run", help="Measure again here what takes minutes; mark what differs.")
    ] = False,
    ladder: Annotated[bool, typer.Option("--ladder", help="The ladder alone, from dense to exported.")] = False,
    only: Annotated[str | None, typer.Option(help="One row, with all that is known of it, such as tflops.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="With --run: keep what was measured in the package's record.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the page of all claims to a file, in Markdown.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the ladder into this file, such as ladder.png.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """Each claim of the press: what it means, what holds at published sizes and in our models, and what is not established.

    The rows come from records, configs and shipped weights, in seconds. With --run the exit code is 1 if a number differs.

    Example: minimoe claims --only cache

    Example: minimoe claims --run --json

    Example: minimoe claims --ladder --figure ladder.png
    """
    from minimoe.claims import ladder as make_ladder
    from minimoe.claims import ledger
    from minimoe.claims.page import claims_page
    from minimoe.files import check_file, write_atomically

    if record and not run:
        raise UserError("--record keeps what --run measures; give both")
    if record and only is not None:
        raise UserError("--record replaces what was kept of all rows and --only measures one; leave one of them out")
    if only is not None and ladder:
        raise UserError("--only names a row of the ledger and --ladder is none; give one of them")
    if only is not None and figure is not None:
        raise UserError("--figure draws the ladder and --only names a row of the ledger; give one of them")
    for path in filter(None, (out, figure)):
        check_file(path)
    if figure is not None:
        _check_format(figure)
    rows = list(ledger().values())
    if only is not None:
        known = [row.id for row in rows]
        if only not in known:
            raise UserError(f"--only {only!r} is no row; choose one of {', '.join(known)}")
        rows = [row for row in rows if row.id == only]
    again = _measure(only, record) if run else []
    rungs = make_ladder() if only is None else []
    if out is not None:
        write_atomically(out, claims_page())
    if figure is not None:
        _draw(rungs, figure)
    if json:
        found = {"rows": [row.to_record() for row in rows], "ladder": [rung.to_record() for rung in rungs]}
        print_json(found | ({"again": [one.to_record() for one in again]} if run else {}))
    elif ladder:
        _show_ladder(rungs)
    elif only is not None:
        _show_row(rows[0])
    else:
        _show_rows(rows)
    if run and not json:
        _show_again(again)
    return 1 if any(one.same is False for one in again) else 0


def _measure(only: str | None, record: bool) -> list[Again]:
    """Everything again, or one row; with ``record`` the rungs of the ladder too, and all of it is kept."""
    from minimoe.claims.again import measure, measure_rungs
    from minimoe.claims.rungs import RECORD
    from minimoe.experiments import write_record
    from minimoe.experiments.records import RECORDS

    start()
    with Bar("claims", 1) as bar:
        again = measure(lambda done, total, what: bar.update(done, what, total=total), only=only)
    if record:
        with Bar("ladder", 1) as bar:
            rungs = measure_rungs(lambda done, total, what: bar.update(done, what, total=total))
        values: dict[str, Any] = {"experiment": RECORD, "command": "minimoe claims --run --record"}
        values |= {"machine": f"{platform.system()} {platform.machine()}"}
        write_record(RECORDS / f"{RECORD}.json", values | {"values": {a.name: a.now for a in again}, "ladder": rungs})
    return again


def _show_rows(rows: list[Row]) -> None:
    from rich.table import Table

    table = Table("", "row", "the claim, as reported", "verdict", title="what was claimed, and what holds here")
    for row in rows:
        table.add_row(str(row.number), row.id, row.claim, row.verdict)
    show(table, "minimoe claims --only ROW says what was measured, and what that does not establish.")


def _show_row(row: Row) -> None:
    from rich.table import Table

    from minimoe.claims.page import LABELS

    table = Table("", "", title=f"{row.number}. {row.claim}", show_header=False)
    values = row.to_record()
    for name, label in LABELS.items():
        table.add_row(label.strip("*"), values[name])
    show(table)


def _show_ladder(rungs: list[Rung]) -> None:
    from rich.table import Table

    from minimoe.claims.page import cell
    from minimoe.claims.rungs import FIELDS

    table = Table("", *(rung.name for rung in rungs), title="in brackets: times the rung before, times the first")
    for name, (label, _, form) in FIELDS.items():
        table.add_row(label, *(cell(rung, name, form, index) for index, rung in enumerate(rungs)))
    changes = [f"{rung.name}: {rung.change}" for rung in rungs]
    empty = [f"  {rung.name}, {FIELDS[name][0]}: {why}" for rung in rungs for name, why in rung.why.items()]
    show(table, *changes, "", *(["empty, because"] if empty else []), *empty)


def _check_format(figure: Path) -> None:
    """Before anything is measured: minutes later the mistake would cost the figure."""
    from minimoe.plots.style import FORMATS

    if figure.suffix.removeprefix(".").lower() not in FORMATS:
        raise UserError(
            f"--figure {figure.name!r} must end in one of {', '.join('.' + name for name in FORMATS)}; rename it"
        )


def _draw(rungs: list[Rung], path: Path) -> None:
    """Each quantity of the ladder as multiples of the first rung's."""
    from minimoe import plots
    from minimoe.claims.rungs import FIELDS

    titles = {field: title for field, (title, _, _) in FIELDS.items()}
    better = {title: {True: "higher", False: "lower", None: ""}[FIELDS[field][1]] for field, title in titles.items()}
    values = {title: [rung.values[field] for rung in rungs] for field, title in titles.items()}
    plots.save(plots.rungs(values, [rung.name for rung in rungs], better), path)


def _number(value: float) -> str:
    """Counts in full, other numbers to four digits."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _show_again(again: list[Again]) -> None:
    from rich.table import Column, Table

    words = {True: "as recorded", False: "DIFFERS", None: ""}
    table = Table(Column("row", no_wrap=True), "measured again", title="measured here")
    for head in ("recorded", "here", "may differ by"):
        table.add_column(head, justify="right", no_wrap=head != "may differ by")
    table.add_column()
    for one in again:
        recorded = "-" if one.recorded is None else _number(one.recorded)
        most = "" if one.tolerance is None else f"{one.tolerance:g}"
        table.add_row(one.row, one.name, recorded, _number(one.now), most, words[one.same])
    show(table)
    if any(one.same is False for one in again):
        write_out("a number differs by more than its tolerance; see the rows above")
