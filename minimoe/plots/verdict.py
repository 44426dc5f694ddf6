"""The closing box of a lesson: what was claimed, what we measured, and whether the claim holds here."""

from __future__ import annotations

import dataclasses

from minimoe.errors import UserError

ANSWERS = ("holds", "holds when", "does not show here", "not testable here")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One claim and its verdict; a notebook shows it as a table."""

    claim: str
    means: str
    measured: str
    says: str
    would_change: str

    def _repr_markdown_(self) -> str:
        rows = {
            "The claim": self.claim,
            "What it means": self.means,
            "What we measured": self.measured,
            "**Verdict**": f"**{self.says}**",
            "What would change our mind": self.would_change,
        }
        lines = [f"| {name} | {_cell(text)} |" for name, text in rows.items()]
        return "\n".join([lines[0], "| --- | --- |", *lines[1:]])


def verdict(claim: str, means: str, measured: str, says: str, would_change: str) -> Verdict:
    """A box for one claim, as the last value of a notebook cell.

    Args:
      claim: as the press reported it.
      means: the claim in exact words.
      measured: sentences with numbers that the cell has computed.
      says: starts with "holds", "holds when ...", "does not show here" or "not testable here"; one sentence.
      would_change: the measurement that would turn the verdict.

    Returns:
      An object that a notebook shows as a table, through ``_repr_markdown_``.

    Raises:
      UserError: if ``says`` starts otherwise, or a text is empty.

    Example:
      >>> box = verdict("It is small.", "Few bytes.", "3 bytes.", "holds", "A larger file.")
      >>> print(box._repr_markdown_().splitlines()[4])
      | **Verdict** | **holds** |
    """
    box = Verdict(claim, means, measured, says, would_change)
    empty = [field.name for field in dataclasses.fields(box) if not getattr(box, field.name).strip()]
    if empty:
        raise UserError(f"verdict: {', '.join(empty)} must not be empty; write a sentence")
    if not says.startswith(ANSWERS):
        raise UserError(f"verdict: says={says!r} must start with one of {', '.join(map(repr, ANSWERS))}; reword it")
    return box


def _cell(text: str) -> str:
    """Text in one cell of a table: on one line, and without a column of its own."""
    return " ".join(text.split()).replace("|", "\\|")
