"""Figures of the cache: what a query sees of it, what a token adds to it, and how it grows with the context.

Axes: T queries, N what the cache holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from minimoe.errors import UserError
from minimoe.plots import style

MARKERS = "os^Dv<>"


def what_queries_see(masks: Mapping[str, Bool[np.ndarray, "T N"]], title: str = "What a query sees") -> Figure:
    """One grid for each kind of attention: a row a query, a column a token, and behind a line the compressed entries.

    Args:
      masks: by kind, True where the query sees the column; the first T columns are tokens, the others entries.
      title: above the figure.

    Raises:
      UserError: for no mask, or one with fewer columns than queries.
    """
    if not masks:
        raise UserError("masks is empty; give at least one kind of attention")
    for name, mask in masks.items():
        if np.ndim(mask) != 2 or mask.shape[1] < mask.shape[0]:
            raise UserError(f"{name}: mask has shape {np.shape(mask)}; it needs a column for each of its queries")
    figure = style.blank(title, height_in=0.9 + 1.9 * -(-len(masks) // 3))
    panels = figure.subplots(-(-len(masks) // 3), min(3, len(masks)), squeeze=False).flatten()
    for axes, (name, mask) in zip(panels, masks.items(), strict=False):
        queries, columns = mask.shape
        shade = np.where(mask, 0.75, 0.0)
        shade[:, queries:] = np.where(mask[:, queries:], 1.0, 0.06)
        style.dress(axes, title=f"{name}\n{int(mask[-1].sum())} seen by the last query", grid=None)
        axes.imshow(shade, cmap="Blues", vmin=0, vmax=1.2, aspect="auto", interpolation="nearest")
        axes.set_xticks(np.arange(-0.5, columns), minor=True)
        axes.set_yticks(np.arange(-0.5, queries), minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8)
        axes.tick_params(which="both", length=0)
        axes.set_xticks([0, queries - 1], labels=["token 0", "" if columns > queries else str(queries - 1)])
        axes.set_yticks([0, queries - 1], labels=["query 0", str(queries - 1)])
        if columns > queries:
            axes.axvline(queries - 0.5, color=style.INK, linewidth=1.2)
            axes.annotate(
                "entries", ((queries + columns) / 2 - 0.5, queries - 0.5), xytext=(0, -4), textcoords="offset points",
                ha="center", va="top", fontsize=style.TICK_PT, color=style.INK, annotation_clip=False,
            )  # fmt: skip
    for axes in panels[len(masks) :]:
        axes.set_visible(False)
    return figure


def bytes_per_token(rows: Mapping[str, int | float], title: str = "What one more token adds to the cache") -> Figure:
    """One bar a model on a logarithmic axis, each with its number.

    Args:
      rows: bytes a token over all layers, all above 0.
      title: above the figure.

    Raises:
      UserError: if there is nothing to draw, or a number is not above 0.
    """
    wrong = [name for name, value in rows.items() if not value > 0]
    if not rows or wrong:
        raise UserError(f"rows={dict(rows)!r} need at least one number, and all above 0: a logarithm is drawn")
    figure = style.blank(title, height_in=0.9 + 0.34 * len(rows))
    axes = figure.subplots()
    style.dress(axes, x="bytes a token, all layers (log scale)", grid=None)
    axes.set_xscale("log")
    low = 10 ** np.floor(np.log10(min(rows.values())))
    axes.barh(np.arange(len(rows)), list(rows.values()), height=0.6, color=style.color_of(0), left=0)
    for row, value in enumerate(rows.values()):
        axes.annotate(
            f"{value:,.0f}", (value, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=style.TICK_PT
        )
    axes.set_xlim(low, 6 * max(rows.values()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    style.name_rows(axes, list(rows), 40)
    return figure


def bytes_over_context(
    contexts: Sequence[int],
    rows: Mapping[str, Sequence[int | float]],
    crossing: tuple[int | float, str] | None = None,
    title: str = "Bytes of one sequence's state",
) -> Figure:
    """Lines on two logarithmic axes, one a model, told apart by dashes and marks; a crossing is a vertical line.

    Args:
      contexts: tokens, rising. rows: bytes at each context.
      crossing: a context and what happens there.
      title: above the figure.

    Raises:
      UserError: where a row has another number of values than there are contexts.
    """
    for name, values in rows.items():
        if len(values) != len(contexts):
            raise UserError(f"{name}: {len(values)} values for {len(contexts)} contexts; give one a context")
    figure = style.blank(title, height_in=3.6)
    axes = figure.subplots()
    style.dress(axes, x="tokens of context", y="bytes", grid="both")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{int(value):,}"))
    axes.yaxis.set_major_formatter(FuncFormatter(_size))
    for index, (name, values) in enumerate(rows.items()):
        axes.plot(
            contexts, values, color=style.color_of(index), linewidth=1.8, linestyle=style.DASHES[index % 4],
            marker=MARKERS[index % len(MARKERS)], markersize=4, label=name,
        )  # fmt: skip
    if crossing:
        axes.axvline(crossing[0], color=style.QUIET, linewidth=1)
        axes.annotate(
            crossing[1], (crossing[0], 0.04), xycoords=("data", "axes fraction"), xytext=(5, 0),
            textcoords="offset points", fontsize=style.TICK_PT, color=style.INK,
        )  # fmt: skip
    axes.legend(frameon=False, fontsize=style.TICK_PT, loc="upper left")
    return figure


def _size(value: float, _: int) -> str:
    """Bytes with a unit: 1 MB is a million."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:g} {unit}"
    return f"{value:g} B"
