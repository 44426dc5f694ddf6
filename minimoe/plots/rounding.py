"""Figures of rounding: by hand, against bits, under a shared scale, and the slope that it has."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Num
from matplotlib.figure import Figure

from minimoe.errors import UserError
from minimoe.plots import style

DECIBELS_PER_BIT = 20 * math.log10(2)
MARKERS = "osD^vP*"
STYLES = ("-", "--", ":", "-.")


def rounding(
    values: Num[np.ndarray, " n"],
    grids: Mapping[str, tuple[Num[np.ndarray, " _"], Num[np.ndarray, " _"]]],
    title: str = "Numbers and the grid they are rounded to",
) -> Figure:
    """One row for each grid: its points are ticks, the numbers are rings, an arrow leads to the rounded value.

    Args:
      values: the exact numbers.
      grids: under the name of each way, all values that it can give and what it gives for ``values``. Points of a grid
        outside the numbers' range are not drawn.
      title: above the figure.

    Raises:
      UserError: if there is no grid, or one has not a result for each number.
    """
    if not grids or any(len(rounded) != len(values) for _, rounded in grids.values()):
        raise UserError(f"grids {list(grids)} must each give {len(values)} rounded values; give at least one grid")
    figure = style.blank(title, height_in=0.8 + 0.85 * len(grids))
    axes = figure.subplots()
    style.dress(axes, x="value", grid=None)
    everything = np.concatenate([values, *(rounded for _, rounded in grids.values())])
    low, high = float(everything.min()), float(everything.max())
    room = 0.04 * (high - low or 1.0)
    for row, (points, rounded) in enumerate(grids.values()):
        shade = style.color_of(row)
        seen = points[(points >= low - room) & (points <= high + room)]
        axes.vlines(seen, row + 0.18, row + 0.36, color=style.blend(shade, "white", 0.35), linewidth=0.8)
        axes.plot(values, np.full(len(values), row - 0.3), "o", markersize=6, color="white", markeredgecolor=style.INK)
        axes.plot(rounded, np.full(len(rounded), row + 0.27), "o", markersize=4.5, color=shade)
        for before, after in zip(values, rounded, strict=True):
            look = {"arrowstyle": "-|>", "color": shade, "linewidth": 1.0, "shrinkA": 4, "shrinkB": 3}
            axes.annotate("", (float(after), row + 0.27), (float(before), row - 0.3), arrowprops=look)
    axes.set_xlim(low - room, high + room)
    style.name_rows(axes, list(grids))
    return figure


def error_against_bits(
    panels: Mapping[str, Mapping[str, tuple[float, float]]], title: str = "Error against bits"
) -> Figure:
    """Signal to noise (decibels, higher is better) against bits per value, scales included; one panel for each array.

    The dashed line is 6.02 dB a bit: no code, however clever, does better on independent normal numbers.

    Args:
      panels: (bits per value, decibels) under the name of each way, under the name of each array. A way has the same
        colour and marker in all panels.
      title: above the figure.

    Raises:
      UserError: if there is nothing to draw.
    """
    names = list(dict.fromkeys(name for points in panels.values() for name in points))
    if not names:
        raise UserError(f"panels {list(panels)} hold no point; give at least one")
    figure = style.blank(title, height_in=3.7)
    drawn = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    widest = max(bits for points in panels.values() for bits, _ in points.values())
    for axes, (label, points) in zip(drawn, panels.items(), strict=True):
        style.dress(axes, x="bits per value", title=label, grid="both")
        line = np.array([0.0, 1.05 * widest])
        axes.plot(line, DECIBELS_PER_BIT * line, color=style.INK, linewidth=1.0, linestyle="--")
        for name, (bits, decibels) in points.items():
            index = names.index(name)
            axes.plot([bits], [decibels], MARKERS[index % len(MARKERS)], color=style.color_of(index), markersize=6)
    lowest = min(bits for points in panels.values() for bits, _ in points.values())
    values = [decibels for points in panels.values() for _, decibels in points.values()]
    drawn[0].set_xlim(max(0.0, lowest - 0.6), 1.05 * widest)
    drawn[0].set_ylim(min(0.0, *values) - 1.0, 1.1 * max(*values, DECIBELS_PER_BIT * lowest))
    drawn[0].set_ylabel("signal to noise (dB)", fontsize=style.LABEL_PT)
    handles = [
        axes.plot([], [], MARKERS[i % len(MARKERS)], color=style.color_of(i), linestyle="", label=name)[0]
        for i, name in enumerate(names)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(5, len(names)), frameon=False, fontsize=style.TICK_PT
    )
    return figure


def staircase(
    x: Float[np.ndarray, " n"],
    rounded: Float[np.ndarray, " n"],
    slopes: Mapping[str, Float[np.ndarray, " n"]],
    title: str = "A staircase, and the slope that training pretends it has",
) -> Figure:
    """Above, the rounded value against the exact one; below, the slope by each rule.

    Args:
      x: ascending. rounded: of each x.
      slopes: of each x, under the name of each rule.
      title: above the figure.
    """
    figure = style.blank(title, height_in=4.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.6, 1.0))
    style.dress(above, y="rounded weight", grid="both")
    above.plot(x, x, color=style.QUIET, linewidth=1.0, linestyle="--")
    above.plot(x, rounded, color=style.color_of(0), linewidth=1.8)
    style.dress(below, x="weight", y="slope")
    for index, slope in enumerate(slopes.values()):
        dashes = STYLES[index % len(STYLES)]
        below.plot(x, slope, color=style.color_of(index + 1), linewidth=1.8, linestyle=dashes)
    below.set_ylim(-0.1, 1.25 * max(1.0, *(float(slope.max()) for slope in slopes.values())))
    style.label_key(
        below, style.with_dashes(list(slopes), STYLES), [style.color_of(index + 1) for index in range(len(slopes))]
    )
    return figure
