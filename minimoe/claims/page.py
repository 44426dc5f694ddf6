"""The ledger and the ladder in Markdown: ``notebooks/CLAIMS.md``, and the tables of ``minimoe claims``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from minimoe.claims.again import TOLERANCES
from minimoe.claims.row import Row
from minimoe.claims.rows import ledger
from minimoe.claims.rungs import BATCH, CHIP, EUROS_PER_HOUR, FIELDS, Rung, ladder
from minimoe.experiments.results import table

HEAD = """# The claims, one by one

Written by `minimoe claims --out notebooks/CLAIMS.md`, from the records of `minimoe/records`, the configs, the published sizes
and the weights of the package. Differences are followed by the seeds they come from. A verdict speaks of models of 2 to 11
million parameters unless it says *published sizes*. `minimoe claims --run` measures again here what takes minutes, and marks
what differs."""
LABELS = {
    "means": "What it means",
    "published": "At the published sizes",
    "text": "Text",
    "reasoning": "Reasoning",
    "knowledge": "Knowledge",
    "other": "Otherwise",
    "verdict": "**Verdict**",
    "not_established": "What this does not establish",
    "command": "Measured again by",
}


def claims_page() -> str:
    """The whole page."""
    rows = list(ledger().values())
    verdicts = [(f"{row.number}", row.claim, f"**{row.answer}**{row.verdict[len(row.answer) :]}") for row in rows]
    parts = [HEAD, table(("", "claim", "verdict"), verdicts).replace("---:", "---")]
    for row in rows:
        parts += [f"## {row.number}. {row.claim}", describe(row)]
    parts += [
        "## The ladder",
        *ladder_page(ladder()),
        "## What `--run` measures, and how far it may differ",
        tolerances(),
    ]
    return "\n\n".join(parts) + "\n"


def describe(row: Row) -> str:
    """One row as a table of two columns.

    Example:
      >>> from minimoe.claims import ledger
      >>> describe(ledger()["rivals"]).splitlines()[0]
      '| | |'
    """
    values = row.to_record() | {"verdict": f"**{row.verdict}**", "command": f"`{row.command}`"}
    lines = [f"| {label} | {values[name]} |" for name, label in LABELS.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def ladder_page(rungs: Sequence[Rung]) -> list[str]:
    """The ladder: what changes, the values with their ratio to the rung before and to the first, and why some are empty."""
    changes = "\n".join(f"{index}. **{rung.name}**: {rung.change}." for index, rung in enumerate(rungs, 1))
    lines = (
        (label, *(cell(rung, name, form, index) for index, rung in enumerate(rungs)))
        for name, (label, _, form) in FIELDS.items()
    )
    caption = (
        "In brackets: times the rung before (the exported one: times the distilled one), then times the first. "
        "Facts per parameter are those of small models of one book (dense; 4 experts; those rounded). Euros: "
        f"{BATCH} sequences on one {CHIP}, at best, at {EUROS_PER_HOUR:g} euros an hour (assumed). Tokens a second: "
        "one sequence, the best of some rounds, on two cores."
    )
    return [changes, table(("", *(rung.name for rung in rungs)), lines), caption, *_reasons(rungs)]


def cell(rung: Rung, name: str, form: str, index: int) -> str:
    """A value and its two ratios; a dash where there is none."""
    value = rung.values[name]
    if value is None:
        return "-"
    ratios = [] if index == 0 else [rung.before[name], rung.first[name]]
    shown = ", ".join("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
    return format(value, form) + (f" ({shown})" if ratios else "")


def _reasons(rungs: Iterable[Rung]) -> list[str]:
    found = [f"- {rung.name}, {FIELDS[name][0]}: {why}." for rung in rungs for name, why in rung.why.items()]
    return ["Empty, and why:", "\n".join(found)] if found else []


def tolerances() -> str:
    """What is measured again, and the tolerance of each number."""
    rows = [
        (row, name, "none: it is the machine's" if most is None else "equal" if most == 0 else f"±{most:g}")
        for row, names in TOLERANCES.items()
        for name, most in names.items()
    ]
    return table(("row", "number", "may differ by"), rows).replace("---:", "---")
