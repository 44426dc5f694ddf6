"""Figures of one routing decision: the score functions, and what selectors pick from one matrix.

Axis letters: T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minimoe.errors import UserError
from minimoe.plots import style


def score_functions(
    logits: Float[np.ndarray, " n"],
    affinities: Mapping[str, Float[np.ndarray, " n"]],
    slopes: Mapping[str, Float[np.ndarray, " n"]],
    title: str = "From logit to affinity",
) -> Figure:
    """Affinities against the logit, and their derivatives beside them.

    Args:
      logits: the x axis, ascending.
      affinities: one curve under each name. slopes: the derivatives, under the same names.
      title: above the figure.

    Raises:
      UserError: if the names differ.
    """
    if list(affinities) != list(slopes):
        raise UserError(f"affinities {list(affinities)} and slopes {list(slopes)} must have the same names")
    figure = style.blank(title, height_in=3.0)
    panels = figure.subplots(1, 2)
    for axes, curves, name in zip(panels, (affinities, slopes), ("affinity", "derivative"), strict=True):
        style.dress(axes, title=name, x="logit", grid="both")
        for index, (label, values) in enumerate(curves.items()):
            dash = style.DASHES[index % len(style.DASHES)]
            axes.plot(logits, values, color=style.color_of(index), linestyle=dash, linewidth=1.8, label=label)
        axes.set_xlim(float(logits[0]), float(logits[-1]))
        axes.set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=style.TICK_PT, loc="upper left")
    return figure


def choices(
    affinities: Float[np.ndarray, "T E"],
    chosen: Mapping[str, Bool[np.ndarray, "T E"]],
    tokens: Sequence[str],
    title: str = "One matrix of affinities, several ways to choose",
) -> Figure:
    """The same affinities in every panel, dark where high, with a dot on each chosen cell.

    Below each column stands the load of that expert, orange if it is the largest and above the mean; right of each row
    the number of experts that the token got, where that differs between tokens.

    Args:
      affinities: shown as shades.
      chosen: which cells each selector picked, under its name.
      tokens: a label for each row.
      title: above the figure.

    Raises:
      UserError: if there is no selector, or not one label a row.
    """
    if not chosen or len(tokens) != len(affinities):
        raise UserError(f"{len(chosen)} selectors and {len(tokens)} labels for {len(affinities)} rows; give one a row")
    figure = style.blank(title, height_in=1.15 + 0.2 * len(tokens))
    panels = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    for axes, (name, picked) in zip(panels, chosen.items(), strict=True):
        _draw_choice(axes, affinities, picked)
        style.dress(axes, title=name, x="load of each expert", grid=None)
        axes.xaxis.label.set_fontsize(style.SMALL_PT)
        axes.tick_params(length=0)
        _write_load(axes, picked)
    panels[0].set_yticks(range(len(tokens)), labels=[style.shorten(token, 14) for token in tokens], parse_math=False)
    return figure


def _draw_choice(axes: Axes, affinities: Float[np.ndarray, "T E"], picked: Bool[np.ndarray, "T E"]) -> None:
    palette = colormaps["Blues"]
    top = max(float(affinities.max()), 1e-9)
    axes.imshow(affinities, cmap=palette, vmin=0.0, vmax=1.2 * top, aspect="auto", interpolation="nearest")
    for token, expert in np.argwhere(picked):
        ink = style.ink_on(tuple(palette(affinities[token, expert] / (1.2 * top))[:3]))
        axes.plot(expert, token, "o", color=style.ALARM, markeredgecolor=ink, markeredgewidth=0.7, markersize=5.5)
    count = picked.sum(axis=1)
    if (count != count[0]).any():
        for token, number in enumerate(count):
            axes.annotate(
                str(number), (1.02, token), xycoords=("axes fraction", "data"), va="center",
                fontsize=style.SMALL_PT, color=style.INK, annotation_clip=False,
            )  # fmt: skip


def _write_load(axes: Axes, picked: Bool[np.ndarray, "T E"]) -> None:
    load = picked.sum(axis=0)
    axes.set_xticks(range(len(load)), labels=[str(count) for count in load], fontsize=style.SMALL_PT)
    for count, label in zip(load, axes.get_xticklabels(), strict=True):
        busiest = count == load.max() and count > load.mean()
        label.set_color(style.ALARM if busiest else style.INK)
        label.set_fontweight("bold" if busiest else "normal")
