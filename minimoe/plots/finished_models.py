"""Figures that compare finished models: quality by domain, and what each model costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, MaxNLocator, ScalarFormatter

from minimoe.errors import UserError
from minimoe.plots import style

LADDER_FIELDS = ("name", "total_params", "active_params", "flops_per_token")
VALUES_UP_TO = 24  # bars; beyond that their numbers collide


def bits_per_byte_by_domain(
    results: Mapping[str, Mapping[str, float]],
    reference: Mapping[str, float] | None = None,
    reference_name: str = "reference",
    title: str = "Bits per byte by domain (lower is better)",
) -> Figure:
    """Bars grouped by domain, one for each model. A mark across the group is the reference.

    Args:
      results: bits per byte of each domain, under the name of each model. A domain that a model lacks is left empty.
      reference: bits per byte of each domain for something to compare with, such as an n-gram model.
      reference_name: for the legend.
      title: above the figure.

    Raises:
      UserError: if there is nothing to draw.
    """
    domains = list(dict.fromkeys(domain for values in results.values() for domain in values))
    if not domains:
        raise UserError(f"results={dict(results)!r} hold no domain; evaluate at least one model first")
    figure = style.blank(title, height_in=3.5)
    axes = figure.subplots()
    style.dress(axes, y="bits per byte")
    width = 0.8 / len(results)
    for index, (name, values) in enumerate(results.items()):
        heights = np.asarray([values.get(domain, np.nan) for domain in domains], dtype=np.float64)
        at = np.arange(len(domains)) + (index - (len(results) - 1) / 2) * width
        axes.bar(at, heights, width=0.92 * width, label=name, **style.bar_look(index))
        if len(domains) * len(results) <= VALUES_UP_TO:
            _write_heights(axes, at, heights, style.color_of(index))
    if reference is not None:
        _draw_reference(axes, [reference.get(domain, math.nan) for domain in domains], reference_name)
    crowded = sum(len(domain) + 2 for domain in domains) > 80
    labels: dict[str, Any] = {"rotation": 30, "ha": "right"} if crowded else {}
    axes.set_xticks(range(len(domains)), labels=domains, parse_math=False, **labels)
    axes.tick_params(axis="x", length=0)
    # Room for three groups at least, so that a single bar is not a wall.
    margin = 0.6 + max(0.0, (3 - len(domains)) / 2)
    axes.set_xlim(-margin, len(domains) - 1 + margin)
    if len(results) > 1 or reference is not None:
        # Above the axes, where no bar can reach it.
        handles = [*axes.containers, *(line for line in axes.lines if line.get_label() == reference_name)]
        axes.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize=style.TICK_PT
        )
    return figure


def ladder(
    rows: Sequence[Mapping[str, Any]], title: str = "Size, cost and quality (bits per byte: lower is better)"
) -> Figure:
    """One row for each model: total and active parameters, FLOPs per token, bits per byte, as bars with numbers.

    All bars start at zero on a linear scale, so their lengths compare.

    Args:
      rows: mappings with ``name``, ``total_params``, ``active_params`` (counts), ``flops_per_token`` and, where it was
        measured, ``bits_per_byte``. The first row is drawn on top.
      title: above the figure.

    Raises:
      UserError: if there is no row, or one lacks a field.
    """
    for index, row in enumerate(rows):
        missing = [field for field in LADDER_FIELDS if field not in row]
        if missing:
            raise UserError(f"ladder row {index} ({row.get('name', 'no name')}) lacks {missing}; add them")
    if not rows:
        raise UserError("rows=[] is empty; give at least one model")
    figure = style.blank(title, height_in=1.1 + 0.36 * len(rows))
    panels = figure.subplots(1, 3, sharey=True, width_ratios=(1.5, 1.0, 1.0))
    get = {name: np.asarray([_number(row.get(name)) for row in rows]) for name in (*LADDER_FIELDS[1:], "bits_per_byte")}
    _draw_parameters(panels[0], get["total_params"], get["active_params"])
    _draw_amounts(panels[1], get["flops_per_token"], style.PALETTE[2], "FLOPs per token", _amount)
    _draw_amounts(
        panels[2], get["bits_per_byte"], style.PALETTE[4], "bits per byte", "{:.3f}".format, ScalarFormatter()
    )
    panels[0].set_yticks(
        range(len(rows)), labels=[style.shorten(str(row["name"]), 24) for row in rows], parse_math=False
    )
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _draw_parameters(axes: Axes, total: Float[np.ndarray, " n"], active: Float[np.ndarray, " n"]) -> None:
    """The active share as the dark part of the bar; numbers read "active of total"."""
    at = np.arange(len(total))
    axes.barh(at, total, height=0.6, color=style.blend(style.PALETTE[0], "white", 0.65))
    axes.barh(at, active, height=0.6, color=style.PALETTE[0])
    for row, (whole, part) in enumerate(zip(total, active, strict=True)):
        _write_right(axes, row, whole, f"{_count(part)} of {_count(whole)}")
    _dress_row_panel(axes, "parameters: active (dark) of total", total, room=1.75)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))


def _draw_amounts(
    axes: Axes,
    values: Float[np.ndarray, " n"],
    shade: str,
    title: str,
    write: Callable[[float], str],
    ticks: Formatter | None = None,
) -> None:
    axes.barh(np.arange(len(values)), values, height=0.6, color=shade)
    for row, value in enumerate(values):
        _write_right(axes, row, value, write(value) if np.isfinite(value) else "not measured")
    _dress_row_panel(axes, title, values, room=1.5)
    if ticks is not None:
        axes.xaxis.set_major_formatter(ticks)


def _dress_row_panel(axes: Axes, title: str, values: Float[np.ndarray, " n"], room: float) -> None:
    """``room`` (above 1) leaves space for the numbers right of the longest bar."""
    style.dress(axes, title=title, grid="x")
    finite = values[np.isfinite(values)]
    longest = float(finite.max()) if len(finite) else 0.0
    axes.set_xlim(0, room * longest if longest > 0 else 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(axis="y", length=0)


def _draw_reference(axes: Axes, values: Sequence[float], name: str) -> None:
    for group, value in enumerate(values):
        label = name if group == 0 else "_nolegend_"
        axes.plot([group - 0.44, group + 0.44], [value, value], color=style.INK, linewidth=1.6, label=label)


def _write_heights(axes: Axes, at: Float[np.ndarray, " n"], heights: Float[np.ndarray, " n"], shade: str) -> None:
    """Inside the bar at its foot, upright, where neither the reference mark nor a neighbour can cross it."""
    for place, height in zip(at, heights, strict=True):
        if np.isfinite(height):
            color = style.ink_on(shade)
            look: dict[str, Any] = {
                "ha": "center",
                "va": "bottom",
                "rotation": 90,
                "fontsize": style.SMALL_PT,
                "color": color,
                "bbox": {"facecolor": shade, "edgecolor": "none", "pad": 2.5},  # no hatch behind a number
            }
            axes.annotate(f"{height:.3f}", (place, 0), xytext=(0, 4), textcoords="offset points", **look)


def _write_right(axes: Axes, row: int, value: float, text: str) -> None:
    at = (value if np.isfinite(value) else 0.0, row)
    look: dict[str, Any] = {"va": "center", "fontsize": style.TICK_PT, "color": style.INK}
    axes.annotate(text, at, xytext=(4, 0), textcoords="offset points", **look)


def _amount(value: float) -> str:
    """1.23k, 45.6M, 1.57T: three figures."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def _count(value: float) -> str:
    """Parameters are counted in billions (B) where FLOPs have giga (G)."""
    return _amount(value).replace("G", "B")


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
