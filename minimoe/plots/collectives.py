"""Figure of what devices send each other in a step: counted in the compiled program, against the formula."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from minimoe.errors import UserError
from minimoe.plots import style


def collectives(
    counted: Mapping[str, Mapping[str, float]],
    formula: Mapping[str, float],
    title: str = "What one device sends in a step",
) -> Figure:
    """A bar for each layout, of one part for each kind of collective; a mark where the formula puts the all-to-all.

    Args:
      counted: under each name, bytes by kind, as `minimoe.parallel.collective_bytes` counts them.
      formula: under the same names, bytes of the all-to-all, as `minimoe.parallel.exchange_bytes` gives them.
      title: above the figure.

    Raises:
      UserError: for no layout, or one that has no formula.
    """
    if not counted or set(counted) != set(formula):
        raise UserError(f"counted={list(counted)} and formula={list(formula)} must name the same layouts, at least one")
    kinds = [kind for kind in next(iter(counted.values())) if any(row[kind] for row in counted.values())]
    figure = style.blank(title, height_in=1.5 + 0.45 * len(counted))
    axes = figure.subplots()
    style.dress(axes, x="bytes", grid="x")
    places = np.arange(len(counted), dtype=float)
    start = np.zeros(len(counted))
    for index, kind in enumerate(kinds):
        sizes = np.array([row[kind] for row in counted.values()])
        axes.barh(places, sizes, 0.6, left=start, label=kind, **style.bar_look(index))
        start += sizes
    marks = [formula[name] for name in counted]
    axes.plot(marks, places, linestyle="", marker="|", markersize=22, color=style.INK, label="formula, all-to-all")
    axes.set_yticks(places, list(counted))
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.legend(frameon=False, fontsize=style.SMALL_PT, loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3)
    return figure
