"""Figures of what attention keeps of the past: bytes against context, bytes per token, and what a query sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from minimoe.errors import UserError
from minimoe.plots import style
from minimoe.plots.model_bytes import in_units


def bytes_against_context(
    contexts: Sequence[int],
    totals: Mapping[str, Sequence[int | float]],
    crossing: tuple[int, int | float, str] | None = None,
    title: str = "Decoding state of one sequence",
) -> Figure:
    """Bytes of one sequence's decoding state against its context, both axes logarithmic.

    Args:
      contexts: tokens, growing. totals: bytes at each of them, under the name of each model.
      crossing: (context, bytes, text) of a point to mark, such as the one below which a cache is not the smaller one.
      title: above the figure.

    Raises:
      UserError: for no model, another number of values than contexts, or values that a logarithmic axis cannot show.
    """
    if not totals:
        raise UserError("totals={} is empty; give at least one model")
    figure = style.blank(title, height_in=3.9)
    axes = figure.subplots()
    style.dress(axes, x="context, tokens", y="bytes", grid="both")
    for index, (name, values) in enumerate(totals.items()):
        if len(values) != len(contexts):
            raise UserError(f"{name}: {len(values)} values for {len(contexts)} contexts; give one each")
        if min(values) <= 0 or min(contexts) <= 0:
            raise UserError(f"{name}: contexts and bytes must be above 0 on logarithmic axes; leave out what is not")
        look = {"linestyle": style.DASHES[index % len(style.DASHES)], "marker": "oDs^v"[index % 5], "markersize": 4}
        axes.plot(contexts, values, color=style.color_of(index), linewidth=1.8, label=name, **look)  # type: ignore[arg-type]
    if crossing is not None:
        at, size, text = crossing
        axes.plot([at], [size], "o", color=style.INK, markersize=11, fillstyle="none", markeredgewidth=1.5)
        axes.axvline(at, color=style.QUIET, linewidth=0.8, linestyle=":")
        axes.annotate(
            text, (at, 0.03), xycoords=("data", "axes fraction"), xytext=(6, 0), textcoords="offset points",
            fontsize=style.TICK_PT, color=style.INK, parse_math=False,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep="", places=0))
    axes.yaxis.set_major_formatter(lambda value, _: in_units(value))
    axes.legend(frameon=False, fontsize=style.TICK_PT, loc="upper left")
    return figure


def bytes_per_token(sizes: Mapping[str, int | float], title: str = "What one more token keeps, all layers") -> Figure:
    """A bar for each model, logarithmic, with its bytes and its share of the first.

    Raises:
      UserError: for no model, or a size that is not above 0.
    """
    if not sizes or min(sizes.values()) <= 0:
        raise UserError(f"sizes={dict(sizes)} must name models with bytes above 0; give at least one")
    figure = style.blank(title, height_in=1.2 + 0.36 * len(sizes))
    axes = figure.subplots()
    style.dress(axes, x="bytes a token", grid="x")
    first = next(iter(sizes.values()))
    axes.barh(range(len(sizes)), list(sizes.values()), height=0.62, color=style.PALETTE[0])
    for row, size in enumerate(sizes.values()):
        less = "" if row == 0 else f"   1/{first / size:,.1f} of the first"
        axes.annotate(
            f"{size:,.2f}".removesuffix(".00") + less, (size, row), xytext=(5, 0), textcoords="offset points", va="center",
            fontsize=style.TICK_PT, color=style.INK,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(min(sizes.values()) / 4, max(sizes.values()) * 12)
    axes.xaxis.set_major_formatter(lambda value, _: in_units(value))
    style.name_rows(axes, list(sizes))
    return figure


def recall_by_distance(
    recall: Mapping[str, Sequence[Mapping[int, int | float]]],
    trained_to: int | None = None,
    title: str = "Needles found, by distance",
) -> Figure:
    """Share of needles found against their distance: a thin line for each seed, a thick one for their mean.

    Args:
      recall: under each kind of attention, for each seed the share (0..1) found at each distance.
      trained_to: the farthest distance of training, marked.
      title: above the figure.

    Raises:
      UserError: if a kind has no seed, or seeds with unlike distances.
    """
    for name, seeds in recall.items():
        if len({tuple(seed) for seed in seeds}) != 1:
            raise UserError(f"{name}: {len(seeds)} seeds with unlike distances; give at least one, all alike")
    if not recall:
        raise UserError("recall={} is empty; give at least one kind")
    figure = style.blank(title, height_in=3.6)
    axes = figure.subplots()
    style.dress(axes, x="distance, tokens", y="found, %")
    for index, (name, seeds) in enumerate(recall.items()):
        distances = list(seeds[0])
        table = 100 * np.asarray([list(seed.values()) for seed in seeds], np.float64)
        shade = style.color_of(index)
        axes.plot(distances, table.T, color=shade, linewidth=0.7, alpha=0.5)
        look = {"linestyle": style.DASHES[index % len(style.DASHES)], "marker": "oDs^v"[index % 5], "markersize": 4.5}
        axes.plot(distances, table.mean(0), color=shade, linewidth=2.0, label=name, **look)  # type: ignore[arg-type]
    if trained_to is not None:
        axes.axvline(trained_to, color=style.QUIET, linewidth=0.8, linestyle=":")
        axes.annotate("farthest in training", (trained_to, 103), fontsize=style.SMALL_PT, ha="center", color=style.INK)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(EngFormatter(sep="", places=0))
    axes.set_ylim(-3, 108)
    axes.legend(frameon=False, fontsize=style.TICK_PT)
    return figure


def what_queries_see(
    kinds: Mapping[str, tuple[Bool[np.ndarray, "_ L"], Bool[np.ndarray, "_ E"]]],
    title: str = "What each query sees: tokens at the left, compressed entries at the right",
) -> Figure:
    """A small matrix for each kind: a row is a query, a filled square a token it sees, a cross an entry it sees.

    Args:
      kinds: under each name, which tokens each query sees and which entries (E may be 0).
      title: above the figure.

    Raises:
      UserError: for no kind, or masks with unlike numbers of queries.
    """
    if not kinds or any(len(tokens) != len(entries) for tokens, entries in kinds.values()):
        raise UserError(f"kinds={list(kinds)} must each have a row a query in both masks; give at least one")
    figure = style.blank(title, height_in=2.6)
    widths = [tokens.shape[1] + entries.shape[1] + 1 for tokens, entries in kinds.values()]
    panels = np.atleast_1d(figure.subplots(1, len(kinds), gridspec_kw={"width_ratios": widths}))
    for axes, (name, (tokens, entries)) in zip(panels, kinds.items(), strict=True):
        style.dress(axes, title=name, grid=None)
        query, key = np.nonzero(tokens)
        axes.plot(key, query, "s", color=style.PALETTE[0], markersize=3.6)
        query, entry = np.nonzero(entries)
        axes.plot(tokens.shape[1] + 1 + entry, query, "x", color=style.PALETTE[1], markersize=4.2)
        axes.set_xlim(-1, tokens.shape[1] + entries.shape[1] + 1)
        axes.set_ylim(len(tokens), -1)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
    panels[0].set_ylabel("query, first on top", fontsize=style.SMALL_PT)
    return figure
