"""Figures of hardware: programs under a roofline, steps in their parts, and rows that travel between devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from minimoe.errors import UserError
from minimoe.plots import style

CELLS_WITH_NUMBERS = 256


def roofline(
    peak: float,
    bandwidth: float,
    series: Mapping[str, Sequence[tuple[float, float]]],
    labels: Mapping[str, Sequence[str]] | None = None,
    title: str = "Under the roof",
) -> Figure:
    """Reached FLOP/s against FLOPs a byte, both logarithmic, below the two roofs of a machine.

    Args:
      peak: FLOP/s. bandwidth: bytes a second.
      series: under each name, points of (FLOPs a byte, FLOP/s).
      labels: under a name of ``series``, a short text for each of its points.
      title: above the figure.

    Raises:
      UserError: for no point, or values that a logarithmic axis cannot show.
    """
    points = [point for row in series.values() for point in row]
    if not points or min(min(point) for point in points) <= 0 or min(peak, bandwidth) <= 0:
        raise UserError(
            "a roofline needs at least one point, and only numbers above 0; leave out what was not measured"
        )
    figure = style.blank(title, height_in=4.0)
    axes = figure.subplots()
    style.dress(axes, x="intensity, FLOPs a byte", y="FLOP/s", grid="both")
    ridge = peak / bandwidth
    low = min(ridge, *(x for x, _ in points)) / 2
    high = max(ridge, *(x for x, _ in points)) * 3
    axes.plot([low, ridge, high], [low * bandwidth, peak, peak], color=style.INK, linewidth=1.8)
    axes.axvline(ridge, color=style.QUIET, linewidth=0.8, linestyle=":")
    around: dict[str, Any] = {
        "fontsize": style.SMALL_PT,
        "color": style.INK,
        "textcoords": "offset points",
        "parse_math": False,
    }
    axes.annotate(f"ridge point: {ridge:.3g} FLOPs a byte", (ridge, peak), xytext=(0, 6), ha="center", **around)
    for index, (name, row) in enumerate(series.items()):
        look = {"linestyle": style.DASHES[index % len(style.DASHES)], "marker": "oDs^v"[index % 5], "markersize": 5}
        x, y = np.asarray(row, np.float64).T
        axes.plot(x, y, color=style.color_of(index), linewidth=1.2, label=name, **look)  # type: ignore[arg-type]
        for point, text in zip(row, (labels or {}).get(name, ()), strict=False):
            axes.annotate(text, point, xytext=(4, -10), **around)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(min(low * bandwidth, *(y for _, y in points)) / 2, peak * 3)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(frameon=False, fontsize=style.TICK_PT, loc="lower right")
    return figure


def step_parts(
    rows: Mapping[str, Mapping[str, float]], unit: str = "ms", title: str = "A step, part by part"
) -> Figure:
    """Bars for the parts of each row's step, which go on at the same time: the longest is the step, and is marked.

    Args:
      rows: under each name, a duration for each part; the same parts in all rows.
      unit: of the durations. title: above the figure.

    Raises:
      UserError: for no row, or rows with unlike parts.
    """
    parts = list(next(iter(rows.values()), {}))
    if not parts or any(list(row) != parts for row in rows.values()):
        raise UserError(f"rows={list(rows)} must each have the same parts; give at least one row")
    figure = style.blank(title, height_in=1.1 + 0.15 * len(rows) * (len(parts) + 1))
    axes = figure.subplots()
    style.dress(axes, x=unit, grid="x")
    thickness = 0.8 / len(parts)
    for index, part in enumerate(parts):
        at = np.arange(len(rows)) + (index - (len(parts) - 1) / 2) * thickness
        lengths = [row[part] for row in rows.values()]
        axes.barh(at, lengths, height=0.9 * thickness, label=part, **style.bar_look(index))
        for place, length, row in zip(at, lengths, rows.values(), strict=True):
            longest = length == max(row.values())
            text = f"{length:.3g}" + ("  is the step" if longest else "")
            axes.annotate(
                text, (length, place), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=style.SMALL_PT, color=style.INK, fontweight="bold" if longest else "normal",
            )  # fmt: skip
    axes.set_xlim(0, 1.25 * max(max(row.values()) for row in rows.values()))
    style.name_rows(axes, list(rows))
    axes.legend(frameon=False, fontsize=style.TICK_PT, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(parts))
    return figure


def rows_between(
    tables: Mapping[str, Shaped[np.ndarray, "_ _"]], unit: str = "rows", title: str = "From device to device"
) -> Figure:
    """A table of P by P for each name: what device i (row) sends to device j (column), darker for more.

    Args:
      tables: under each name, what is sent; all on one scale of colours.
      unit: of the numbers, for the label. title: above the figure.

    Raises:
      UserError: for no table, or one that is not square.
    """
    if not tables or any(table.ndim != 2 or table.shape[0] != table.shape[1] for table in tables.values()):
        raise UserError(f"tables={list(tables)} must each be square; give at least one")
    largest = max(float(table.max()) for table in tables.values()) or 1.0
    width = style.WIDTH_IN if len(tables) > 1 else 0.6 * style.WIDTH_IN
    figure = style.blank(title, height_in=0.7 + 0.92 * width / len(tables), width_in=width)
    for axes, (name, table) in zip(np.atleast_1d(figure.subplots(1, len(tables))), tables.items(), strict=True):
        style.dress(axes, title=name, x="to device", y="from device", grid=None)
        axes.imshow(table, cmap="Blues", vmin=0, vmax=1.15 * largest)
        axes.set_xticks(range(len(table)))
        axes.set_yticks(range(len(table)))
        if table.size <= CELLS_WITH_NUMBERS:
            for (i, j), value in np.ndenumerate(table):
                shade = "white" if value > 0.6 * largest else style.INK
                axes.text(
                    j,
                    i,
                    f"{value:.0f}" if value >= 100 else f"{value:.3g}",
                    ha="center",
                    va="center",
                    fontsize=style.SMALL_PT,
                    color=shade,
                )
        axes.annotate(
            f"sum {table.sum():,.6g} {unit}", (1, 0), xycoords="axes fraction", xytext=(0, -26), fontsize=style.TICK_PT,
            textcoords="offset points", ha="right", color=style.INK,
        )  # fmt: skip
    return figure
