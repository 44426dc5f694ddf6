"""The figure of `minimoe bench predict`: predicted against measured times, and how far apart they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minimoe.errors import UserError
from minimoe.plots import style

BAND = 0.25
MARKERS = "oDs^vP"


def predicted_times(rows: Sequence[Mapping[str, Any]], title: str = "Predicted and measured times") -> Figure:
    """One mark a row; on the line the prediction is right, in the shade it is off by at most a quarter.

    Filled marks are training steps, open ones are decoding, with the number of sequences beside them. Small crosses say
    what peak and bandwidth alone promise.

    Args:
      rows: with "model", "kind" ("train" or "decode"), "batch", "measured_ms", "predicted_ms" and "peak_roofline_ms".
      title: above the figure.

    Raises:
      UserError: if there is nothing to draw.
    """
    if not rows:
        raise UserError("rows=[] is empty; give at least one")
    figure = style.blank(title, height_in=4.6, width_in=6.4)
    axes = figure.subplots()
    style.dress(axes, x="measured (ms)", y="predicted (ms)", grid=None)
    times = [row[key] for row in rows for key in ("measured_ms", "predicted_ms", "peak_roofline_ms")]
    ends = np.asarray([min(times) / 1.5, max(times) * 1.5])
    axes.fill_between(ends, (1 - BAND) * ends, (1 + BAND) * ends, color=style.FAINT, linewidth=0)
    axes.plot(ends, ends, color=style.INK, linewidth=1)
    for index, name in enumerate(dict.fromkeys(row["model"] for row in rows)):
        shade, marker = style.color_of(index), MARKERS[index % len(MARKERS)]
        axes.plot([], [], marker=marker, color=shade, linestyle="", label=name)
        for row in (row for row in rows if row["model"] == name):
            fill = shade if row["kind"] == "train" else "white"
            axes.plot(
                row["measured_ms"], row["predicted_ms"], marker=marker, color=shade, markerfacecolor=fill, linestyle=""
            )
            axes.plot(row["measured_ms"], row["peak_roofline_ms"], marker="x", color=style.QUIET, markersize=3.5)
            if row["kind"] == "decode":
                at = (row["measured_ms"], row["predicted_ms"])
                axes.annotate(
                    str(row["batch"]), at, xytext=(5, -8), textcoords="offset points", fontsize=style.SMALL_PT
                )
    axes.plot([], [], marker="x", color=style.QUIET, linestyle="", markersize=3.5, label="peaks alone")
    axes.set(xscale="log", yscale="log", xlim=tuple(ends), ylim=tuple(ends))
    axes.legend(frameon=False, fontsize=style.TICK_PT, loc="upper left")
    return figure
