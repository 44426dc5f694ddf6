"""Figures of what a teacher tells a student: probabilities of the next word, temperatures, and one peak fitted to two.

All probabilities are shares (0..1), written as percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from minimoe.errors import UserError
from minimoe.plots import style
from minimoe.plots.coloured_text import FONT, visible

MARKERS = "osD^vP*"
DASHES = ("-", "--", ":", "-.")


def next_words(
    words: Sequence[str],
    distributions: Mapping[str, Float[np.ndarray, " _"]],
    *,
    truth: int | None = None,
    log: bool = False,
    title: str = "The next word, by model",
) -> Figure:
    """One row for each word, with a bar for each model's probability. The word of the text is marked.

    On a logarithmic axis a bar has no zero to start from, so each model is a dot there. It shows what the bars hide:
    how a model ranks the words it does not expect.

    Args:
      words: the first is drawn on top. Spaces and line ends are made visible.
      distributions: probabilities of these words, [n], under the name of each model. They need not sum to 1, since the
        vocabulary is longer than the list. On a logarithmic axis a probability of 0 is left out.
      truth: the place of the true word in ``words``, in 0..n-1, or None if it is not there.
      log: a logarithmic axis.
      title: above the figure.

    Raises:
      UserError: if there is no model, one has not a probability for each word, or ``truth`` is out of range.
    """
    _check_rows(words, distributions)
    if truth is not None and not 0 <= truth < len(words):
        raise UserError(f"truth={truth} must be in 0..{len(words) - 1}, or None if the true word is not listed")
    row_in = 0.3 if log else 0.1 + 0.19 * len(distributions)
    figure = style.blank(title, height_in=1.3 + row_in * len(words))
    axes = figure.subplots()
    style.dress(axes, x="probability", grid="x")
    _name_words(axes, words)
    if truth is not None:
        axes.axhspan(
            truth - 0.5, truth + 0.5, color=style.blend(style.PALETTE[4], "white", 0.75), linewidth=0, zorder=0
        )
        axes.get_yticklabels()[truth].set_fontweight("bold")
        _write_beside(axes, truth, "in the text")
    if log:
        _draw_dots(axes, distributions)
    else:
        _draw_bars(axes, distributions)
    _key_above(axes, list(distributions), "o" if log else "s")
    return figure


def temperatures(
    words: Sequence[str],
    probs: Mapping[int | float, Float[np.ndarray, " _"]],
    title: str = "The same logits at several temperatures",
) -> Figure:
    """One panel for each temperature, one bar for each word. Below a panel stands the sum of its bars.

    Each panel has its own scale, from zero to its longest bar, so that the shape shows: at a high temperature the words
    draw level, while most of the probability goes to words that are not in the list. The numbers compare the panels.

    Args:
      words: the first is drawn on top. Spaces and line ends are made visible.
      probs: probabilities of these words, [n], under each temperature (above 0). Up to four panels stay readable.
      title: above the figure.

    Raises:
      UserError: if there is no temperature, or one has not a probability for each word.
    """
    _check_rows(words, {f"T={temperature:g}": row for temperature, row in probs.items()})
    figure = style.blank(title, height_in=1.3 + 0.24 * len(words))
    panels = figure.subplots(1, len(probs), sharey=True, squeeze=False)[0]
    shades = style.ordered_colors(len(probs))
    for axes, shade, (temperature, row) in zip(panels, shades, probs.items(), strict=True):
        style.dress(axes, title=f"T = {temperature:g}", x=f"together {row.sum():.1%}", grid=None)
        axes.barh(np.arange(len(words)), row, height=0.7, color=shade)
        for place, value in enumerate(row):
            _write_at(axes, float(value), place, _percent(float(value)))
        axes.set_xlim(0, 1.45 * float(row.max()) or 1.0)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    _name_words(panels[0], words)
    figure.supxlabel("each panel has its own scale", fontsize=style.SMALL_PT, color=style.QUIET)
    return figure


def two_modes(
    x: Float[np.ndarray, " n"],
    p: Float[np.ndarray, " n"],
    fits: Mapping[str, Float[np.ndarray, " _"]],
    title: str = "One hump for two: each divergence chooses differently",
    name: str = "teacher",
) -> Figure:
    """A density filled in grey, and one line for each fit to it, with a dash of its own, labelled at its peak.

    Args:
      x: ascending places, in the unit of the axis.
      p: the density to fit, at least 0, at each place.
      fits: the density of each fit at each place, under its name.
      title: above the figure.
      name: what the filled density is called.

    Raises:
      UserError: if a fit has not a value for each place.
    """
    short = [fit for fit, row in fits.items() if len(row) != len(x)]
    if short:
        raise UserError(f"fits {short} must hold {len(x)} values, one for each x")
    figure = style.blank(title, height_in=3.6)
    axes = figure.subplots()
    style.dress(axes, x="x", y="density")
    axes.fill_between(x, p, color=style.FAINT, linewidth=0)
    axes.plot(x, p, color=style.QUIET, linewidth=1.0)
    for index, row in enumerate(fits.values()):
        axes.plot(x, row, color=style.color_of(index), linewidth=2.0, linestyle=DASHES[index % len(DASHES)])
    curves = {name: p, **fits}
    axes.set_xlim(float(x[0]), float(x[-1]))
    axes.set_ylim(0, 1.25 * max(float(row.max()) for row in curves.values()))
    _label_peaks(axes, x, curves, [style.QUIET, *(style.color_of(index) for index in range(len(fits)))])
    return figure


def label_place(x: Float[np.ndarray, " n"], curve: Float[np.ndarray, " n"], others: Sequence[float]) -> int:
    """The index of the peak to label: of all peaks at least half as high as the highest, the furthest from ``others``.

    So the two-mode density is labelled where no fit sits.

    Example:
      >>> import numpy as np
      >>> x, curve = np.linspace(0.0, 6.0, 7), np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.8, 0.0])
      >>> label_place(x, curve, others=[1.0]), label_place(x, curve, others=[])
      (5, 1)
    """
    inside = np.arange(1, len(curve) - 1)
    peaks = inside[(curve[inside] > curve[inside - 1]) & (curve[inside] >= curve[inside + 1])]
    peaks = peaks[curve[peaks] >= 0.5 * curve.max()]
    if not len(peaks) or not others:
        return int(np.argmax(curve))
    return int(max(peaks, key=lambda at: min(abs(float(x[at]) - other) for other in others)))


def _label_peaks(
    axes: Axes, x: Float[np.ndarray, " n"], curves: Mapping[str, Float[np.ndarray, " _"]], shades: Sequence[str]
) -> None:
    """Writes each name above its peak, or at the nearest place that is free, with a thin line to the peak."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    frame, (width_in, height_in) = axes.get_position(), figure.get_size_inches()
    em = 0.3 * style.TICK_PT / (0.85 * 72 * width_in * frame.width)  # half a character, as a share of the axes
    line = 1.35 * style.TICK_PT / (0.85 * 72 * height_in * frame.height)
    (left, right), top = axes.get_xlim(), axes.get_ylim()[1]
    places, drawn = (x - left) / (right - left), [row / top for row in curves.values()]
    peaks = [float(x[np.argmax(row)]) for row in curves.values()]
    taken: list[tuple[float, float, float, float]] = []
    for index, (name, row) in enumerate(curves.items()):
        at = label_place(x, row, peaks[:index] + peaks[index + 1 :])
        half, shade = em * len(name), shades[index]
        start = (min(max(float(places[at]), half), 1 - half), float(drawn[index][at]) + 0.35 * line)
        moves = [(0.5 * across * half, 0.5 * up * line) for up in range(12) for across in range(-8, 9)]
        boxes = [(start[0] + dx - half, start[1] + dy, start[0] + dx + half, start[1] + dy + line) for dx, dy in moves]
        free = [move for move, box in zip(moves, boxes, strict=True) if _is_free(box, places, drawn, taken)]
        # Distance in shares of the axes: sideways is cheap, because the figure is twice as wide as it is high.
        dx, dy = min(free, key=lambda move: float(np.hypot(*move)), default=(0.0, 0.0))
        taken.append(boxes[moves.index((dx, dy))])
        look = {"arrowstyle": "-", "color": shade, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 1} if dx or dy else None
        axes.annotate(
            name, (float(x[at]), float(row[at])), xytext=(start[0] + dx, start[1] + dy), textcoords="axes fraction",
            ha="center", arrowprops=look, fontsize=style.TICK_PT, color=style.blend(shade, "black", 0.25),
            parse_math=False,
        )  # fmt: skip


def _is_free(
    box: tuple[float, float, float, float],
    places: Float[np.ndarray, " n"],
    drawn: Sequence[Float[np.ndarray, " _"]],
    taken: Sequence[tuple[float, float, float, float]],
) -> bool:
    """Whether no line and no other label meets (left, foot, right, top), all shares of the axes."""
    left, foot, right, top = box
    if left < -1e-9 or right > 1 + 1e-9 or top > 1:
        return False
    if any(left < other[2] and other[0] < right and foot < other[3] and other[1] < top for other in taken):
        return False
    under = (places >= left) & (places <= right)
    return not any(under.any() and row[under].min() < top and row[under].max() > foot for row in drawn)


def _check_rows(words: Sequence[str], rows: Mapping[str, Float[np.ndarray, " _"]]) -> None:
    short = [name for name, row in rows.items() if len(row) != len(words)]
    if short or not rows or not len(words):
        raise UserError(
            f"{short or 'the rows'} must hold {len(words)} probabilities, one a word; give at least one row"
        )


def _draw_bars(axes: Axes, distributions: Mapping[str, Float[np.ndarray, " _"]]) -> None:
    thickness = 0.8 / len(distributions)
    for index, row in enumerate(distributions.values()):
        at = np.arange(len(row)) + thickness * (index - (len(distributions) - 1) / 2)
        axes.barh(at, row, height=0.92 * thickness, **style.bar_look(index))
        for place, value in zip(at, row, strict=True):
            _write_at(axes, float(value), float(place), _percent(float(value)))
    axes.set_xlim(0, 1.12 * max(float(row.max()) for row in distributions.values()) or 1.0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _draw_dots(axes: Axes, distributions: Mapping[str, Float[np.ndarray, " _"]]) -> None:
    axes.set_xscale("log")
    table = np.stack([np.where(row > 0, row, np.nan) for row in distributions.values()])
    for place, values in enumerate(table.T):
        seen = values[np.isfinite(values)]
        if len(seen):
            axes.plot([seen.min(), seen.max()], [place, place], color=style.QUIET, linewidth=1.0)
    for index, row in enumerate(table):
        axes.plot(row, np.arange(len(row)), MARKERS[index % len(MARKERS)], color=style.color_of(index), markersize=6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    axes.minorticks_off()


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 or share == 0 else "<0.1%"


def _key_above(axes: Axes, names: Sequence[str], marker: str) -> None:
    """Above the axes, where nothing drawn can reach it."""
    handles = []
    for index in range(len(names)):
        shape = MARKERS[index % len(MARKERS)] if marker == "o" else marker
        handles += axes.plot([], [], shape, color=style.color_of(index), markersize=7)
    look: dict[str, Any] = {"frameon": False, "fontsize": style.TICK_PT, "handletextpad": 0.2, "columnspacing": 1.2}
    legend = axes.legend(handles, names, loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=4, **look)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _write_at(axes: Axes, x: float, y: int | float, text: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=style.SMALL_PT, color=style.INK
    )


def _write_beside(axes: Axes, row: int, text: str) -> None:
    axes.annotate(
        text, (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=style.TICK_PT, color=style.QUIET,
        annotation_clip=False,
    )  # fmt: skip


def _name_words(axes: Axes, words: Sequence[str]) -> None:
    """The first word on top, in the typeface of which `visible` knows the characters."""
    labels = [style.shorten(visible(word), 16) for word in words]
    axes.set_yticks(range(len(words)), labels=labels, family=FONT, parse_math=False)
    axes.set_ylim(len(words) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
