"""How many weights the small parts have. Axes: D model width, F hidden width."""

from __future__ import annotations


def norm_params(d_model: int) -> int:
    """Weights of one norm: a scale a feature."""
    return d_model


def swiglu_params(d_model: int, d_ff: int) -> int:
    """Weights of one SwiGLU: three matrices D x F.

    Example:
      >>> swiglu_params(128, 512) == 3 * 128 * 512
      True
    """
    return 3 * d_model * d_ff
