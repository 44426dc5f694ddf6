"""The shared look of every figure: colours, sizes, axes, labels, and how a figure becomes bytes.

Figures are made from `matplotlib.figure.Figure`, never from pyplot, so drawing one changes no global state and chooses
no backend. Sizes are in inches (figures) and points (text).
"""

from __future__ import annotations

import colorsys
import io
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps, colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from minimoe.errors import UserError
from minimoe.files import write_atomically

# Okabe and Ito's colour-blind-safe set, darkest contrast to white first; their yellow is left out, because a thin
# yellow line on white cannot be seen.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
INK = "#222222"
QUIET = "#6B6B6B"
FAINT = "#D9D9D9"
ALARM = "#D55E00"
DASHES = ("-", "--", "-.", ":")  # of lines that colour alone would tell apart
DASH_MARKS = {
    "-": "──",
    "--": "– –",
    "-.": "– ·",
    ":": "····",
}  # the same in a label, so that no label needs its colour
HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\", "oo")  # of bars that colour alone would tell apart

WIDTH_IN = 7.5
DPI = 120
TITLE_PT, LABEL_PT, TICK_PT, SMALL_PT = 11.5, 9.5, 8.5, 7.5
FORMATS = ("png", "svg", "pdf")


class NotebookFigure(Figure):
    """A Figure that shows itself as the last value of a notebook cell, without pyplot and without a backend."""

    def _repr_png_(self) -> bytes:
        return png_bytes(self)


def blank(title: str, height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """An empty figure with a title on the left, whose layout leaves room for every label."""
    figure = NotebookFigure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
    if title:
        text = figure.suptitle(title, x=0.01, ha="left", fontsize=TITLE_PT, fontweight="bold", color=INK)
        text.set_parse_math(False)
    return figure


def dress(axes: Axes, *, title: str = "", x: str = "", y: str = "", grid: str | None = "y") -> None:
    """Gives axes the shared look: two spines, quiet ticks, a faint grid along ``grid`` ("x", "y" or None)."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(labelsize=TICK_PT, colors=QUIET, labelcolor=INK, length=3)
    axes.set_xlabel(x, fontsize=LABEL_PT, color=INK)
    axes.set_ylabel(y, fontsize=LABEL_PT, color=INK)
    axes.set_title(title, fontsize=LABEL_PT, color=INK, loc="left", parse_math=False)
    axes.set_axisbelow(True)
    if grid is not None:
        axes.grid(axis=grid, color=FAINT, linewidth=0.6)  # type: ignore[arg-type]


def color_of(index: int) -> str:
    """A fixed colour for a fixed index, so that expert 3 looks the same in every figure.

    The first seven are the palette. Later ones walk around the hue circle; figures that use them also print the
    number, because nobody tells sixty colours apart.
    """
    if index < len(PALETTE):
        return PALETTE[index]
    hue = (index * 0.61803398875) % 1.0  # golden ratio: neighbours in number are far apart in hue
    return colors.to_hex(colorsys.hls_to_rgb(hue, 0.40 + 0.2 * (index % 2), 0.55))


def bar_look(index: int) -> dict[str, Any]:
    """Colour and hatch of the bars of series ``index``: without colour they can still be told apart."""
    return {"color": color_of(index), "hatch": HATCHES[index % len(HATCHES)], "edgecolor": "white", "linewidth": 0}


def ordered_colors(count: int) -> list[str]:
    """``count`` colours from dark to light for things with an order, such as layers; readable on white."""
    return [colors.to_hex(c) for c in colormaps["viridis"](np.linspace(0.0, 0.8, max(count, 1)))]


def blend(color: str, other: str, share: float) -> str:
    """``color`` mixed with ``share`` (0..1) of ``other``."""
    mixed = (1 - share) * np.asarray(colors.to_rgb(color)) + share * np.asarray(colors.to_rgb(other))
    return colors.to_hex(tuple(mixed))


def ink_on(color: str | tuple[float, float, float]) -> str:
    """The text colour, dark or white, that can be read on this background."""
    red, green, blue = colors.to_rgb(color)
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def decimals(rows: Iterable[Sequence[float]]) -> int:
    """Decimals to print for all values of a figure: one for percentages far apart, three for bits per byte."""
    values = np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])
    reach = float(np.ptp(values)) or float(np.abs(values).max()) or 1.0
    return int(np.clip(3 - np.ceil(np.log10(reach)), 0, 3)) if np.isfinite(reach) else 3


def shorten(text: str, limit: int) -> str:
    """At most ``limit`` characters, the last one an ellipsis if anything was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def spread(positions: Float[np.ndarray, " n"], gap: float, low: float, high: float) -> Float[np.ndarray, " n"]:
    """Moves positions as little as needed so that neighbours are ``gap`` apart, inside [low, high] if they fit."""
    order = np.argsort(positions, kind="stable")
    placed = np.clip(positions[order], low, high)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    if len(placed) and placed[-1] > high:
        placed[-1] = high
        for i in range(len(placed) - 2, -1, -1):
            placed[i] = min(placed[i], placed[i + 1] - gap)
    result = np.empty_like(placed)
    result[order] = placed
    return result


def label_ends(axes: Axes, ends: Sequence[float], labels: Sequence[str], shades: Sequence[str]) -> None:
    """Writes each label right of the axes at the height of its line's last value, moved apart where they collide.

    Call it last: it reads the y limits. The labels replace a legend, so the eye does not travel.
    """
    low, high = axes.get_ylim()
    heights = (np.asarray(ends, dtype=np.float64) - low) / (high - low)
    heights = np.where(np.isfinite(heights), heights, 1.0)  # a run that diverged ends at the top
    figure = axes.get_figure(root=True)
    assert figure is not None
    # The layout is decided at drawing time and shrinks the axes a little below what they are now.
    axes_height_pt = 0.85 * axes.get_position().height * figure.get_size_inches()[1] * 72
    placed = spread(heights, 1.25 * TICK_PT / axes_height_pt, 0.0, 1.0)
    for height, label, shade in zip(placed, labels, shades, strict=True):
        axes.text(
            1.015,
            height,
            label,
            transform=axes.transAxes,
            color=blend(shade, "black", 0.25),
            fontsize=TICK_PT,
            va="center",
            parse_math=False,
        )


def label_key(axes: Axes, labels: Sequence[str], shades: Sequence[str]) -> None:
    """Writes labels right of the axes from the top down, in the order given: for lines that run into each other."""
    for index, (label, shade) in enumerate(zip(labels, shades, strict=True)):
        axes.annotate(
            label,
            (1.015, 1.0),
            xycoords="axes fraction",
            xytext=(0, -1.3 * TICK_PT * index),
            textcoords="offset points",
            color=blend(shade, "black", 0.15),
            fontsize=TICK_PT,
            va="top",
            annotation_clip=False,
            parse_math=False,
        )


def with_dashes(labels: Sequence[str], dashes: Sequence[str] = DASHES) -> list[str]:
    """Labels with a picture of their lines in front: line i has the style ``dashes[i % len(dashes)]``."""
    return [f"{DASH_MARKS[dashes[index % len(dashes)]]} {label}" for index, label in enumerate(labels)]


def name_rows(axes: Axes, names: Sequence[str], limit: int = 30) -> None:
    """Names at the left, cut to ``limit`` characters, of rows at 0, 1, ...; the first row on top."""
    axes.set_yticks(range(len(names)), labels=[shorten(name, limit) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def start_at_zero(axes: Axes, at: Float[np.ndarray, " n"], start: float = 0.0) -> None:
    """Sets the x axis to run from zero (or ``start``) to just beyond the last finite value."""
    finite = at[np.isfinite(at)]
    last = float(finite.max()) if len(finite) else 0.0
    axes.set_xlim(start, last + 0.01 * (last - start) if last > start else start + 1.0)


def png_bytes(figure: Figure, dpi: float = DPI) -> bytes:
    """The figure as a PNG image of at most 256 colours, a third of the size; the same figure gives the same bytes."""
    drawn, small = io.BytesIO(), io.BytesIO()
    _draw(figure, drawn, format="png", dpi=dpi, metadata={"Software": None})
    image = Image.open(drawn).convert("RGB")
    image = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True, dpi=(dpi, dpi))
    return small.getvalue()


def _draw(figure: Figure, into: io.BytesIO, **options: Any) -> None:
    """Draws into a buffer. A letter that the font lacks is a box in the picture, and no lines on the terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(into, **options)


def save(figure: Figure, path: str | os.PathLike[str], dpi: float = DPI) -> Path:
    """Writes the figure in the format of its suffix, all or nothing, and makes missing folders.

    Args:
      figure: what to write.
      path: ends in .png, .svg or .pdf.
      dpi: dots per inch; a figure is 7.5 inches wide.

    Returns:
      The path written.

    Raises:
      UserError: for another suffix.
    """
    path = Path(path)
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise UserError(
            f"figure {path.name!r} must end in one of {', '.join('.' + name for name in FORMATS)}; rename it"
        )
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[suffix]
    buffer = io.BytesIO()
    _draw(figure, buffer, format=suffix, dpi=dpi, metadata=metadata)
    return write_atomically(path, buffer.getvalue())
