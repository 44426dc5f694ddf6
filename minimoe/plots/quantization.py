"""The figures of quantization: `rounding`, what it does to numbers, and `recipes`, what smaller models lose by it."""

from __future__ import annotations

from minimoe.plots.recipes import (
    compared,
    gain_by_rows,
)
from minimoe.plots.rounding import error_against_bits, rounding, staircase

__all__ = [
    "compared",
    "error_against_bits",
    "gain_by_rows",
    "rounding",
    "staircase",
]
