"""Lesson 07, second exercise: a matrix from FP8 values and one scale a block, as published weights have them.

Axes: R rows, C columns, b the side of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from minimoe.exercises.record import Arguments, Case, Exercise, Mistake, Output

Scales = Callable[[np.ndarray, tuple[int, ...], int], np.ndarray]


def blocks_oracle(
    values: Float[np.ndarray, "R C"], scale_inv: Float[np.ndarray, "_ _"], block: int
) -> Float[np.ndarray, "R C"]:
    """Number by number."""
    rows, columns = values.shape
    out = np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            out[row, column] = values[row, column] * scale_inv[row // block, column // block]
    return out


def spread(scale: np.ndarray, shape: tuple[int, ...], block: int) -> np.ndarray:
    """Each scale over its block, cut to the matrix."""
    return scale.repeat(block, 0).repeat(block, 1)[: shape[0], : shape[1]]


def tiled(scale: np.ndarray, shape: tuple[int, ...], block: int) -> np.ndarray:
    return np.tile(scale, (block, block))[: shape[0], : shape[1]]


def shared_evenly(scale: np.ndarray, shape: tuple[int, ...], block: int) -> np.ndarray:
    """The blocks made equally large, so that the last is not cut."""
    row = np.arange(shape[0]) * scale.shape[0] // max(shape[0], 1)
    column = np.arange(shape[1]) * scale.shape[1] // max(shape[1], 1)
    return scale[row][:, column]


def from_the_end(scale: np.ndarray, shape: tuple[int, ...], block: int) -> np.ndarray:
    """The cut blocks at the top and at the left."""
    whole = scale.repeat(block, 0).repeat(block, 1)
    return whole[whole.shape[0] - shape[0] :, whole.shape[1] - shape[1] :]


def turned(scale: np.ndarray, shape: tuple[int, ...], block: int) -> np.ndarray:
    """The scales read column by column."""
    return spread(scale.reshape(scale.shape[::-1]).T, shape, block)


def scaled(scales: Scales = spread, join: Callable[..., Any] = np.multiply) -> Callable[..., Any]:
    """A mistaken reading: other scales for the numbers, or something else done with them."""

    def outputs(values: np.ndarray, scale_inv: np.ndarray, block: int) -> np.ndarray:
        values, scale_inv = np.asarray(values, np.float64), np.asarray(scale_inv, np.float64)
        return np.asarray(join(values, scales(scale_inv, values.shape, block)))

    return outputs


def block_arguments(seed: int, rows: int, columns: int, block: int) -> Arguments:
    rng = np.random.default_rng(seed)
    values = rng.integers(-14, 15, (rows, columns)) / 8 * 2.0 ** rng.integers(0, 5, (rows, columns))
    grid = (-(-rows // block), -(-columns // block))
    return values.astype(np.float32), rng.uniform(1e-3, 4e-3, grid).astype(np.float32), block


BLOCKS = Exercise(
    id="weights.blocks",
    lesson=7,
    title="Published FP8 weights: one scale a block",
    signature="dequantize(values, scale_inv, block)",
    task=(
        "Weights of DeepSeek-V3 are published as FP8 codes with one scale for each square of 128 x 128 numbers; the "
        "file calls the scales `weight_scale_inv`. Make the matrix of them. `values` `[R, C]` float32 are the codes, already "
        "turned into numbers. `scale_inv` float32 has one number for each square, `block` (an int) is its side. Squares are "
        "counted from the top left, so those at the right and at the bottom may be cut. A weight is its value *times* the "
        "scale of its square: `inv` says that it is the inverse of the factor by which the weights were multiplied when they "
        "were written. Returns weights `[R, C]` float32."
    ),
    difficulty=2,
    minutes=15,
    points=5,
    hints=(
        "For a matrix of 5 x 7 with block 3: how many scales are there, and which one belongs to row 4, column 6?",
        "Row r lies in the block r // block. Indexing with two arrays of such numbers gives one scale a number.",
        "scale_inv[rows[:, None], columns[None, :]], with rows and columns from arange(...) // block. Or repeat along both "
        "axes, then cut to [R, C].",
    ),
    outputs=(Output("weights", "float32"),),
    oracle=blocks_oracle,
    cases=(
        Case("whole blocks", lambda: block_arguments(711, 4, 6, 2), gradient=True),
        Case("blocks that are cut", lambda: block_arguments(712, 5, 7, 3), gradient=True),
        Case("a matrix smaller than a block", lambda: block_arguments(713, 1, 3, 8)),
        Case("blocks of one number", lambda: block_arguments(714, 2, 3, 1)),
        Case("published blocks of 128", lambda: block_arguments(715, 130, 257, 128)),
    ),
    mistakes=(
        Mistake(
            "divided by the scale",
            "divides. `scale_inv` is what a value is multiplied by; the division happened when the file was written.",
            scaled(join=np.divide),
        ),
        Mistake(
            "scales repeated as a pattern",
            "lays the grid of scales beside itself again and again. Neighbouring numbers share a scale.",
            scaled(tiled),
        ),
        Mistake(
            "blocks of equal size",
            "stretches the scales evenly over the matrix. Every block has the full side, only the last one is cut.",
            scaled(shared_evenly),
        ),
        Mistake(
            "cut blocks first",
            "counts the blocks from the bottom right. They begin at the top left, and the last ones are cut.",
            scaled(from_the_end),
        ),
        Mistake(
            "rows and columns of the grid exchanged",
            "reads the grid of scales column by column.",
            scaled(turned),
        ),
        Mistake(
            "one scale for a row of blocks",
            "uses the first scale of each row of blocks for all its columns.",
            scaled(lambda scale, shape, block: spread(scale[:, :1].repeat(scale.shape[1], 1), shape, block)),
        ),
        Mistake(
            "one scale for a column of blocks",
            "uses the first scale of each column of blocks for all its rows.",
            scaled(lambda scale, shape, block: spread(scale[:1].repeat(scale.shape[0], 0), shape, block)),
        ),
        Mistake(
            "one scale for all",
            "uses a single scale for the whole matrix.",
            scaled(lambda scale, shape, block: np.broadcast_to(scale[0, 0], shape)),
        ),
        Mistake(
            "no scale",
            "returns the values without their scales.",
            scaled(join=lambda values, scales: values),
        ),
        Mistake(
            "scale added",
            "adds the scale. It is a factor.",
            scaled(join=np.add),
        ),
    ),
    wrt=("values", "scale_inv"),
)
