"""Figures of what sparsity buys and costs: parameters by part, active and total, experts read, time and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from minimoe.errors import UserError
from minimoe.plots import style

IDLE = "routed, idle"
LINES, MARKERS = ("-", "--", ":", "-."), "oDs^v"  # no two rows differ in colour alone
SHARES = (1.0, 0.1, 0.01)  # diagonals of `active_and_total`


def assignments(
    chosen: Sequence[Sequence[int]], num_experts: int, title: str = "Which expert computes which token"
) -> Figure:
    """A grid of tokens and experts, filled where a token uses an expert; a last row for what the batch reads.

    Args:
      chosen: the experts of each token, each in 0..num_experts-1.
      num_experts: E.
      title: above the figure.

    Raises:
      UserError: if there is no token, or an expert out of range.
    """
    table = np.zeros((len(chosen), num_experts), dtype=bool)
    for token, experts in enumerate(chosen):
        if not all(0 <= expert < num_experts for expert in experts):
            raise UserError(f"token {token} uses experts {list(experts)}, but they are 0..{num_experts - 1}")
        table[token, list(experts)] = True
    if not len(chosen):
        raise UserError("chosen=[] is empty; give at least one token")
    rows = np.concatenate([table, table.any(axis=0, keepdims=True)])
    figure = style.blank(
        title, height_in=1.1 + 0.27 * len(rows), width_in=min(style.WIDTH_IN, 3.2 + 0.55 * num_experts)
    )
    axes = figure.subplots()
    style.dress(axes, x="expert", grid=None)
    for row, experts in enumerate(rows):
        last = row == len(table)
        shade = style.PALETTE[1] if last else style.PALETTE[0]
        shades = [shade if used else style.blend(style.FAINT, "white", 0.5) for used in experts]
        at = row + 0.25 * last
        axes.barh(np.full(num_experts, at), 0.88, left=np.arange(num_experts) - 0.44, height=0.8, color=shades)
        axes.annotate(
            f"{experts.sum()} of {num_experts}", (1.02, at), xycoords=("axes fraction", "data"), va="center",
            fontsize=style.TICK_PT, color=style.INK, annotation_clip=False,
        )  # fmt: skip
    names = [f"token {token}" for token in range(len(table))]
    axes.set_yticks([*range(len(table)), len(table) + 0.25], labels=[*names, "all together"])
    axes.set_ylim(len(table) + 0.75, -0.5)
    axes.set_xlim(-0.5, num_experts - 0.5)
    axes.set_xticks(range(num_experts))
    axes.tick_params(length=0)
    return figure


def parameter_parts(
    models: Mapping[str, Mapping[str, int | float]], title: str = "Where the parameters are", share: bool = False
) -> Figure:
    """One bar for each model, cut into its parts. One token uses the dark parts. The part called `IDLE` is pale.

    Args:
      models: parameters of each part, under the name of each model. Parts are stacked in order of first appearance.
      title: above the figure.
      share: draw every bar as 100% of its model, for models of very different sizes.

    Raises:
      UserError: if there is nothing to draw.
    """
    parts = list(dict.fromkeys(part for counts in models.values() for part in counts))
    totals = {name: float(sum(counts.values())) for name, counts in models.items()}
    if not parts or min(totals.values()) <= 0:
        raise UserError(f"models={dict(models)!r} must hold at least one part each, above 0; count a model first")
    figure = style.blank(title, height_in=1.35 + 0.42 * len(models))
    axes = figure.subplots()
    style.dress(axes, x="share of the model's parameters" if share else "parameters", grid="x")
    left = np.zeros(len(models))
    for index, part in enumerate(parts):
        counts = np.asarray([float(model.get(part, 0)) for model in models.values()])
        width = counts / np.asarray(list(totals.values())) if share else counts
        look = {"color": style.FAINT} if part == IDLE else style.bar_look(index)
        axes.barh(np.arange(len(models)), width, left=left, height=0.62, label=part, **look)
        left = left + width
    for row, (total, end) in enumerate(zip(totals.values(), left, strict=True)):
        _write(axes, (float(end), row), short_count(total))
    style.name_rows(axes, list(models), 24)
    axes.set_xlim(0, 1.12 * float(left.max()))
    if share:
        axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(
        PercentFormatter(1.0) if share else FuncFormatter(lambda value, _: short_count(value))
    )
    _legend_above(axes, columns=7)
    return figure


def active_and_total(
    models: Mapping[str, tuple[int | float, int | float]], title: str = "Parameters: active per token against total"
) -> Figure:
    """One point for each model on two logarithmic axes, with lines where 100%, 10% and 1% of the parameters are active.

    Args:
      models: (total, active) under each name; ``0 < active <= total``.
      title: above the figure.

    Raises:
      UserError: if there is no model, or one whose counts are impossible.
    """
    if not models:
        raise UserError("models={} is empty; give at least one")
    for name, (total, active) in models.items():
        if not 0 < active <= total:
            raise UserError(f"{name}: total={total}, active={active}: active must be above 0 and at most total")
    figure = style.blank(title, height_in=3.9)
    axes = figure.subplots()
    style.dress(axes, x="total parameters", y="active parameters per token", grid="both")
    totals = np.asarray([float(total) for total, _ in models.values()])
    actives = np.asarray([float(active) for _, active in models.values()])
    low, high = totals.min() / 3, totals.max() * 8
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(actives.min() / 4, high)
    for share in SHARES:
        axes.plot([low, high], [share * low, share * high], color=style.QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
        at = high / 1.2
        axes.annotate(
            f"{share:.0%}", (at, share * at), xytext=(0, -5), textcoords="offset points", ha="right", va="top",
            fontsize=style.SMALL_PT, color=style.QUIET,
        )  # fmt: skip
    # In order of size, labels take turns below right and above left, where neighbours do not meet.
    for index, row in enumerate(np.argsort(totals, kind="stable")):
        shade, name = style.color_of(int(row)), list(models)[row]
        axes.plot(totals[row], actives[row], "o", color=shade, markersize=7)
        offset, side = ((7, -12), "left") if index % 2 == 0 else ((-7, 6), "right")
        axes.annotate(
            f"{name}  {actives[row] / totals[row]:.1%}", (totals[row], actives[row]), xytext=offset, ha=side,
            textcoords="offset points", fontsize=style.TICK_PT, color=style.blend(shade, "black", 0.25),
            parse_math=False, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
        )  # fmt: skip
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.minorticks_off()
    return figure


def experts_read(
    tokens: Sequence[int],
    expected: Mapping[str, Sequence[float]],
    measured: Mapping[str, Sequence[float]],
    title: str = "How many of the routed experts a batch reads",
) -> Figure:
    """Share of the routed experts that at least one token of a batch uses: lines from a formula, dots as measured.

    Args:
      tokens: sizes of the batch, above 0.
      expected: shares (0..1), one a size, under each name; drawn as lines.
      measured: the same from a run; drawn as dots.
      title: above the figure.

    Raises:
      UserError: if a row has another length than ``tokens``.
    """
    figure, axes = _over_tokens(tokens, {**expected, **measured}, title, "tokens in the batch", height_in=3.6)
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("share of routed experts read", fontsize=style.LABEL_PT)
    for index, (name, values) in enumerate(expected.items()):
        look = {"color": style.color_of(index), "linewidth": 1.8, "linestyle": LINES[index % len(LINES)]}
        axes.plot(tokens, values, label=name, **look)  # type: ignore[arg-type]
    for index, (name, values) in enumerate(measured.items()):
        look = {"color": style.color_of(index + len(expected)), "linestyle": "none", "markersize": 5.0}
        axes.plot(tokens, values, marker=MARKERS[index % len(MARKERS)], label=name, **look)  # type: ignore[arg-type]
    _legend_above(axes, columns=3)
    return figure


def time_per_token(
    tokens: Sequence[int], microseconds: Mapping[str, Sequence[float]], title: str = "Time per token of one layer"
) -> Figure:
    """Time per token against the tokens that a layer is given at once; both axes logarithmic.

    Args:
      tokens: how many at once, above 0.
      microseconds: per token, one a size, under the name of each layer.
      title: above the figure.

    Raises:
      UserError: if a row has another length than ``tokens``.
    """
    figure, axes = _over_tokens(tokens, microseconds, title, "tokens at once", height_in=3.4)
    axes.set_yscale("log")
    axes.set_ylabel("microseconds per token", fontsize=style.LABEL_PT)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for index, (name, values) in enumerate(microseconds.items()):
        look = {
            "color": style.color_of(index),
            "linewidth": 1.8,
            "linestyle": LINES[index % len(LINES)],
            "markersize": 5,
        }
        axes.plot(tokens, values, marker=MARKERS[index % len(MARKERS)], label=name, **look)  # type: ignore[arg-type]
    axes.legend(frameon=False, fontsize=style.TICK_PT, loc="upper right")
    return figure


def costs_side_by_side(rows: Mapping[str, Mapping[str, int | float]], title: str = "What each model costs") -> Figure:
    """One panel for each quantity, one bar for each model, each with its number. Every bar starts at zero.

    Args:
      rows: quantities of each model, with their unit in the name: ``{"dense": {"ms per step": 120.0}}``. A quantity
        that a model lacks reads "not measured".
      title: above the figure.

    Raises:
      UserError: if there is nothing to draw.
    """
    quantities = list(dict.fromkeys(quantity for row in rows.values() for quantity in row))
    if not quantities:
        raise UserError(f"rows={dict(rows)!r} hold no quantity; measure something first")
    figure = style.blank(title, height_in=1.0 + 0.36 * len(rows))
    panels = figure.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
    for index, (axes, quantity) in enumerate(zip(panels, quantities, strict=True)):
        values = [row.get(quantity) for row in rows.values()]
        style.dress(axes, title=quantity, grid=None)
        axes.barh(np.arange(len(rows)), [value or 0.0 for value in values], height=0.6, color=style.color_of(index))
        for row, value in enumerate(values):
            _write(axes, (value or 0.0, row), "not measured" if value is None else f"{value:,.4g}")
        axes.set_xlim(0, 1.5 * (max(value or 0.0 for value in values) or 1.0))
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        axes.spines["bottom"].set_visible(False)
    style.name_rows(panels[0], list(rows), 24)
    return figure


def short_count(value: int | float) -> str:
    """Three figures and a unit: 1.05M, 284B, 1.57T; parameters are counted in billions."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def _over_tokens(
    tokens: Sequence[int], rows: Mapping[str, Sequence[float]], title: str, x: str, height_in: float
) -> tuple[Figure, Axes]:
    for name, values in rows.items():
        if len(values) != len(tokens):
            raise UserError(f"{name}: {len(values)} values for {len(tokens)} batch sizes; give one a size")
    figure = style.blank(title, height_in=height_in)
    axes = figure.subplots()
    style.dress(axes, x=x, grid="both")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(tokens), labels=[str(size) for size in tokens])
    axes.minorticks_off()
    return figure, axes


def _legend_above(axes: Axes, columns: int) -> None:
    """Above the axes, where nothing drawn can reach it."""
    look: dict[str, Any] = {"frameon": False, "fontsize": style.SMALL_PT, "columnspacing": 1.0, "handletextpad": 0.5}
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, handlelength=1.4, **look)


def _write(axes: Axes, at: tuple[int | float, int], text: str) -> None:
    axes.annotate(
        text, at, xytext=(4, 0), textcoords="offset points", va="center", fontsize=style.TICK_PT, color=style.INK
    )
