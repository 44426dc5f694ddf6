"""Figures of balance over time: a collapse as a film, losses side by side, the bias at work, what balance is worth.

Axis letters: E experts, K experts per token, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Num
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from minimoe.errors import UserError
from minimoe.plots import style
from minimoe.plots.records import smooth
from minimoe.plots.routing import relative_share

MARKERS = "osD^vP*"
STROKES = ("-", "--", ":", "-.")
RAW_UP_TO = 100  # points of a line; beyond that the raw values are a smear behind their average


def load_film(
    loads: Num[np.ndarray, "steps E"], frames: Sequence[int] = (), title: str = "The load of every expert, step by step"
) -> Figure:
    """The load of one layer over the steps of a run: single frames as bars above, all steps as an image below.

    Load is relative to an even split: 1.0 is the mean load; 0.0, drawn as a cross, is an expert without a token.

    Args:
      loads: assignments per expert, counts or shares, one row a step.
      frames: steps to draw as bars, counted from 1; about six fit. Without any, only the image is drawn.
      title: above the figure.

    Raises:
      UserError: if there is no step, or a frame lies outside the run.
    """
    steps, experts = loads.shape
    outside = [frame for frame in frames if not 1 <= frame <= steps]
    if not steps or outside:
        raise UserError(f"frames {outside} are not among the {steps} steps of loads; count them from 1")
    relative = relative_share(loads)
    top = max(2.0, float(np.nanmax(relative, initial=2.0)))
    figure = style.blank(title, height_in=3.0 + (1.4 if frames else 0.0))
    grid = figure.add_gridspec(2, max(1, len(frames)), height_ratios=(1.0, 2.0) if frames else (0.001, 1.0))
    shared: Axes | None = None
    for index, frame in enumerate(frames):
        shared = panel = figure.add_subplot(grid[0, index], sharey=shared)
        _draw_frame(panel, np.nan_to_num(relative[frame - 1]), top)
        panel.set_title(f"step {frame}", fontsize=style.TICK_PT, color=style.INK, loc="left")
        panel.set_ylabel("load / mean" if index == 0 else "", fontsize=style.TICK_PT)
        panel.tick_params(labelleft=index == 0)
    axes = figure.add_subplot(grid[1, :])
    style.dress(axes, x="step", y="expert", grid=None)
    palette = colormaps["RdBu_r"].with_extremes(bad=style.FAINT)
    image = axes.imshow(
        np.ma.masked_invalid(relative.T), cmap=palette, norm=TwoSlopeNorm(vmin=0.0, vcenter=1.0, vmax=top),
        aspect="auto", interpolation="nearest", extent=(0.5, steps + 0.5, experts - 0.5, -0.5),
    )  # fmt: skip
    if experts <= 16:
        axes.set_yticks(range(experts))
    for frame in frames:
        axes.plot([frame], [-0.75], marker="v", color=style.INK, markersize=4, clip_on=False)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_ticks([0.0, 1.0, *np.unique(np.floor(np.linspace(1.0, top, 3)[1:]))])
    bar.set_label("load / mean load", fontsize=style.TICK_PT)
    bar.ax.tick_params(labelsize=style.TICK_PT)
    return figure


def _draw_frame(axes: Axes, values: Float[np.ndarray, " E"], top: float) -> None:
    style.dress(axes)
    shades = [style.ALARM if value > 2.0 else style.PALETTE[0] for value in values]
    axes.bar(np.arange(len(values)), values, width=0.8, color=shades)
    dead = np.flatnonzero(values == 0)
    axes.plot(dead, np.full(len(dead), 0.06 * top), linestyle="", marker="x", color=style.ALARM, markersize=4)
    axes.axhline(1.0, color=style.INK, linewidth=0.9, linestyle="--")
    axes.set_ylim(0, 1.05 * top)
    axes.set_xlim(-0.7, len(values) - 0.3)
    axes.set_xticks([])


def over_steps(
    panels: Mapping[str, Mapping[str, Sequence[float] | Float[np.ndarray, " n"]]],
    title: str = "Over the steps of training",
    events: Mapping[str, int] | None = None,
    half_width: int | None = None,
    every: int = 1,
) -> Figure:
    """Panels above each other with one line for each run: single steps faint (up to 100), a moving average on top.

    Args:
      panels: the values of every step, under the name of each run, under the label of each panel's axis. A run has the
        same colour and the same stroke in all panels.
      title: above the figure.
      events: steps to mark with an upright line, under what happened there.
      half_width: points of the moving average on either side; a hundredth of the run if not given.
      every: steps from one value to the next; the first value is of step ``every``.

    Raises:
      UserError: if there is nothing to draw.
    """
    names = list(dict.fromkeys(name for runs in panels.values() for name in runs))
    if not names:
        raise UserError(f"panels {list(panels)} hold no run; give at least one")
    figure = style.blank(title, height_in=0.8 + 1.9 * len(panels))
    drawn = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    longest = max(len(values) for runs in panels.values() for values in runs.values())
    for axes, (label, runs) in zip(drawn, panels.items(), strict=True):
        style.dress(axes, y=label)
        highest = 0.0
        for name, given in runs.items():
            values, shade = np.asarray(given, dtype=np.float64), style.color_of(names.index(name))
            at = every * np.arange(1, len(values) + 1)
            if len(at) <= RAW_UP_TO:
                axes.plot(at, values, color=shade, linewidth=0.7, alpha=0.25)
            stroke = STROKES[names.index(name) % len(STROKES)]
            look = {"color": shade, "linestyle": stroke, "linewidth": 1.8, "marker": "o" if len(at) < 3 else ""}
            axes.plot(at, smooth(values, half_width), label=name, **look)  # type: ignore[arg-type]
            highest = max(highest, float(np.nanmax(values, initial=0.0)))
        if all(np.nanmin(values, initial=0.0) >= 0 for values in runs.values()):
            axes.set_ylim(-0.04 * (highest or 1.0), 1.06 * (highest or 1.0))
        for step in (events or {}).values():
            axes.axvline(step, color=style.QUIET, linewidth=1.0, linestyle=":")
    for what, step in (events or {}).items():
        drawn[0].annotate(
            what, (step, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -9), textcoords="offset points",
            fontsize=style.SMALL_PT, color=style.QUIET,
        )  # fmt: skip
    style.start_at_zero(drawn[-1], np.asarray([float(every * longest)]))
    drawn[-1].set_xlabel("step", fontsize=style.LABEL_PT)
    look = {"frameon": False, "fontsize": style.TICK_PT, "handlelength": 2.6}
    drawn[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.03), **look)  # type: ignore[arg-type]
    return figure


def loss_ranges(
    values: Mapping[str, Mapping[str, float]],
    title: str = "What each loss says of each routing",
    quantity: str = "loss",
) -> Figure:
    """One row for each loss: a marker for each state of the router, and a bar from the lowest to the highest.

    A dashed line marks 1.0, where a loss that is 1 when balanced should have its lowest value.

    Args:
      values: the loss under the name of each state, under the name of each loss.
      title: above the figure.
      quantity: for the axis.

    Raises:
      UserError: if a loss lacks a state that another has.
    """
    states = list(dict.fromkeys(state for row in values.values() for state in row))
    if not states or any(set(row) != set(states) for row in values.values()):
        raise UserError(f"every loss must have the states {states}; give each of them a value")
    figure = style.blank(title, height_in=1.5 + 0.34 * len(values))
    axes = figure.subplots()
    style.dress(axes, x=quantity, grid="x")
    axes.axvline(1.0, color=style.INK, linewidth=1.0, linestyle="--")
    offsets = 0.5 * (np.arange(len(states)) - (len(states) - 1) / 2) / max(1, len(states))
    for row, losses in enumerate(values.values()):
        low, high = min(losses.values()), max(losses.values())
        axes.barh(row, high - low, left=low, height=0.72, color=style.blend(style.FAINT, "white", 0.4))
        for index, state in enumerate(states):
            marker, shade = MARKERS[index % len(MARKERS)], style.color_of(index)
            label = state if row == 0 else "_nolegend_"
            axes.plot([losses[state]], [row + offsets[index]], marker, color=shade, markersize=5.5, label=label)
    lowest, highest = (pick(pick(losses.values()) for losses in values.values()) for pick in (min, max))
    room = 0.04 * (highest - lowest or 1.0)
    axes.set_xlim(min(lowest, 1.0) - room, max(highest, 1.0) + room)
    style.name_rows(axes, list(values))
    _legend_above(axes, columns=min(5, len(states)))
    return figure


def before_and_after(
    panels: Mapping[str, Mapping[str, tuple[float, float]]],
    quantity: str = "MaxVio",
    title: str = "Before (ring) and after (dot)",
) -> Figure:
    """One panel for each starting point, one row for each method: a line from the value before to the value after.

    Args:
      panels: (before, after) under the name of each method, under the name of each panel. A row that a panel lacks is
        left empty.
      quantity: for the axes.
      title: above the figure.

    Raises:
      UserError: if there is nothing to draw.
    """
    rows = list(dict.fromkeys(row for panel in panels.values() for row in panel))
    if not rows:
        raise UserError(f"panels {list(panels)} hold no row; give at least one")
    figure = style.blank(title, height_in=1.2 + 0.3 * len(rows))
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    top = max(max(pair) for panel in panels.values() for pair in panel.values())
    for axes, (name, panel) in zip(drawn, panels.items(), strict=True):
        style.dress(axes, title=name, x=quantity, grid="x")
        for row, (before, after) in panel.items():
            at, shade = rows.index(row), style.color_of(rows.index(row))
            axes.plot([before, after], [at, at], color=shade, linewidth=1.4, alpha=0.7)
            axes.plot([before], [at], "o", markerfacecolor="white", markeredgecolor=shade, markersize=6)
            axes.plot([after], [at], "o", color=shade, markersize=6)
        axes.set_xlim(-0.05 * (top or 1.0), 1.08 * (top or 1.0))
        axes.axvline(0.0, color=style.INK, linewidth=1.0, linestyle="--")
        style.name_rows(axes, rows)
    return figure


def choices_under_bias(
    affinity: Num[np.ndarray, "T E"],
    bias: Num[np.ndarray, " E"],
    top_k: int,
    title: str = "Who is chosen by affinity plus bias",
) -> Figure:
    """Tokens as columns, experts as rows: filled where ``affinity + bias`` is among the token's K largest.

    Dark cells are chosen with and without the bias, orange cells only with it, ringed cells only without it. Bars on
    the right are the load against the mean (dashed). Equal scores go to the lower expert.

    Args:
      affinity: of every token for every expert.
      bias: of every expert; it selects and does nothing else.
      top_k: K.
      title: above the figure.

    Raises:
      UserError: if K is not in 1..E.
    """
    tokens, experts = affinity.shape
    if not 1 <= top_k <= experts:
        raise UserError(f"top_k={top_k} must be in 1..{experts}")
    plain, chosen = (_top(affinity + extra, top_k) for extra in (np.zeros(experts), bias))
    figure = style.blank(title, height_in=1.3 + 0.36 * experts)
    board, bars = figure.subplots(1, 2, sharey=True, width_ratios=(3.2, 1.0))
    style.dress(board, x="token", grid=None)
    for (token, expert), here in np.ndenumerate(chosen):
        was = plain[token, expert]
        shade = (style.PALETTE[0] if was else style.ALARM) if here else style.blend(style.FAINT, "white", 0.5)
        edge = style.ALARM if was and not here else "none"
        board.barh(expert, 0.8, left=token - 0.4, height=0.74, color=shade, edgecolor=edge, linewidth=1.6)
    board.set_xlim(-0.6, tokens - 0.4)
    board.set_xticks(range(0, tokens, max(1, tokens // 8)))
    style.name_rows(board, [f"expert {e}  {float(b):+.2f}" for e, b in enumerate(bias)])
    load = chosen.sum(axis=0)
    mean = tokens * top_k / experts
    style.dress(bars, x="load", title=f"MaxVio {load.max() / mean - 1:.2f}", grid="x")
    bars.barh(np.arange(experts), load, height=0.74, color=style.PALETTE[0])
    bars.axvline(mean, color=style.INK, linewidth=1.0, linestyle="--")
    bars.set_xlim(0, tokens)
    bars.tick_params(axis="y", length=0)
    return figure


def _top(scores: Num[np.ndarray, "T E"], top_k: int) -> np.ndarray:
    """Whether each expert is among the K best of each token, ``[T, E]`` bool; ties to the lower id."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return (order[:, :, None] == np.arange(scores.shape[1])).any(axis=1)


def paired_gaps(
    panels: Mapping[str, Mapping[str, Sequence[float]]], title: str = "Difference from the baseline, by seed"
) -> Figure:
    """One panel for each quantity, one row for each method: a marker for each pair of runs, an upright bar for their mean.

    The two runs of a pair share their seed and differ in the method. A dashed line marks no difference. The n-th seed
    has the same marker in all rows.

    Args:
      panels: for each quantity and then each method, the differences of the pairs. A row that a panel lacks stays
        empty.
      title: above the figure.

    Raises:
      UserError: if a row has no pair, or there is no row.
    """
    rows = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    empty = [name for panel in panels.values() for name, values in panel.items() if not len(values)]
    if empty or not rows:
        raise UserError(f"differences of {empty or 'no method'} are empty; give at least one pair each")
    figure = style.blank(title, height_in=1.2 + 0.42 * len(rows))
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (quantity, panel) in zip(drawn, panels.items(), strict=True):
        style.dress(axes, x=quantity, grid="x")
        axes.axvline(0.0, color=style.INK, linewidth=1.0, linestyle="--")
        digits = style.decimals([*panel.values(), [0.0]])  # the differences and the line that they are compared with
        for name, values in panel.items():
            row, array = rows.index(name), np.asarray(values, dtype=np.float64)
            shade = style.color_of(row)
            axes.plot([array.min(), array.max()], [row, row], color=shade, linewidth=1.2)
            for index, value in enumerate(array):
                axes.plot([value], [row], MARKERS[index % len(MARKERS)], color=shade, alpha=0.7, markersize=6)
            axes.plot([array.mean()] * 2, [row - 0.3, row + 0.3], color=shade, linewidth=2.5)
            label = f"{array.mean():+.{digits}f}"
            label += f" ± {array.std(ddof=1):.{digits}f}" if len(array) > 1 else ""
            axes.annotate(
                label, (1.0, row), xycoords=("axes fraction", "data"), xytext=(0, 9), textcoords="offset points",
                ha="right", va="center", fontsize=style.SMALL_PT, color=style.blend(shade, "black", 0.25),
            )  # fmt: skip
        axes.margins(x=0.12)
        style.name_rows(axes, rows)
    return figure


def _legend_above(axes: Axes, columns: int) -> None:
    """Above the axes, where nothing drawn can reach it."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, frameon=False, fontsize=style.TICK_PT,
        columnspacing=1.2, handletextpad=0.4,
    )  # fmt: skip
