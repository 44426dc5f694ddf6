"""Figures of learning curves: one run in detail, several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from minimoe.checks import choice
from minimoe.errors import UserError
from minimoe.plots import records as read
from minimoe.plots import style
from minimoe.plots.records import Record
from minimoe.plots.routing import draw_max_violation

X_LABELS = {"tokens": "tokens seen", "seconds": "training time (s)"}
X_TITLES = {"tokens": "tokens seen", "seconds": "training time"}
QUANTITIES = {"loss": "loss (nats/token)", "bits_per_byte": "bits per byte"}
TITLES = {"loss": "Training loss", "bits_per_byte": "Bits per byte"}


def training_curve(records: Sequence[Record], title: str = "Training run") -> Figure:
    """Loss, bits per byte and balance of one run, over the tokens it has seen.

    Args:
      records: the lines of a metrics file (see `minimoe.plots.records`), in order.
      title: above the figure.

    Returns:
      A figure with one panel for each that the records hold: loss (nats/token, raw and smoothed), evaluations
      (bits per byte, the mean and each domain), MaxVio per layer (sparse models only).

    Raises:
      UserError: if there is nothing to draw.
    """
    train, evals = read.of_kind(records, "train"), read.of_kind(records, "eval")
    balance = read.per_layer(train, "max_violation")
    draws = []
    if train:
        draws.append(lambda axes: _draw_loss(axes, train))
    if evals:
        draws.append(lambda axes: _draw_evals(axes, evals))
    if balance.shape[1]:
        draws.append(lambda axes: draw_max_violation(axes, read.column(train, "tokens"), balance))
    if not draws:
        raise UserError(f"{len(records)} records hold no train or eval line; train for at least one step, then draw")
    figure = style.blank(title, height_in=0.6 + 2.0 * len(draws))
    panels = figure.subplots(len(draws), 1, sharex=True, squeeze=False)[:, 0]
    _limit_x(panels[0], np.concatenate([read.column(train, "tokens"), read.column(evals, "tokens")]), "tokens")
    for axes, draw in zip(panels, draws, strict=True):
        draw(axes)
    panels[-1].set_xlabel(X_LABELS["tokens"], fontsize=style.LABEL_PT)
    return figure


def compare_runs(
    runs: Mapping[str, Sequence[Record]],
    x: str = "tokens",
    quantity: str = "loss",
    title: str = "",
    protocol: str | None = None,
    skip: float = 0.0,
) -> Figure:
    """Several runs on one pair of axes.

    Args:
      runs: records of each run under its name.
      x: "tokens" compares at equal data, "seconds" at equal time.
      quantity: "loss" (nats/token; smoothed, raw faint behind) or "bits_per_byte" (evaluations, as measured).
      title: what is compared; a neutral one if empty.
      protocol: "quick" or "full" evaluations; the first of the two that every run has if not given, because numbers
        of two protocols do not compare.
      skip: share (0..<1) of the x axis to leave out at its start, where a loss that falls from afar would flatten
        the differences at the end; the axis then visibly starts later.

    Raises:
      UserError: for an unknown ``x`` or ``quantity``, or a run without such records.
    """
    choice("x", x, tuple(X_LABELS))
    choice("quantity", quantity, tuple(QUANTITIES))
    if not 0 <= skip < 1:
        raise UserError(f"skip={skip} must be in [0, 1); use 0.1 to leave out the first tenth")
    if not runs:
        raise UserError("runs={} is empty; give at least one run to compare")
    label = QUANTITIES[quantity]
    if quantity == "loss":
        chosen = {name: read.of_kind(records, "train") for name, records in runs.items()}
    else:
        protocol = protocol or _shared_protocol(runs)
        chosen = {name: read.of_kind(records, "eval", protocol) for name, records in runs.items()}
        label = f"{label} ({protocol} protocol)"
    empty = [name for name, records in chosen.items() if not records]
    if empty:
        raise UserError(f"runs {empty} have no {label} to draw; leave them out or let them run longer")
    figure = style.blank(title or f"{TITLES[quantity]} against {X_TITLES[x]}", height_in=3.6)
    axes = figure.subplots()
    style.dress(axes, x=X_LABELS[x], y=label)
    all_x = np.concatenate([read.column(records, x) for records in chosen.values()])
    start = skip * float(np.nanmax(all_x))
    _limit_x(axes, all_x, x, start)
    shades = [style.color_of(index) for index in range(len(chosen))]
    dashes = [style.DASHES[index % len(style.DASHES)] for index in range(len(chosen))]
    ends = []
    for records, shade, dash in zip(chosen.values(), shades, dashes, strict=True):
        at, values = read.column(records, x), read.column(records, quantity)
        draw = _draw_noisy if quantity == "loss" else _draw_dots
        late = at >= start
        ends.append(draw(axes, at[late], values[late], shade, dash=dash) if late.any() else np.nan)
    style.label_ends(axes, ends, style.with_dashes(list(chosen)) if len(chosen) > 1 else list(chosen), shades)
    return figure


def _draw_loss(axes: Axes, train: Sequence[Record]) -> None:
    style.dress(axes, y="loss (nats/token)", title="training loss: each step (faint), moving average")
    _draw_noisy(axes, read.column(train, "tokens"), read.column(train, "loss"), style.PALETTE[0])


def _draw_evals(axes: Axes, evals: Sequence[Record]) -> None:
    """The mean of each protocol bold; the domains of the more frequent one thin, since they share a scale."""
    by_protocol = {name: read.of_kind(evals, "eval", name) for name in ("quick", "full")}
    main = max(by_protocol, key=lambda name: len(by_protocol[name]))
    others = [name for name in by_protocol if name != main and by_protocol[name]]
    style.dress(axes, y="bits per byte", title=f"held-out text, {main} protocol")
    domains = list(dict.fromkeys(domain for record in by_protocol[main] for domain in record.get("per_domain") or {}))
    tokens = read.column(by_protocol[main], "tokens")
    ends, labels, shades = [], [], []
    for domain in domains:
        values = read.column([record.get("per_domain") or {} for record in by_protocol[main]], domain)
        ends.append(_draw_dots(axes, tokens, values, "#9A9A9A", width=0.8, size=1.5))
        labels.append(domain)
        shades.append(style.QUIET)
    for name, shade, marker in zip([main, *others], style.PALETTE, "oD", strict=False):
        values = read.column(by_protocol[name], "bits_per_byte")
        ends.append(_draw_dots(axes, read.column(by_protocol[name], "tokens"), values, shade, marker=marker))
        labels.append("mean" if name == main else f"mean ({name})")
        shades.append(shade)
    style.label_ends(axes, ends, labels, shades)


def _draw_noisy(
    axes: Axes, at: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"], shade: str, dash: str = "-"
) -> float:
    """Raw values faint, their moving average on top; returns where the average ends."""
    average = read.smooth(values)
    marker = "o" if len(at) < 3 else ""
    axes.plot(at, values, color=shade, alpha=0.25, linewidth=0.8, marker=marker, markersize=3)
    axes.plot(at, average, color=shade, linestyle=dash, linewidth=1.8, marker=marker, markersize=4)
    return float(average[-1])


def _draw_dots(
    axes: Axes,
    at: Float[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
    shade: str,
    marker: str = "o",
    width: float = 1.8,
    size: float = 4.0,
    dash: str = "-",
) -> float:
    """Measured points joined by a line; returns the last one."""
    axes.plot(at, values, color=shade, linestyle=dash, linewidth=width, marker=marker, markersize=size)
    return float(values[-1])


def _limit_x(axes: Axes, at: Float[np.ndarray, " n"], quantity: str, start: float = 0.0) -> None:
    style.start_at_zero(axes, at, start)
    if quantity == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _shared_protocol(runs: Mapping[str, Sequence[Record]]) -> str:
    for protocol in ("quick", "full"):
        if all(read.of_kind(records, "eval", protocol) for records in runs.values()):
            return protocol
    raise UserError(f"runs {list(runs)} share no evaluation protocol; evaluate all of them with one, quick or full")
