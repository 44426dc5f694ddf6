"""The efficiency ladder as one figure: every quantity of every rung, as multiples of the first rung."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from minimoe.errors import UserError
from minimoe.plots import style

COLUMNS = 4


def rungs(
    values: Mapping[str, Sequence[int | float | None]],
    names: Sequence[str],
    better: Mapping[str, str],
    title: str = "Each rung, as a multiple of the first that has a number",
) -> Figure:
    """A panel for each quantity, a bar for each rung, on a scale of multiples: half and twice are equally far from 1.

    Args:
      values: for each quantity one value a rung, None where there is none: the word "none" stands in place of a bar, and "0"
        for a value of 0, which is no multiple.
      names: of the rungs, from the top.
      better: "lower" or "higher" for a quantity, shown beside its name; "" for none.
      title: above the figure.

    Raises:
      UserError: if nothing is given, or a quantity has not one value a rung.
    """
    if not values or not names:
        raise UserError("values or names are empty; give at least one quantity and one rung")
    wrong = [name for name, row in values.items() if len(row) != len(names)]
    if wrong:
        raise UserError(f"{wrong} have not one value for each of the {len(names)} rungs; use None where there is none")
    lines = math.ceil(len(values) / COLUMNS)
    figure = style.blank(title, height_in=0.6 + lines * (0.85 + 0.2 * len(names)), width_in=9.0)
    grid = figure.subplots(lines, COLUMNS, sharey=True, squeeze=False).ravel()
    for axes in grid[len(values) :]:
        axes.set_visible(False)
    for axes, (quantity, row) in zip(grid, values.items(), strict=False):
        words = f"{quantity}\n{better[quantity]} is better" if better.get(quantity) else quantity
        style.dress(axes, title=words, grid="x")
        axes.title.set_fontsize(style.SMALL_PT)
        first = next((value for value in row if value), 1.0)
        powers = [math.log2(value / first) if value else None for value in row]
        reach = max(1.0, *(abs(power) for power in powers if power is not None)) if any(row) else 1.0
        for place, power in enumerate(powers):
            if power is None:
                words, at = "none" if row[place] is None else "0", 0.0
            else:
                axes.barh(place, power, height=0.6, color=style.color_of(place))
                words, at = f"{2**power:.3g}x", max(power, 0.0)
            axes.annotate(
                words, (at, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=style.SMALL_PT,
                color=style.INK,
            )  # fmt: skip
        axes.axvline(0, color=style.QUIET, linewidth=0.8)
        axes.set_xlim(-1.15 * reach, 1.9 * reach)
        step = max(1, int(reach))
        ticks = (-step, 0, step)
        axes.set_xticks(ticks, labels=[f"{2.0**tick:g}" for tick in ticks])
        axes.set_yticks(range(len(names)), labels=list(names), parse_math=False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
    return figure
