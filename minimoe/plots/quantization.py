"""The figures of quantization. `rounding` draws what happens to numbers, `recipes` what happens to models."""

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
