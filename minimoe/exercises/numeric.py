"""Numbers side by side: tolerances that follow from the dtype, the first difference, and gradients by differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

# Errors allowed in float32, of the value and of the largest value of the array; the latter for elements that are small
# because large terms cancelled. A float32 holds 1.2e-7; sums of a few dozen terms lose some ten times that, and a right
# answer that adds in another order loses it elsewhere: 84 and 8 units in the last place.
ERRORS = (1e-5, 1e-6)
# The gradient is computed by the student's code in float32, forwards and backwards, against central differences of the
# oracle in float64, whose own error is below 1e-8: ten times the room of the values.
GRADIENT_ERRORS = (1e-4, 1e-5)
STEP = 1e-5  # of central differences: their error, of the order STEP**2, is far below float32's


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """``|got - expected| <= relative * |expected| + of_largest * max |expected|``.

    ``absolute`` replaces the second term, where the largest value does not say what is negligible.
    """

    relative: float
    of_largest: float
    absolute: float | None = None

    def close(self, expected: np.ndarray, got: np.ndarray) -> np.ndarray:
        """Element by element. Integers must be equal; infinities and NaN match their like."""
        if expected.dtype.kind in "iub" and got.dtype.kind in "iub":
            return np.asarray(expected == got)
        expected, got = expected.astype(np.float64), got.astype(np.float64)
        with np.errstate(invalid="ignore"):
            finite = np.abs(expected[np.isfinite(expected)])
            scale = float(finite.max()) if finite.size else 0.0
            room = self.of_largest * scale if self.absolute is None else self.absolute
            near = np.abs(got - expected) <= room + self.relative * np.abs(expected)
        both_nan = np.isnan(got) & np.isnan(expected)
        return np.where(np.isfinite(expected), near, (got == expected) | both_nan)


def element(name: str, index: tuple[int, ...]) -> str:
    """``name[2, 0]``, or ``name`` alone for a scalar."""
    return f"{name}[{', '.join(str(int(i)) for i in index)}]" if index else name


def number(value: Any) -> str:
    value = np.asarray(value)
    return str(value.item()) if value.dtype.kind in "iub" else f"{float(value):.7g}"


def difference(name: str, expected: np.ndarray, got: np.ndarray, tolerance: Tolerance) -> str | None:
    """The first element that differs, in words; None when all are close. Shapes must be equal."""
    wrong = np.asarray(~tolerance.close(expected, got))
    if not wrong.any():
        return None
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    right, answer = number(expected[index]), number(got[index])
    if right == answer:  # differs further behind
        right, answer = f"{float(expected[index]):.10g}", f"{float(got[index]):.10g}"
    text = f"{element(name, index)}: expected {right}, got {answer}"
    if wrong.size > 1:
        text += f" ({int(wrong.sum())} of {wrong.size} elements differ)"
    return text


def as_outputs(returned: Any) -> tuple[np.ndarray, ...]:
    """A returned value or tuple as NumPy arrays."""
    return tuple(np.asarray(value) for value in (returned if isinstance(returned, tuple) else (returned,)))


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """Fixed weights that make one number of an output, float64.

    Not all ones: combine weights that sum to 1 have no gradient in their sum. The first is 1, for scalars.
    """
    return np.cos(np.arange(int(np.prod(shape, dtype=int)))).reshape(shape)


def widen(value: Any) -> Any:
    """Floating arrays, bfloat16 among them, as float64; anything else as it is."""
    floating = isinstance(value, np.ndarray) and value.dtype.kind not in "iub"
    return value.astype(np.float64) if floating else value


def numerical_gradient(
    function: Callable[..., Any], arguments: tuple[Any, ...], positions: tuple[int, ...]
) -> tuple[np.ndarray, ...]:
    """Central differences in float64 of the floating outputs, weighted by `cotangent`, one array for each position.

    Example:
      >>> print(numerical_gradient(lambda x: (x**2).sum(), (np.array([3.0, -1.0]),), (0,))[0].round(6))
      [ 6. -2.]
    """
    values = [widen(value) for value in arguments]

    def weighted() -> float:
        outputs = as_outputs(function(*values))
        return float(sum((out * cotangent(out.shape)).sum() for out in outputs if out.dtype.kind == "f"))

    gradients = []
    for position in positions:
        point = values[position] = values[position].copy()
        gradient = np.zeros_like(point)
        for index in np.ndindex(point.shape):
            here = point[index]
            step = STEP * max(1.0, abs(float(here)))
            point[index] = here + step
            above = weighted()
            point[index] = here - step
            below = weighted()
            point[index] = here
            gradient[index] = (above - below) / (2 * step)
        gradients.append(gradient)
    return tuple(gradients)
