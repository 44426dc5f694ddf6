"""Figures of students on the way to their teacher: the share of the gap that each closed, and problems solved.

Bits per byte: smaller is better. Exact match: a share (0..1), larger is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from minimoe.errors import UserError
from minimoe.plots import style

GAP_FIELDS = ("name", "mean", "low", "high")
MARKERS = "osD^vP*"
DASHES = ("-", "--", ":", "-.")


def gap_closed(
    rows: Sequence[Mapping[str, Any]],
    alone: int | float,
    teacher: int | float,
    unit: str = "bits per byte",
    title: str = "How much of the gap each method closes",
    percent: bool = False,
    start: str = "student alone",
) -> Figure:
    """One row for each method: mean as a dot, range of the seeds as a bar, and the share of the gap that it closes.

    A method as good as the student alone closes 0%, one as good as the teacher 100%; a worse one is below 0%. Whether
    lower or higher is better is read off ``alone`` and ``teacher``.

    Args:
      rows: mappings with ``name``, the ``mean`` of the seeds, the ``low``est and ``high``est of them, all in ``unit``,
        and optionally ``seconds`` of training. The first row is drawn on top.
      alone: of the student trained without a teacher, in ``unit``.
      teacher: of the teacher, in ``unit``.
      unit: what the numbers are, for the axis.
      title: above the figure.
      percent: the numbers are shares (0..1), write them as percent.
      start: what the level ``alone`` is called.

    Raises:
      UserError: if there is no row, one lacks a field, or there is no gap.
    """
    for index, row in enumerate(rows):
        missing = [field for field in GAP_FIELDS if field not in row]
        if missing:
            raise UserError(f"row {index} ({row.get('name', 'no name')}) lacks {missing}; add them")
    if not rows or alone == teacher:
        raise UserError(f"{len(rows)} rows, alone={alone}, teacher={teacher}: give at least one row and two levels")
    figure = style.blank(title, height_in=1.5 + 0.36 * len(rows))
    axes = figure.subplots()
    style.dress(axes, x=f"{unit} ({'higher' if teacher > alone else 'lower'} is better)", grid="x")
    write = "{:.1%}".format if percent else "{:.3f}".format
    for at, row in enumerate(rows):
        shade = style.color_of(at)
        axes.plot([row["low"], row["high"]], [at, at], color=shade, linewidth=4.5, alpha=0.35, solid_capstyle="round")
        axes.plot([row["mean"]], [at], "o", color=shade, markersize=7)
    axes.margins(x=0.06)
    if percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    style.name_rows(axes, [str(row["name"]) for row in rows])
    _mark_levels(axes, {start: float(alone), "teacher": float(teacher)}, write)
    columns = [("mean", [write(row["mean"]) for row in rows])]
    columns += [("gap closed", [f"{share_closed(row['mean'], alone, teacher):.0%}" for row in rows])]
    if any(row.get("seconds") is not None for row in rows):
        columns += [("time", [_duration(row.get("seconds")) for row in rows])]
    _write_columns(axes, columns)
    return figure


def share_closed(value: int | float, alone: int | float, teacher: int | float) -> float:
    """How far ``value`` is on the way from ``alone`` to ``teacher``: 0.0 at the first, 1.0 at the second.

    Example:
      >>> share_closed(1.75, alone=2.0, teacher=1.5), share_closed(0.5, alone=0.25, teacher=0.75)
      (0.5, 0.5)
    """
    return float((value - alone) / (teacher - alone)) + 0.0  # never -0.0, which prints as -0%


def exact_match_by_level(
    shares: Mapping[str, Mapping[int, Sequence[int | float]]],
    title: str = "Problems solved, by level",
) -> Figure:
    """Exact match against the level of the problem: a line through the means, an upright bar for the seeds' range.

    Ways stand a little beside each other at each level, so that their bars do not cover one another. Each has a marker
    and a dash of its own.

    Args:
      shares: the exact match (0..1) of each seed, under the level, under the name of each way. A level that a way
        lacks is left out.
      title: above the figure.

    Raises:
      UserError: if a way has no value.
    """
    kept = {name: {level: row[level] for level in sorted(row) if len(row[level])} for name, row in shares.items()}
    empty = [name for name, row in kept.items() if not row]
    if empty or not kept:
        raise UserError(f"shares of {empty or 'no way'} are empty; give at least one level with a seed each")
    figure = style.blank(title, height_in=3.6)
    axes = figure.subplots()
    style.dress(axes, x="level", y="exact match")
    levels = sorted({level for row in kept.values() for level in row})
    ends = []
    for index, row in enumerate(kept.values()):
        shade = style.color_of(index)
        at = np.asarray(list(row)) + 0.06 * (index - (len(kept) - 1) / 2)
        means = [float(np.mean(values)) for values in row.values()]
        axes.vlines(at, [min(v) for v in row.values()], [max(v) for v in row.values()], color=shade, linewidth=1.4)
        marker, dashes = MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)]
        axes.plot(at, means, color=shade, linewidth=1.6, markersize=5, marker=marker, linestyle=dashes)
        ends.append(means[-1])
    axes.set_xticks(levels, labels=[str(level) for level in levels])
    top = max(float(max(values)) for row in kept.values() for values in row.values())
    axes.set_ylim(0, min(1.1 * top, 1.03) or 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    style.label_ends(
        axes, ends, style.with_dashes(list(kept), DASHES), [style.color_of(index) for index in range(len(kept))]
    )
    return figure


def _mark_levels(axes: Axes, levels: Mapping[str, float], write: Callable[[float], str]) -> None:
    """Upright dashed lines with names above: between the lines if there is room, outside them if not."""
    for value in levels.values():
        axes.axvline(value, color=style.INK, linewidth=1.0, linestyle="--", zorder=1)
    left, right = axes.get_xlim()
    wide = abs(max(levels.values()) - min(levels.values())) > 0.55 * (right - left)
    for name, value in levels.items():
        inward = (value == min(levels.values())) == wide
        axes.annotate(
            f"{name} {write(value)}", (value, 1.0), xycoords=("data", "axes fraction"),
            xytext=(-2 if inward else 2, 3), textcoords="offset points", ha="left" if inward else "right",
            fontsize=style.TICK_PT, color=style.INK, annotation_clip=False,
        )  # fmt: skip
    axes.set_xlim(left, right)


def _write_columns(axes: Axes, columns: Sequence[tuple[str, Sequence[str]]]) -> None:
    """A small table right of the axes, a line a row, its heads above."""
    for index, (head, cells) in enumerate(columns):
        look: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "annotation_clip": False}
        shift = 46 + 58 * index
        axes.annotate(
            head, (1.0, 1.0), xycoords="axes fraction", xytext=(shift, 3), fontsize=style.SMALL_PT,
            color=style.QUIET, **look,
        )  # fmt: skip
        for row, cell in enumerate(cells):
            axes.annotate(
                cell, (1.0, row), xycoords=("axes fraction", "data"), xytext=(shift, 0), va="center",
                fontsize=style.TICK_PT, color=style.INK, **look,
            )  # fmt: skip


def _duration(seconds: int | float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
