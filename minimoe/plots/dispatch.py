"""Figures of dispatch: its time, combinations of experts, leaks from later tokens, information about the domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from minimoe.errors import UserError
from minimoe.plots import style


def dispatch_clocks(
    panels: Mapping[str, tuple[Sequence[int], Mapping[str, Sequence[float]]]],
    title: str = "Forward and backward pass of one layer",
) -> Figure:
    """Milliseconds against a size, a panel a size, both axes logarithmic.

    Args:
      panels: under the label of its x axis, each panel's sizes and, under each name, one time a size; NaN where
        nothing was measured. A name has the same colour in every panel.
      title: above the figure.

    Raises:
      UserError: if there is no panel, or a row has another length than its sizes.
    """
    names = list(dict.fromkeys(name for _, rows in panels.values() for name in rows))
    if not names:
        raise UserError("panels hold no times; measure something first")
    figure = style.blank(title, height_in=3.5)
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (label, (sizes, rows)) in zip(grid, panels.items(), strict=True):
        style.dress(axes, x=label, grid="both")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(list(sizes), labels=[str(size) for size in sizes])
        axes.xaxis.set_minor_formatter(NullFormatter())
        for name, values in rows.items():
            if len(values) != len(sizes):
                raise UserError(f"{name}: {len(values)} times for {len(sizes)} sizes; give one a size, NaN if none")
            shade = style.color_of(names.index(name))
            axes.plot(sizes, values, color=shade, marker="o", markersize=4, linewidth=1.6, label=name)
    grid[0].set_ylabel("milliseconds", fontsize=style.LABEL_PT)
    grid[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    grid[0].legend(frameon=False, fontsize=style.TICK_PT, loc="upper left")
    return figure


def combinations(counts: Mapping[str, int], title: str = "Sets of experts that a token can choose") -> Figure:
    """A bar a layer on a logarithmic axis, with its number.

    Args:
      counts: combinations, at least 1, under each name.
      title: above the figure.

    Raises:
      UserError: if there is nothing to draw, or a count below 1.
    """
    if not counts or min(counts.values()) < 1:
        raise UserError(f"counts={dict(counts)!r} must hold at least one count, each at least 1")
    figure = style.blank(title, height_in=1.0 + 0.3 * len(counts))
    axes = figure.subplots()
    style.dress(axes, x="combinations", grid="x")
    rows, values = np.arange(len(counts)), [float(count) for count in counts.values()]
    axes.barh(rows, values, height=0.62, color=style.PALETTE[0])
    axes.set_xscale("log")
    axes.set_xlim(1, max(10.0, max(values)) ** 1.2)
    for row, count in enumerate(counts.values()):
        text = f"{count:,}" if count < 10**9 else _power_of_ten(count)
        axes.annotate(
            text, (count, row), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=style.TICK_PT, color=style.INK,
        )  # fmt: skip
    axes.set_yticks(rows, labels=[style.shorten(name, 34) for name in counts], parse_math=False)
    axes.set_ylim(len(counts) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    return figure


def changed_outputs(
    changes: Mapping[str, Float[np.ndarray, " T"]], title: str = "The last token was changed: whose output moved?"
) -> Figure:
    """A strip of tokens for each way of routing: orange where an *earlier* token's output changed.

    Args:
      changes: largest change of each token's output, under each name; the last entry is the token that was changed.
      title: above the figure.

    Raises:
      UserError: if there is nothing to draw, or the rows differ in length.
    """
    lengths = {len(values) for values in changes.values()}
    if len(lengths) != 1 or min(lengths) < 2:
        raise UserError(f"changes have lengths {sorted(lengths)}; give rows of one length, at least 2")
    tokens = lengths.pop()
    figure = style.blank(title, height_in=1.0 + 0.36 * len(changes))
    axes = figure.subplots()
    style.dress(axes, x="token", grid=None)
    for row, values in enumerate(changes.values()):
        moved = np.asarray(values) > 0
        shades = [style.ALARM if m else style.blend(style.FAINT, "white", 0.5) for m in moved]
        shades[-1] = style.QUIET
        axes.barh(np.full(tokens, row), 0.9, left=np.arange(tokens) - 0.45, height=0.78, color=shades)
        axes.annotate(
            f"{moved[:-1].sum()} of {tokens - 1} earlier tokens", (1.01, row), xycoords=("axes fraction", "data"),
            va="center", fontsize=style.TICK_PT, color=style.INK, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(changes)), labels=[style.shorten(name, 34) for name in changes], parse_math=False)
    axes.set_ylim(len(changes) - 0.5, -0.5)
    axes.set_xlim(-0.6, tokens - 0.4)
    axes.set_xticks(range(tokens))
    axes.tick_params(length=0)
    return figure


def information_by_window(
    widths: Sequence[int],
    bits: Sequence[float],
    levels: Mapping[str, float],
    ceiling: float,
    title: str = "What is known about the domain",
) -> Figure:
    """Information about the domain in a window of text, as a curve, and in one choice of expert, as lines across.

    Args:
      widths: characters in the window. bits: what a reader of the window learns about the domain.
      levels: bits under the name of each router or control.
      ceiling: entropy of the domain, dashed.
      title: above the figure.

    Raises:
      UserError: if widths and bits do not match.
    """
    if len(widths) != len(bits) or not len(widths):
        raise UserError(f"{len(widths)} widths and {len(bits)} values; give one value a width, and at least one")
    figure = style.blank(title, height_in=4.2)
    axes = figure.subplots()
    style.dress(axes, x="characters in the window", y="bits about the domain")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(widths), labels=[str(width) for width in widths])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axhline(ceiling, color=style.INK, linewidth=1.0, linestyle="--")
    shades = [style.color_of(1 + index) for index in range(len(levels))]
    for level, shade in zip(levels.values(), shades, strict=True):
        axes.axhline(level, color=shade, linewidth=1.4)
    axes.plot(widths, bits, color=style.color_of(0), marker="o", markersize=5, linewidth=2.0)
    axes.set_ylim(-0.03 * ceiling, 1.06 * ceiling)
    names = ["all there is to know", "a reader of the window", *levels]
    ends = [ceiling, bits[-1], *levels.values()]
    labels = [f"{name}  {end:.2f}" for name, end in zip(names, ends, strict=True)]
    style.label_ends(axes, ends, labels, [style.INK, style.color_of(0), *shades])
    return figure


def _power_of_ten(count: int) -> str:
    exponent = len(str(count)) - 1
    return rf"${count / 10**exponent:.1f}\times10^{{{exponent}}}$"
