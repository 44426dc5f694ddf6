"""Figures of where tokens go: experts by domain, and balance over time.

Axis letters: E experts, K experts per token, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from minimoe.errors import UserError
from minimoe.plots import records as read
from minimoe.plots import style
from minimoe.plots.records import Record

CELL_NUMBERS_UP_TO = 16  # experts; beyond that a number no longer fits its cell
LAYER_LABELS_UP_TO = 8


def experts_by_domain(
    load: Num[np.ndarray, "domains layers E"],
    domains: Sequence[str],
    title: str = "Which experts each domain uses",
) -> Figure:
    """One heat map a layer: how much of a domain's traffic each expert takes, against an even split.

    A cell is ``E * load[domain, layer, expert] / sum(load[domain, layer])``: 1.0 is an even split, 2.0 twice that,
    0.0 an expert this domain never uses. Numbers are printed for at most 16 experts.

    Args:
      load: assignments, counts or shares, [domains, layers, E].
      domains: a name for each row.
      title: above the figure.

    Raises:
      UserError: if the names do not match the rows.
    """
    if len(domains) != load.shape[0]:
        raise UserError(f"{len(domains)} domain names for {load.shape[0]} rows of load; give one name a row")
    relative = relative_share(load)
    layers, experts = relative.shape[1:]
    columns = 2 if experts <= 8 and layers > 1 else 1
    rows = -(-layers // columns)
    figure = style.blank(title, height_in=0.9 + rows * (0.55 + 0.25 * len(domains)))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    top = max(2.0, float(np.nanmax(relative, initial=2.0)))
    norm = TwoSlopeNorm(vmin=0.0, vcenter=1.0, vmax=top)
    for layer, axes in enumerate(panels.flat):
        if layer >= layers:
            axes.set_visible(False)
            continue
        image = _draw_heat(axes, relative[:, layer], domains, norm)
        last_row = layer + columns >= layers
        style.dress(axes, title=f"layer {layer}", x="expert" if last_row else "", grid=None)
        axes.tick_params(labelbottom=last_row, length=0)
    bar = figure.colorbar(image, ax=panels, shrink=min(1.0, 2.2 / figure.get_size_inches()[1]), pad=0.02)
    # Rounded down: a tick beyond the top of the colours would stretch the bar.
    bar.set_ticks([0.0, 0.5, 1.0, *np.floor(10 * np.linspace(1.0, top, 3)[1:]) / 10])
    bar.set_label("share relative to an even split", fontsize=style.TICK_PT)
    bar.ax.tick_params(labelsize=style.TICK_PT)
    return figure


def relative_share(load: Num[np.ndarray, "*any E"]) -> Float[np.ndarray, "*any E"]:
    """Load as a multiple of an even split along the last axis; NaN where there is no load at all."""
    counts = np.asarray(load, dtype=np.float64)
    total = counts.sum(axis=-1, keepdims=True)
    return np.divide(counts * counts.shape[-1], total, out=np.full_like(counts, np.nan), where=total > 0)


def balance_over_time(records: Sequence[Record], title: str = "Balance over training") -> Figure:
    """MaxVio of every layer over the steps of a run.

    MaxVio is ``max load / mean load - 1``: 0.0 when every expert carries the mean load, 1.0 when the busiest carries
    twice the mean.

    Raises:
      UserError: if the records hold no routing, as those of a dense model do.
    """
    train = read.of_kind(records, "train")
    balance = read.per_layer(train, "max_violation")
    if not balance.shape[1]:
        raise UserError(f"{len(train)} train records hold no max_violation; use the records of a sparse model")
    figure = style.blank(title, height_in=3.2)
    axes = figure.subplots()
    style.start_at_zero(axes, read.column(train, "step"))
    draw_max_violation(axes, read.column(train, "step"), balance)
    axes.set_xlabel("step", fontsize=style.LABEL_PT)
    return figure


def draw_max_violation(axes: Axes, at: Float[np.ndarray, " n"], balance: Float[np.ndarray, "n layers"]) -> None:
    """Draws one line a layer, and says what the line at zero means.

    Args:
      axes: where to draw.
      at: step or tokens of each record.
      balance: MaxVio, one column a layer.
    """
    layers = balance.shape[1]
    style.dress(
        axes, y="MaxVio", title="busiest expert above the mean load; 0 (dashed) = every expert carries the mean"
    )
    shades = style.ordered_colors(layers)
    axes.axhline(0.0, color=style.INK, linewidth=1.0, linestyle="--")
    marker = "o" if len(at) < 3 else ""
    for layer, shade in enumerate(shades):
        axes.plot(at, balance[:, layer], color=shade, linewidth=0.7, alpha=0.25)
        look = {"marker": marker, "markersize": 4, "linestyle": style.DASHES[layer % len(style.DASHES)]}
        axes.plot(at, read.smooth(balance[:, layer]), color=shade, linewidth=1.5, **look)  # type: ignore[arg-type]
    finite = balance[np.isfinite(balance)]
    top = float(finite.max()) if len(finite) else 0.0
    axes.set_ylim(-0.05 * max(top, 0.5), 1.08 * max(top, 0.5))
    # A deep model gets a sample of its labels; the colours run in layer order.
    named = np.unique(np.linspace(0, layers - 1, min(layers, LAYER_LABELS_UP_TO)).round().astype(int))
    labels = style.with_dashes([f"layer {layer}" for layer in range(layers)])
    style.label_key(axes, [labels[layer] for layer in named], [shades[layer] for layer in named])


def _draw_heat(
    axes: Axes, share: Float[np.ndarray, "domains E"], domains: Sequence[str], norm: TwoSlopeNorm
) -> AxesImage:
    palette = colormaps["RdBu_r"].with_extremes(bad=style.FAINT)
    image = axes.imshow(np.ma.masked_invalid(share), cmap=palette, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_xticks(_expert_ticks(share.shape[1]))
    axes.set_yticks(range(len(domains)), labels=[style.shorten(name, 16) for name in domains], parse_math=False)
    if share.shape[1] <= CELL_NUMBERS_UP_TO:
        for (row, column), value in np.ndenumerate(share):
            ink = style.ink_on(tuple(palette(norm(value))[:3])) if np.isfinite(value) else style.INK
            text = f"{value:.1f}" if np.isfinite(value) else "–"
            axes.text(column, row, text, ha="center", va="center", fontsize=style.SMALL_PT, color=ink)
    return image


def _expert_ticks(experts: int) -> list[int]:
    """Every expert up to 16, then every fourth or eighth: always whole numbers."""
    step = 1 if experts <= 16 else 4 if experts <= 64 else 2 ** max(3, experts.bit_length() - 5)
    return list(range(0, experts, step))
