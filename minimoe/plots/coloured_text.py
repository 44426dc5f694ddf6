"""A figure of the text itself, each token coloured by its first expert."""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle

from minimoe.errors import UserError
from minimoe.plots import style

FONT = "DejaVu Sans Mono"  # comes with matplotlib, so every machine draws the same
CHARACTER_WIDTH_EM = 0.602
COLUMNS = 64
LINE_HEIGHT_IN = 0.30
VISIBLE = {" ": "·", "\n": "↵", "\t": "→", "\r": "←"}
UNKNOWN = "□"


@dataclasses.dataclass(frozen=True)
class Piece:
    """A token, or the part of it that is on one line: ``text`` as drawn, from ``column`` of ``line``."""

    token: int
    text: str
    expert: int
    line: int
    column: int


def token_experts(
    tokens: Sequence[str],
    experts: Int[np.ndarray, "T K"],
    layer_name: str,
    max_lines: int = 40,
) -> Figure:
    """Draws the text; behind each token the colour, and below it the number, of its first expert.

    Spaces show as a dot, line ends and tabs as arrows, characters that the font lacks as a box.

    Args:
      tokens: T strings.
      experts: ids, [T, K], best first.
      layer_name: for the title.
      max_lines: what goes beyond is counted, not drawn.

    Raises:
      UserError: if there is no token, or not one row of experts a token.
    """
    if not tokens or len(tokens) != experts.shape[0]:
        raise UserError(
            f"{len(tokens)} tokens for {experts.shape[0]} rows of experts; give one row a token, and at least one"
        )
    pieces = wrap([visible(token) for token in tokens], [int(row[0]) for row in experts])
    drawn = [piece for piece in pieces if piece.line < max_lines]
    lines = drawn[-1].line + 1
    left_out = len(tokens) - 1 - drawn[-1].token
    head_in, foot_in = 0.55, 0.05 + 0.25 * (left_out > 0)
    height_in = head_in + foot_in + lines * LINE_HEIGHT_IN
    figure = style.NotebookFigure(figsize=(style.WIDTH_IN, height_in), facecolor="white")
    # Fixed margins instead of a computed layout, because the size of a character must be known in points.
    axes = figure.add_axes((0.01, foot_in / height_in, 0.98, lines * LINE_HEIGHT_IN / height_in))
    _draw(axes, drawn, lines)
    title = f"{layer_name}: first expert of each token"
    _write(figure, 1 - 0.20 / height_in, title, fontsize=style.TITLE_PT, fontweight="bold", color=style.INK)
    legend = "colour and small number: the expert.   · space   ↵ line end   → tab"
    _write(figure, 1 - 0.42 / height_in, legend, fontsize=style.TICK_PT, color=style.QUIET)
    if left_out:
        _write(figure, 0.12 / height_in, f"… and {left_out} more tokens", fontsize=style.TICK_PT, color=style.QUIET)
    return figure


def visible(token: str) -> str:
    """The token as it can be drawn: one character cell for each character, none of them invisible."""
    shown = []
    for character in unicodedata.normalize("NFC", token):
        character = VISIBLE.get(character, character)
        blank = not character.isprintable() or character.isspace() or unicodedata.combining(character)
        shown.append(UNKNOWN if blank or ord(character) not in _known_characters() else character)
    return "".join(shown) or UNKNOWN  # an empty token still had an expert


def wrap(shown: Sequence[str], experts: Sequence[int], columns: int = COLUMNS) -> list[Piece]:
    """Places tokens on lines of ``columns`` characters; a token is split at a line end, or if longer than a line."""
    pieces: list[Piece] = []
    line = column = 0
    for index, (text, expert) in enumerate(zip(shown, experts, strict=True)):
        for part in re.findall(f"[^↵]{{0,{columns - 1}}}↵|[^↵]{{1,{columns}}}", text):
            if column and column + len(part) > columns:
                line, column = line + 1, 0
            pieces.append(Piece(index, part, expert, line, column))
            column += len(part)
            if part.endswith(VISIBLE["\n"]):
                line, column = line + 1, 0
    return pieces


def _draw(axes: Axes, pieces: Sequence[Piece], lines: int) -> None:
    axes.set(xlim=(0, COLUMNS), ylim=(lines, 0))
    axes.set_axis_off()
    size = 0.98 * style.WIDTH_IN * 72 / COLUMNS / CHARACTER_WIDTH_EM
    for piece in pieces:
        shade = style.blend(style.color_of(piece.expert), "white", 0.55)
        box = Rectangle(
            (piece.column + 0.03, piece.line + 0.04), len(piece.text) - 0.06, 0.92, color=shade, linewidth=0
        )
        axes.add_patch(box)
        middle = piece.column + len(piece.text) / 2
        at: dict[str, Any] = {"ha": "center", "family": FONT, "color": style.INK, "parse_math": False}
        axes.text(middle, piece.line + 0.58, piece.text, va="baseline", fontsize=0.98 * size, **at)
        axes.text(middle, piece.line + 0.92, str(piece.expert), va="baseline", fontsize=0.40 * size, **at)


def _write(figure: Figure, height: float, text: str, **look: Any) -> None:
    figure.text(0.01, height, text, va="center", parse_math=False, **look)


@functools.cache
def _known_characters() -> frozenset[int]:
    """Code points that the font can draw; matplotlib warns about each of the others."""
    return frozenset(FT2Font(findfont(FontProperties(family=FONT))).get_charmap())
