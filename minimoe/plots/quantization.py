"""The figures of quantization: `rounding`, what it does to numbers, and `recipes`, what smaller models lose by it."""

from __future__ import annotations

from minimoe.plots.recipes import (
    compared,
    gain_by_rows,
    pareto,
    quality_against_size,
    recipe_points,
    recorded_recipes,
    sensitivity_map,
)
from minimoe.plots.rounding import error_against_bits, error_by_block, one_block, rounding, staircase

__all__ = [
    "compared",
    "error_against_bits",
    "error_by_block",
    "gain_by_rows",
    "one_block",
    "pareto",
    "quality_against_size",
    "recipe_points",
    "recorded_recipes",
    "rounding",
    "sensitivity_map",
    "staircase",
]
