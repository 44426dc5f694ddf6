"""A drawing of one MoE layer with one token in it: the router, the experts, those chosen, and the sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from minimoe.errors import UserError
from minimoe.plots import style

BOX_HEIGHT = 0.68
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}


def moe_layer(
    affinities: Sequence[float], weights: Mapping[int, float], title: str = "One token in a Mixture-of-Experts layer"
) -> Figure:
    """From left to right: the token, the router, E routed experts and a shared one, and the sum that is the output.

    A chosen expert is filled and has a thick arrow with its weight; the others are pale and have none.

    Args:
      affinities: of the token, one an expert.
      weights: the combine weight of each chosen expert.
      title: above the figure.

    Raises:
      UserError: for an expert that does not exist.
    """
    experts = len(affinities)
    strange = [expert for expert in weights if not 0 <= expert < experts]
    if strange or not experts:
        raise UserError(f"weights of experts {strange}, but there are {experts}; give ids below that number")
    figure = style.blank(title, height_in=0.9 + 0.52 * (experts + 1))
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(0, 10)
    axes.set_ylim(-0.6, experts + 0.6)
    middle = experts / 2
    _box(axes, 0.8, middle, "token\nu", style.FAINT, height=0.9)
    _box(axes, 2.75, middle, "router\n(a matrix)", style.blend(style.PALETTE[4], "white", 0.5), height=0.9)
    _box(axes, 8.5, middle, "sum", style.FAINT, height=0.9)
    _arrow(axes, (1.5, middle), (2.05, middle))
    for expert, affinity in enumerate(affinities):
        at, chosen = float(experts - expert), expert in weights
        shade = style.PALETTE[0] if chosen else style.blend(style.FAINT, "white", 0.6)
        _box(axes, 5.6, at, f"expert {expert}\naffinity {affinity:.2f}", shade)
        look = {"linewidth": 2.2, "color": style.PALETTE[0]} if chosen else {"linestyle": ":", "color": style.QUIET}
        _arrow(axes, (3.45, middle), (4.85, at), **look)
        if chosen:
            _arrow(axes, (6.35, at), (7.8, middle), linewidth=2.2, color=style.PALETTE[0])
            label = f"× {weights[expert]:.2f}"
            _on_arrow(axes, (6.35, at), (7.8, middle), 0.3, label, fontsize=style.TICK_PT, fontweight="bold")
    _box(axes, 5.6, 0.0, "shared expert", style.blend(style.PALETTE[2], "white", 0.4))
    _arrow(axes, (0.8, middle - 0.5), (4.85, 0.0), color=style.PALETTE[2])
    _arrow(axes, (6.35, 0.0), (7.8, middle), color=style.PALETTE[2])
    axes.text(9.3, middle, "output", va="center", fontsize=style.LABEL_PT, color=style.INK)
    return figure


def _box(axes: Axes, x: float, y: float, text: str, shade: str, height: float = BOX_HEIGHT) -> None:
    corner = (x - 0.7, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, 1.4, height, boxstyle="round,pad=0.03", facecolor=shade, edgecolor=style.INK))
    axes.text(x, y, text, ha="center", va="center", fontsize=style.TICK_PT, color=style.ink_on(shade))


def _on_arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], part: float, text: str, **look: object
) -> None:
    """A label on its own arrow, after a part of the way: elsewhere it would lie on another one."""
    x, y = (a + part * (b - a) for a, b in zip(start, end, strict=True))
    settings: dict[str, Any] = {"ha": "center", "va": "center", "color": style.INK, "bbox": WHITE} | look
    axes.text(x, y, text, **settings)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **look: object) -> None:
    settings = {"arrowstyle": "-|>", "mutation_scale": 9, "color": style.QUIET, "linewidth": 1.0} | look
    axes.add_patch(FancyArrowPatch(start, end, **settings))  # type: ignore[arg-type]
