"""Figures of quantized models: quality against size, recipe by recipe, part by part and expert by expert.

Every quality here is in bits per byte, smaller is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from minimoe.errors import UserError
from minimoe.plots import style
from minimoe.plots.rounding import MARKERS


def quality_against_size(
    points: Mapping[str, tuple[float, float]],
    size: str = "megabytes",
    title: str = "Quality against size",
    reference: str | None = None,
) -> Figure:
    """Bits per byte against size, down left is best; the line joins those that nothing smaller equals.

    Args:
      points: (size, bits per byte) under each name.
      size: what the first number is, for the axis.
      title: above the figure.
      reference: the name of one point, whose quality is drawn as a line across.

    Raises:
      UserError: if there is no point, or no such reference.
    """
    if not points or (reference is not None and reference not in points):
        raise UserError(
            f"points {list(points)} must hold at least one, and the reference {reference!r} if there is one"
        )
    figure = style.blank(title, height_in=4.0)
    axes = figure.subplots()
    style.dress(axes, x=size, y="bits per byte", grid="both")
    best = pareto(points)
    axes.plot(
        [points[name][0] for name in best], [points[name][1] for name in best],
        color=style.QUIET, linewidth=1.0, drawstyle="steps-post",
    )  # fmt: skip
    for index, (at, quality) in enumerate(points.values()):
        shade = style.color_of(index)
        axes.plot([at], [quality], MARKERS[index % len(MARKERS)], color=shade, markersize=7)
    if reference is not None:
        axes.axhline(points[reference][1], color=style.INK, linewidth=1.0, linestyle="--")
    axes.set_xlim(left=0.0)
    axes.margins(0.08)
    axes.ticklabel_format(axis="y", useOffset=False)
    labels = [f"{name}  {quality:.4f}" for name, (_, quality) in points.items()]
    shades = [style.color_of(index) for index in range(len(points))]
    style.label_ends(axes, [quality for _, quality in points.values()], labels, shades)
    return figure


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names that no other point beats or equals in both numbers, smallest first.

    Example:
      >>> pareto({"large": (4.0, 1.0), "small": (1.0, 1.2), "bad": (2.0, 1.3)})
      ['small', 'large']
    """
    kept: list[str] = []
    for name, (_, quality) in sorted(points.items(), key=lambda item: item[1]):
        if not kept or quality < points[kept[-1]][1]:
            kept.append(name)
    return kept


def recipe_points(record: Mapping[str, Any], protocol: str) -> dict[str, tuple[float, float]]:
    """From the record ``quant-recipes``: (megabytes of the file, bits per byte) by recipe, float32 first.

    Args:
      record: ``float32`` with ``bytes``, and ``recipes``, by name, each with ``file_bytes``; all of them with
        ``bits_per_byte`` under each protocol.
      protocol: "full" or "quick".

    Raises:
      UserError: if a row lacks that protocol.
    """
    points = {}
    for name, row in {"float32": record["float32"], **record["recipes"]}.items():
        if protocol not in row:
            raise UserError(f"{name!r} in the record has no protocol {protocol!r}; it holds {', '.join(row)}")
        size = row.get("file_bytes", row["bytes"])
        points[name] = (size / 1e6, float(row[protocol]["bits_per_byte"]))
    return points


def recorded_recipes(
    record: Mapping[str, Any], protocol: str, title: str = "Recorded: every recipe on one model"
) -> Figure:
    """A row a recipe: how much smaller than bfloat16, what it costs in quality, and how many choices it changes.

    Args:
      record: as `recipe_points`; each recipe also with ``compression_vs_bf16`` and ``routing_changed``, and under the
        protocol ``relative_change`` and ``per_domain_relative_change`` of bits per byte (shares, 0.01 is one percent).
      protocol: "full" or "quick".
      title: above the figure.

    Raises:
      UserError: if the record holds no recipe.
    """
    recipes = record["recipes"]
    if not recipes:
        raise UserError("the record holds no recipe; give at least one")
    figure = style.blank(title, height_in=1.2 + 0.34 * len(recipes))
    size, quality, routing = figure.subplots(1, 3, sharey=True, width_ratios=(1.0, 1.5, 1.0))
    _bar_panel(size, [row["compression_vs_bf16"] for row in recipes.values()], "smaller than bfloat16", "{:.2f}x")
    style.dress(quality, title="bits per byte (dots: domains)", grid="x")
    for index, row in enumerate(row[protocol] for row in recipes.values()):
        domains = list(row["per_domain_relative_change"].values())
        quality.barh(index, row["relative_change"], height=0.6, color=style.PALETTE[0])
        quality.plot(domains, np.full(len(domains), index), "o", markersize=3.5, color=style.PALETTE[4])
        furthest = max([0.0, row["relative_change"], *domains])
        _write_at(quality, furthest, index, f"{row['relative_change']:+.2%}")
    quality.axvline(0.0, color=style.INK, linewidth=0.8)
    quality.margins(x=0.25)
    quality.xaxis.set_major_formatter(PercentFormatter(1.0))
    _bar_panel(routing, [row["routing_changed"] for row in recipes.values()], "choices changed", "{:.1%}")
    routing.xaxis.set_major_formatter(PercentFormatter(1.0))
    style.name_rows(size, list(recipes))
    return figure


def sensitivity_map(losses: Mapping[str, Float[np.ndarray, " _"]], title: str = "What each part alone costs") -> Figure:
    """A row a kind of tensor, a column a layer: what quantizing that part alone costs, as a shade and a number.

    Args:
      losses: the change of bits per byte of each layer, under the kind. A part outside the layers has one value.
      title: above the figure.

    Raises:
      UserError: if there is nothing to draw.
    """
    if not losses:
        raise UserError("losses={} is empty; give at least one kind of tensor")
    layers = max(len(values) for values in losses.values())
    table = np.full((len(losses), layers), np.nan)
    for row, values in enumerate(losses.values()):
        table[row, : len(values)] = values
    reach = float(np.nanmax(np.abs(table))) or 1e-12
    figure = style.blank(title, height_in=1.1 + 0.42 * len(losses))
    axes = figure.subplots()
    style.dress(axes, x="layer", grid=None)
    image = axes.imshow(table, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
    for (row, layer), value in np.ndenumerate(table):
        if np.isfinite(value):
            ink = "white" if abs(value) > 0.6 * reach else style.INK
            axes.text(layer, row, f"{value:+.4f}", ha="center", va="center", fontsize=style.TICK_PT, color=ink)
    axes.set_xticks(range(layers))
    style.name_rows(axes, list(losses))
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("bits per byte", fontsize=style.TICK_PT)
    bar.ax.tick_params(labelsize=style.SMALL_PT)
    return figure


def compared(
    rows: Mapping[str, Mapping[str, float]],
    quantity: str,
    title: str,
    write: Callable[[float], str] = "{:.3g}".format,
) -> Figure:
    """Groups of bars that start at zero, each with its number: a group a row, a colour a series.

    Args:
      rows: values under the name of each series, under the name of each row. A series that a row lacks is left out.
      quantity: for the axis.
      title: above the figure.
      write: makes the numbers beside the bars.

    Raises:
      UserError: if there is nothing to draw.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    if not series:
        raise UserError(f"rows {list(rows)} hold no value; give at least one")
    figure = style.blank(title, height_in=1.2 + 0.2 * len(series) * len(rows) + 0.1 * len(rows))
    axes = figure.subplots()
    style.dress(axes, x=quantity, grid="x")
    thickness = 0.8 / len(series)
    for index, name in enumerate(series):
        for place, row in enumerate(rows.values()):
            if name in row:
                at = place + thickness * (index - (len(series) - 1) / 2)
                axes.barh(at, row[name], height=0.9 * thickness, color=style.color_of(index))
                _write_at(axes, max(0.0, row[name]), at, write(row[name]))
    axes.margins(x=0.18)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    style.name_rows(axes, list(rows))
    if len(series) > 1:
        handles = [axes.barh([0], [0], color=style.color_of(index)) for index in range(len(series))]
        axes.legend(
            handles=handles, labels=series, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False,
            fontsize=style.TICK_PT,
        )  # fmt: skip
    return figure


def gain_by_rows(
    points: Mapping[str, tuple[Num[np.ndarray, " _"], Num[np.ndarray, " _"]]],
    title: str = "What calibration is worth to an expert",
) -> Figure:
    """Error relative to rounding to nearest against the rows that reached an expert, on logarithmic axes.

    Below the dashed line calibration helped, above it did harm.

    Args:
      points: rows (at least 1) and error ratios, under the name of each way.
      title: above the figure.

    Raises:
      UserError: if there is nothing to draw.
    """
    if not any(len(rows) for rows, _ in points.values()):
        raise UserError(f"points {list(points)} are empty; give at least one expert")
    figure = style.blank(title, height_in=3.5)
    axes = figure.subplots()
    style.dress(axes, x="calibration rows that reached the expert", y="error / error of plain rounding", grid="both")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.axhline(1.0, color=style.INK, linewidth=1.0, linestyle="--")
    for index, (name, (rows, ratios)) in enumerate(points.items()):
        look: dict[str, Any] = {"marker": MARKERS[index], "color": style.color_of(index), "alpha": 0.65}
        axes.plot(rows, ratios, linestyle="", markersize=5, label=name, **look)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=style.TICK_PT, loc="best")
    return figure


def _bar_panel(axes: Axes, values: Sequence[float], title: str, write: str) -> None:
    style.dress(axes, title=title, grid="x")
    axes.barh(np.arange(len(values)), values, height=0.6, color=style.PALETTE[0])
    for row, value in enumerate(values):
        _write_at(axes, value, row, write.format(value))
    axes.set_xlim(0, 1.4 * max([*values, 1e-12]))
    axes.tick_params(axis="y", length=0)


def _write_at(axes: Axes, x: int | float, y: int | float, text: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=style.SMALL_PT, color=style.INK
    )
