"""A figure of where the bytes of a model are, by part, in several forms of the same model."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from minimoe.errors import UserError
from minimoe.plots import style

# The first pattern found in a path names its part.
PARTS = (
    ("embedding", r"^embed\b"),
    ("output head", r"^head\b"),
    ("attention", r"\.attention\."),
    ("shared expert", r"\.ffn\.shared\."),
    ("routed experts", r"\.ffn\.experts\."),
    ("router", r"\.ffn\.router\."),
    ("dense feed-forward", r"\.ffn\."),
    ("norms", r"norm\b"),
)
OTHER = "other"


def part_of(path: str) -> str:
    """The part of a model that an array belongs to.

    Example:
      >>> part_of("layers.0.ffn.experts.down"), part_of("layers.3.ffn_norm.scale")
      ('routed experts', 'norms')
    """
    return next((name for name, pattern in PARTS if re.search(pattern, path)), OTHER)


def bytes_by_part(models: Mapping[str, Mapping[str, int]], title: str = "Where the bytes are") -> Figure:
    """Bars grouped by part, one for each form of the model, each with its size. The legend has the totals.

    Args:
      models: bytes of every array by its path in the model, under the name of each form.
      title: above the figure.

    Raises:
      UserError: if there is nothing to draw.
    """
    totals = {name: _by_part(arrays) for name, arrays in models.items()}
    found = {part for parts in totals.values() for part in parts}
    parts = [part for part in (*(name for name, _ in PARTS), OTHER) if part in found]
    if not parts:
        raise UserError(f"models={list(models)} hold no array; give bytes by path, as size_report's rows do")
    figure = style.blank(title, height_in=1.3 + 0.22 * len(parts) * (len(models) + 0.6))
    axes = figure.subplots()
    height = 0.8 / len(models)
    for index, (name, sizes) in enumerate(totals.items()):
        values = np.asarray([sizes.get(part, 0) for part in parts], dtype=np.float64)
        at = np.arange(len(parts)) + (index - (len(models) - 1) / 2) * height
        label = f"{name}, {in_units(sum(sizes.values()))}"
        axes.barh(at, values, height=0.92 * height, label=label, **style.bar_look(index))
        for place, value in zip(at, values, strict=True):
            axes.annotate(
                in_units(value), (value, place), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=style.SMALL_PT, color=style.INK,
            )  # fmt: skip
    style.dress(axes, x="bytes", grid="x")
    axes.set_yticks(range(len(parts)), labels=parts, parse_math=False)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set_xlim(0, 1.15 * max(max(sizes.values()) for sizes in totals.values()))
    axes.xaxis.set_major_formatter(lambda value, _: in_units(value))
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower right", frameon=False, fontsize=style.TICK_PT)
    return figure


def in_units(size: int | float) -> str:
    """Three digits and a unit, in powers of 1000.

    Example:
      >>> in_units(512), in_units(1_234_567)
      ('512 B', '1.23 MB')
    """
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:.3g} {unit}"
    return f"{size:.3g} B"


def _by_part(arrays: Mapping[str, int]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for path, size in arrays.items():
        totals[part_of(path)] = totals.get(part_of(path), 0) + size
    return totals
