"""Figures of dispatch: its time, leaks from later tokens, information about the domain, what an expert is needed for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from minimoe.errors import UserError
from minimoe.plots import style

MARKERS = "osD^vP*"


def dispatch_clocks(
    panels: Mapping[str, tuple[Sequence[int], Mapping[str, Sequence[float]]]],
    title: str = "Forward and backward pass of one layer",
) -> Figure:
    """Milliseconds against a size, one panel for each size, both axes logarithmic.

    Args:
      panels: under the label of its x axis, each panel's sizes and, under each name, one time a size; NaN where
        nothing was measured. A name has the same colour and marker in every panel.
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
            index = names.index(name)
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(
                sizes, values, color=style.color_of(index), marker=marker, markersize=5, linewidth=1.6, label=name
            )
    grid[0].set_ylabel("milliseconds", fontsize=style.LABEL_PT)
    grid[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    grid[0].legend(frameon=False, fontsize=style.TICK_PT, loc="upper left")
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


def expert_and_token(
    bits: Mapping[str, tuple[float, float]],
    token_bits: float,
    title: str = "Bits about the domain in one choice of expert",
) -> Figure:
    """Two bars for each router: bits of its choice about the domain, and bits beyond the token id (hatched).

    Args:
      bits: ``(alone, beyond the token)`` under the name of each router or control.
      token_bits: what the token id alone tells, dashed.
      title: above the figure.

    Raises:
      UserError: if there is nothing to draw.
    """
    if not bits:
        raise UserError("bits={} is empty; give at least one router")
    figure = style.blank(title, height_in=1.3 + 0.42 * len(bits))
    axes = figure.subplots()
    style.dress(axes, x="bits about the domain", grid="x")
    rows = np.arange(len(bits))
    looks = ({"color": style.PALETTE[0]}, {"color": "white", "edgecolor": style.PALETTE[1], "hatch": "////"})
    for part, (label, look) in enumerate(zip(("the choice alone", "beyond the token id"), looks, strict=True)):
        values = [pair[part] for pair in bits.values()]
        at = rows + (part - 0.5) * 0.4
        axes.barh(at, values, height=0.36, label=label, **look)  # type: ignore[arg-type]
        for row, value in zip(at, values, strict=True):
            axes.annotate(
                f"{value:.2f}", (max(value, 0.0), row), xytext=(3, 0), textcoords="offset points", va="center",
                fontsize=style.SMALL_PT, color=style.INK,
            )  # fmt: skip
    axes.axvline(
        token_bits, color=style.INK, linewidth=1.2, linestyle="--", label=f"the token id alone: {token_bits:.2f}"
    )
    style.name_rows(axes, list(bits), limit=34)
    axes.set_xlim(
        min(0.0, *(min(pair) for pair in bits.values())), 1.1 * max(token_bits, *(max(p) for p in bits.values()))
    )
    axes.legend(frameon=False, fontsize=style.TICK_PT, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)
    return figure


def damage_by_use(
    use: Float[np.ndarray, "domains E"],
    damage: Float[np.ndarray, "domains E"],
    domains: Sequence[str],
    title: str = "One expert taken away: what each domain loses",
) -> Figure:
    """A mark for each expert and domain: how much the domain uses the expert, and what it loses without it.

    Args:
      use: share of the domain's traffic that the expert takes, as a multiple of an even split.
      damage: bits per byte lost without the expert.
      domains: a name for each row.
      title: above the figure.

    Raises:
      UserError: if the shapes do not match.
    """
    if use.shape != damage.shape or len(domains) != len(use):
        raise UserError(
            f"use {use.shape}, damage {damage.shape}, {len(domains)} domains; give one shape, one name a row"
        )
    figure = style.blank(title, height_in=3.6)
    axes = figure.subplots()
    style.dress(axes, x="use of the expert (1 = an even split)", y="bits per byte lost without it", grid="both")
    axes.axhline(0.0, color=style.INK, linewidth=0.8)
    for index, (name, x, y) in enumerate(zip(domains, use, damage, strict=True)):
        look = {"linestyle": "", "marker": MARKERS[index % len(MARKERS)], "color": style.color_of(index)}
        axes.plot(x, y, markersize=6, label=style.shorten(name, 16), **look)  # type: ignore[arg-type]
    axes.legend(frameon=False, fontsize=style.TICK_PT, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
