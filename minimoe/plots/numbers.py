"""Figures of number formats and rounding errors: every value of a format, and the errors of a quantized matrix.

Axis letters: O rows of a matrix, I columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minimoe.errors import UserError
from minimoe.plots import style

ERRORS = "magma_r"  # white where nothing was lost


def number_lines(names: Sequence[str], log: bool = False, title: str = "Every value that the formats have") -> Figure:
    """One row for each format, with a mark on each of its finite values.

    The usual axis is linear and gives values as shares of the format's largest, because scaling stretches every format
    over the same numbers: what then differs is where its values lie. The logarithmic one shows positive values as they
    are: how far a format reaches without a scale.

    Args:
      names: keys of `minimoe.quant.formats.FORMATS`, or "ue8m0" on the logarithmic axis.
      log: whether the axis is logarithmic.
      title: above the figure.

    Raises:
      UserError: for an unknown name, or none.
    """
    from minimoe.quant.formats import get_format  # other figures need no JAX

    if not names:
        raise UserError("names is empty; give at least one format")
    formats = [get_format(name) for name in names]
    figure = style.blank(title, height_in=0.9 + 0.42 * len(names))
    axes = figure.subplots()
    style.dress(axes, x="value (log scale)" if log else "value / largest value of the format", grid=None)
    for row, item in enumerate(formats):
        values = item.values().astype(np.float64)
        shown = values[values > 0] if log else values / item.max
        width_pt = 1.2 if len(values) <= 16 else 0.4
        marks = axes.vlines(shown, row - 0.3, row + 0.3, color=style.color_of(row), linewidth=width_pt)
        marks.set_snap(False)  # on whole pixels, 256 even marks would look uneven
        largest = f"{item.max:.6g}" if item.max < 1e6 else f"{item.max:.2g}"
        axes.annotate(
            f"{len(values)} values, max {largest}", (1.0, row), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=style.TICK_PT, color=style.QUIET, annotation_clip=False,
        )  # fmt: skip
    if log:
        axes.set_xscale("log", base=2)
    axes.set_yticks(range(len(names)), labels=list(names), parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    return figure


def granularity_errors(
    matrix: Float[np.ndarray, "O I"],
    approximations: Mapping[str, Float[np.ndarray, "O I"]],
    title: str = "Where the error sits",
    counted: Bool[np.ndarray, "..."] | None = None,
) -> Figure:
    """The matrix, and the absolute error of each approximation of it as an image in one common shade.

    Above each error stands its signal to noise ratio, ``10 log10(sum x^2 / sum error^2)`` dB: larger is better. Values
    of the matrix beyond the 99th percentile share its darkest shades.

    Args:
      matrix: what was quantized.
      approximations: what came back, under the name of each way.
      title: above the figure.
      counted: the values that the ratios are of; None: all. A large value that always comes back would hide the others.

    Raises:
      UserError: if there is no approximation, or one has another shape, or ``counted`` has.
    """
    shapes = {name: values.shape for name, values in approximations.items()}
    if not shapes or any(shape != matrix.shape for shape in shapes.values()):
        raise UserError(f"approximations {shapes} must have the shape {matrix.shape} of the matrix; give at least one")
    counted = np.ones(matrix.shape, bool) if counted is None else counted
    if counted.shape != matrix.shape:
        raise UserError(f"counted has the shape {counted.shape}; give one truth value for each of {matrix.shape}")
    columns = min(3, len(shapes) + 1)
    rows = -(-(len(shapes) + 1) // columns)
    panel_in = (style.WIDTH_IN - 1.0) / columns * min(1.4, max(0.5, matrix.shape[0] / matrix.shape[1]))
    figure = style.blank(title, height_in=0.6 + rows * (panel_in + 0.4))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    reach = float(np.percentile(np.abs(matrix), 99)) or 1.0  # the largest values alone would leave the rest white
    image = _draw(panels[0], matrix, "the matrix", "RdBu_r", -reach, reach)
    figure.colorbar(image, ax=panels[0], pad=0.02, extend="both").ax.tick_params(labelsize=style.SMALL_PT)
    errors = {name: np.abs(matrix - values) for name, values in approximations.items()}
    largest = max(float(error.max(initial=0.0)) for error in errors.values()) or 1.0
    for axes, (name, error) in zip(panels[1:], errors.items(), strict=False):
        image = _draw(axes, error, f"{name}: {_ratio_db(matrix[counted], error[counted])}", ERRORS, 0.0, largest)
    for axes in panels[len(shapes) + 1 :]:
        axes.set_axis_off()
    bar = figure.colorbar(image, ax=panels[1:] or panels, pad=0.02)
    bar.set_label("absolute error", fontsize=style.TICK_PT)
    bar.ax.tick_params(labelsize=style.SMALL_PT)
    return figure


def _draw(axes: Axes, values: Float[np.ndarray, "O I"], name: str, palette: str, low: float, high: float):  # type: ignore[no-untyped-def]
    style.dress(axes, title=name, grid=None)
    axes.title.set_fontsize(style.TICK_PT)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(values, cmap=palette, vmin=low, vmax=high, aspect="auto", interpolation="nearest")


def _ratio_db(matrix: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"]) -> str:
    noise, signal = (float(np.square(values, dtype=np.float64).sum()) for values in (error, matrix))
    return "exact" if noise == 0 else f"{10 * np.log10(max(signal, 1e-300) / noise):.1f} dB"
