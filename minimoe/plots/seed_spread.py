"""Figures of runs that differ in their seed alone: how far chance moves a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from minimoe.checks import choice
from minimoe.errors import UserError
from minimoe.plots import records as read
from minimoe.plots import style
from minimoe.plots.curves import X_LABELS
from minimoe.plots.records import Record


def seeds(
    results: Mapping[str, Sequence[float]],
    quantity: str = "bits per byte",
    title: str = "One dot a seed, the bar is their mean",
) -> Figure:
    """One row for each model: a dot for each seed, an upright bar for their mean, a line for their range.

    The axis starts where the results start, not at zero. Readers compare the distance between rows with the spread
    inside a row. The numbers at the right are the mean and the standard deviation (``±``) of the seeds.

    Args:
      results: the values of the seeds, under the name of each model.
      quantity: what the values are, for the axis.
      title: above the figure.

    Raises:
      UserError: if a row is empty.
    """
    empty = [name for name, values in results.items() if not len(values)]
    if empty or not results:
        raise UserError(f"results of {empty or 'no model'} are empty; give at least one seed each")
    figure = style.blank(title, height_in=1.15 + 0.5 * len(results))
    axes = figure.subplots()
    style.dress(axes, x=quantity, grid="x")
    digits = style.decimals(results.values())
    for row, values in enumerate(results.values()):
        shade, array = style.color_of(row), np.asarray(values, dtype=np.float64)
        axes.plot([array.min(), array.max()], [row, row], color=shade, linewidth=1.2)
        axes.plot(array, np.full(len(array), row), "o", color=shade, alpha=0.6, markersize=6)
        axes.plot([array.mean()] * 2, [row - 0.28, row + 0.28], color=shade, linewidth=2.5)
        label = f"{array.mean():.{digits}f}"
        label += f" ± {array.std(ddof=1):.{digits}f}" if len(array) > 1 else ", one seed"
        axes.annotate(
            label, (1.015, row), xycoords=("axes fraction", "data"), va="center", fontsize=style.TICK_PT,
            color=style.blend(shade, "black", 0.25), annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(results)), labels=[style.shorten(name, 28) for name in results], parse_math=False)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)
    return figure


def curves_with_spread(
    groups: Mapping[str, Sequence[Sequence[Record]]], x: str = "tokens", skip: float = 0.0, title: str = ""
) -> Figure:
    """Training loss of groups of seeds: the mean of a group as a line, the range of its seeds as a band.

    Each run is smoothed with a moving average over a tenth of its points (`minimoe.plots.records.smooth`), because the
    noise of single batches would hide the seeds. Mean and range are taken at 200 places that all runs of a group reach.

    Args:
      groups: the records of each run of a group, under the group's name.
      x: "tokens" or "seconds".
      skip: share (0..<1) of the x axis to leave out at its start; the axis then visibly starts later.
      title: above the figure.

    Raises:
      UserError: for an unknown ``x``, or a run without a training record.
    """
    x = choice("x", x, X_LABELS)
    train = {name: [read.of_kind(run, "train") for run in runs] for name, runs in groups.items()}
    if not train or not all(runs and all(runs) for runs in train.values()):
        raise UserError(f"groups {list(groups)} must each hold runs with train records; leave empty ones out")
    figure = style.blank(title or "Training loss, mean and range of the seeds", height_in=3.6)
    axes = figure.subplots()
    style.dress(axes, x=X_LABELS[x], y="loss (nats/token)")
    longest = max(float(read.column(run, x)[-1]) for runs in train.values() for run in runs)
    ends = []
    for index, runs in enumerate(train.values()):
        first = max(skip * longest, *(float(read.column(run, x)[0]) for run in runs))
        last = min(float(read.column(run, x)[-1]) for run in runs)
        at = np.linspace(min(first, last), last, 200)
        values = np.stack([np.interp(at, read.column(run, x), _averaged(run)) for run in runs])
        shade = style.color_of(index)
        axes.fill_between(at, values.min(0), values.max(0), color=shade, alpha=0.2, linewidth=0)
        axes.plot(at, values.mean(0), color=shade, linewidth=1.8, linestyle=style.DASHES[index % len(style.DASHES)])
        ends.append(float(values.mean(0)[-1]))
    style.start_at_zero(axes, np.asarray([longest]), skip * longest)
    if x == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    shades = [style.color_of(index) for index in range(len(train))]
    style.label_ends(axes, ends, style.with_dashes(list(train)), shades)
    return figure


def gaps_over_tokens(
    gaps: Mapping[str, Sequence[Sequence[Sequence[int | float]]]], title: str = "Gap to the baseline"
) -> Figure:
    """Distance of models from a baseline over training: a thin line for each seed, a thick line for their mean.

    Args:
      gaps: under each name, one curve a seed: (tokens, bits per byte minus the baseline's) of each evaluation. All
        curves of a name share their tokens.
      title: above the figure.

    Raises:
      UserError: if a name has no curve, or curves of unlike lengths.
    """
    for name, curves in gaps.items():
        if len({len(curve) for curve in curves} - {0}) != 1:
            raise UserError(
                f"{name}: curves of {[len(curve) for curve in curves]} points; give at least one, all alike"
            )
    if not gaps:
        raise UserError("gaps={} is empty; give at least one")
    figure = style.blank(title, height_in=3.9)
    axes = figure.subplots()
    style.dress(axes, x="training tokens", y="bits per byte minus the baseline's")
    axes.axhline(0.0, color=style.INK, linewidth=1.0)
    longest = 0.0
    for index, (name, curves) in enumerate(gaps.items()):
        table = np.asarray(curves, dtype=np.float64)  # [seeds, evaluations, 2]
        at, values = table[0, :, 0], table[:, :, 1]
        shade, longest = style.color_of(index), max(longest, float(at[-1]))
        axes.plot(at, values.T, color=shade, linewidth=0.7, alpha=0.5)
        look = {"linestyle": ("-", "--", ":", "-.")[index % 4], "marker": "oDs^v"[index % 5], "markersize": 4.5}
        axes.plot(at, values.mean(0), color=shade, linewidth=2.0, label=name, **look)  # type: ignore[arg-type]
    style.start_at_zero(axes, np.asarray([longest]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.annotate(
        "below zero: better than the baseline", (0.01, 0.02), xycoords="axes fraction", fontsize=style.SMALL_PT
    )
    axes.legend(frameon=False, fontsize=style.TICK_PT, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)
    return figure


def _averaged(run: Sequence[Record]) -> Float[np.ndarray, " n"]:
    return read.smooth(read.column(run, "loss"), half_width=len(run) // 20)
