"""All exercises by id, and the table that lists them."""

from __future__ import annotations

import dataclasses
import difflib
import html
from collections.abc import Sequence
from typing import Any

from minimoe.errors import UserError
from minimoe.exercises import lesson01, lesson02, lesson03, lesson04, lesson05, lesson06, lesson07, lesson08, lesson09
from minimoe.exercises.record import Exercise


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text that read well in a terminal and in a notebook."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __str__(self) -> str:
        lines: Sequence[tuple[str, ...]] = (self.columns, *self.rows)
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join(line.rstrip() for line in [*text, *([self.note] if self.note else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        body = "".join(
            "<tr>" + "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in row) + "</tr>"
            for row in self.rows
        )
        return f"<table><tr>{head}</tr>{body}</table><p>{html.escape(self.note)}</p>"


class Catalogue(dict[str, Exercise]):
    """Exercises by id, in the order of the lessons. An unknown id is a `UserError` that names the close ones."""

    def __missing__(self, id: Any) -> Exercise:
        close = difflib.get_close_matches(str(id), self, n=3, cutoff=0.4)
        close += [known for known in self if str(id) and str(id) in known and known not in close]
        known = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(self)}"
        raise UserError(f"no exercise {id!r}; {known}")

    def table(self) -> Table:
        rows = tuple(
            (e.id, f"{e.lesson:02d}", f"{e.difficulty}/5", str(e.minutes), str(e.points), e.title)
            for e in self.values()
        )
        return Table(("exercise", "lesson", "difficulty", "minutes", "points", "title"), rows)

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


LESSONS = (lesson01, lesson02, lesson03, lesson04, lesson05, lesson06, lesson07, lesson08, lesson09)
CATALOGUE = Catalogue({exercise.id: exercise for lesson in LESSONS for exercise in lesson.EXERCISES})
