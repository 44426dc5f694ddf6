"""Figures of quantized models: bars side by side, and what calibration is worth to each expert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from minimoe.errors import UserError
from minimoe.plots import style
from minimoe.plots.rounding import MARKERS


def compared(
    rows: Mapping[str, Mapping[str, float]],
    quantity: str,
    title: str,
    write: Callable[[float], str] = "{:.3g}".format,
) -> Figure:
    """Groups of bars that start at zero, each with its number: one group for each row, one colour for each series.

    Args:
      rows: values under the name of each series, under the name of each row. A series that a row lacks is left out.
      quantity: for the axis.
      title: above the figure.
      write: makes the numbers beside the bars.

    Raises:
      UserError: if there is nothing to draw.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    if not series:
        raise UserError(f"rows {list(rows)} hold no value; give at least one")
    figure = style.blank(title, height_in=1.2 + 0.2 * len(series) * len(rows) + 0.1 * len(rows))
    axes = figure.subplots()
    style.dress(axes, x=quantity, grid="x")
    thickness = 0.8 / len(series)
    for index, name in enumerate(series):
        for place, row in enumerate(rows.values()):
            if name in row:
                at = place + thickness * (index - (len(series) - 1) / 2)
                axes.barh(at, row[name], height=0.9 * thickness, **style.bar_look(index))
                _write_at(axes, max(0.0, row[name]), at, write(row[name]))
    axes.margins(x=0.18)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    style.name_rows(axes, list(rows))
    if len(series) > 1:
        handles = [axes.barh([0], [0], **style.bar_look(index)) for index in range(len(series))]
        axes.legend(
            handles=handles, labels=series, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False,
            fontsize=style.TICK_PT,
        )  # fmt: skip
    return figure


def gain_by_rows(
    points: Mapping[str, tuple[Num[np.ndarray, " _"], Num[np.ndarray, " _"]]],
    title: str = "What calibration is worth to an expert",
) -> Figure:
    """Error relative to rounding to nearest against the rows that reached an expert, on logarithmic axes.

    Below the dashed line calibration helped. Above the line it made the error larger.

    Args:
      points: rows (at least 1) and error ratios, under the name of each way.
      title: above the figure.

    Raises:
      UserError: if there is nothing to draw.
    """
    if not any(len(rows) for rows, _ in points.values()):
        raise UserError(f"points {list(points)} are empty; give at least one expert")
    figure = style.blank(title, height_in=3.5)
    axes = figure.subplots()
    style.dress(axes, x="calibration rows that reached the expert", y="error / error of plain rounding", grid="both")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.axhline(1.0, color=style.INK, linewidth=1.0, linestyle="--")
    for index, (name, (rows, ratios)) in enumerate(points.items()):
        look: dict[str, Any] = {"marker": MARKERS[index], "color": style.color_of(index), "alpha": 0.65}
        axes.plot(rows, ratios, linestyle="", markersize=5, label=name, **look)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=style.TICK_PT, loc="best")
    return figure


def _write_at(axes: Axes, x: int | float, y: int | float, text: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=style.SMALL_PT, color=style.INK
    )
