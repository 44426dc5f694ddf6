"""Lesson 04, first exercise: a weight matrix as int8 codes with one scale for each output channel.

Axes: O output channels, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from minimoe.exercises.record import Arguments, Case, Exercise, Mistake, Output


def absmax_oracle(w: Float[np.ndarray, "O I"]) -> tuple[Int[np.ndarray, "O I"], Float[np.ndarray, "O 1"]]:
    """Row by row and value by value; Python's ``round`` takes halves to the even neighbour."""
    codes, scales = [], []
    for row in w:
        largest = max(abs(float(value)) for value in row)
        scale = largest / 127 if largest > 0 else 1.0
        codes.append([round(float(value) / scale) for value in row])
        scales.append([scale])
    return np.array(codes), np.array(scales)


def magnitudes(w: np.ndarray) -> np.ndarray:
    return np.abs(w).max(axis=1, keepdims=True)


def saturated(codes: np.ndarray, lowest: int = -128) -> np.ndarray:
    """To int8 as XLA converts: what is too large becomes the largest, NaN becomes 0."""
    return np.clip(np.nan_to_num(codes), lowest, 127).astype(np.int8)


def wrapped(codes: np.ndarray) -> np.ndarray:
    """To int8 by way of a wider integer: the upper bits are lost."""
    return codes.astype(np.int64).astype(np.int8)


def quantizer(
    largest: Callable[[np.ndarray], Any] = magnitudes,
    *,
    scale: Callable[[Any], Any] | None = None,
    round_: Callable[[np.ndarray], np.ndarray] = np.rint,
    cast: Callable[[np.ndarray], np.ndarray] = saturated,
    finish: Callable[[np.ndarray, Any, np.ndarray], Any] | None = None,
) -> Callable[..., Any]:
    """A mistaken quantizer: another largest value, scale, rounding or cast, or other returns ``(codes, scale, w)``."""

    def outputs(w: np.ndarray) -> Any:
        w = w.astype(np.float64)
        top = largest(w)
        step = scale(top) if scale else np.where(top == 0, 1.0, top / 127)
        codes = cast(round_(w / step))
        return finish(codes, step, w) if finish else (codes, step)

    return outputs


def steps(count: int | float) -> Callable[[Any], Any]:
    return lambda top: np.where(top == 0, 1.0, top / count)


def half_away(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


def per_tensor() -> Iterator[Callable[..., Any]]:
    """One scale in the three shapes that people give it."""
    yield quantizer(lambda w: np.abs(w).max())
    yield quantizer(lambda w: np.abs(w).max(keepdims=True))
    yield quantizer(lambda w: np.full((len(w), 1), np.abs(w).max()))


def epsilons() -> Iterator[Callable[..., Any]]:
    """The scale kept away from 0 by the numbers and in the places that people choose."""
    for epsilon in (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5):
        yield quantizer(scale=lambda top, e=epsilon: np.maximum(top, e) / 127)
        yield quantizer(scale=lambda top, e=epsilon: np.maximum(top / 127, e))
        yield quantizer(scale=lambda top, e=epsilon: (top + e) / 127)
        yield quantizer(scale=lambda top, e=epsilon: top / 127 + e)


def weight_arguments(seed: int, scales: list[float], inputs: int) -> Arguments:
    """Rows with a largest magnitude of 127 scales, by turns positive and negative; no other value is near a tie.

    Scales of few bits: then 127 of them are exactly 127 steps in float32 too, however they are divided.
    """
    rng = np.random.default_rng(seed)
    steps_ = rng.integers(-118, 119, (len(scales), inputs)) + rng.uniform(-0.4, 0.4, (len(scales), inputs))
    for row, column in enumerate(rng.integers(0, inputs, len(scales))):
        steps_[row, column] = 127.0 * (-1) ** row
    return ((steps_ * np.array(scales)[:, None]).astype(np.float32),)


def tie_arguments() -> Arguments:
    """Halves of a scale that is a power of two, so that ``w / scale`` is exact."""
    halves = np.array(
        [
            [127.0, 0.5, 1.5, 2.5, -3.5, -0.5],
            [-1.5, -127.0, 3.5, 5.5, 7.5, 8.5],
            [60.5, -61.5, 127.0, 11.5, -12.5, 13.5],
            [0.5, 9.5, -10.5, 127.0, 15.5, -16.5],
        ]
    )
    return ((halves * np.array([[1.0], [0.25], [2.0**-9], [32.0]])).astype(np.float32),)


def zero_row_arguments() -> Arguments:
    (w,) = weight_arguments(404, [5 / 256, 0.5, 2.0**-10, 4.0], 6)
    w[1] = 0.0
    return (w,)


def extreme_arguments() -> Arguments:
    """Rows of 1e-30 and 1e30, one outlier beside small values, and one value alone."""
    (w,) = weight_arguments(405, [1e-32, 1e28, 1.0, 1.0], 6)
    w[2] = [1000.0, 1.0, -2.0, 3.0, -9.0, 20.0]
    w[3] = [0.0, 0.0, 0.0, -3.0, 0.0, 0.0]
    return (w,)


ABSMAX_INT8 = Exercise(
    id="quant.absmax_int8",
    lesson=4,
    title="Int8 codes with a scale per channel",
    signature="absmax_int8(w)",
    task=(
        "Symmetric int8: every output channel has a scale of its own, which maps its largest magnitude onto 127,\n\n"
        "$$s_o = \\max_i |w_{oi}| \\,/\\, 127, \\qquad q_{oi} = \\mathrm{round}(w_{oi} / s_o),$$\n\n"
        "and $w \\approx q \\, s$. Round to the nearest whole number, halves to the even one. A row of zeros has the "
        "scale 1 and codes 0.\n\n"
        "`w [O, I]` float32, one row an output channel; the largest magnitude of a row is 0 or between 1e-30 and 1e30. "
        "Returns `(codes, scale)`: codes `[O, I]` **int8**, scale `[O, 1]` float32."
    ),
    difficulty=2,
    minutes=15,
    points=10,
    hints=(
        "Which values share a scale? Those that one output sums over: a row. With keepdims=True its maximum has the shape "
        "[O, 1] and divides w as it is.",
        "Codes go from -127 to 127; -128 is left unused, so that w and -w have the same codes up to the sign. astype "
        "cuts the fraction off: something has to happen before it.",
        "0/0 is NaN, and the cast to int8 hides it. Choose the scale by jnp.where: where the largest magnitude is 0 it "
        "is 1, before anything is divided.",
    ),
    outputs=(Output("codes", "int8"), Output("scale", "float32")),
    oracle=absmax_oracle,
    cases=(
        Case("first shape", lambda: weight_arguments(401, [5 / 256, 0.5, 2.0**-10, 4.0], 6), absolute=0.0),
        Case("other sizes", lambda: weight_arguments(402, [3 / 1024, 13 / 128, 7.0], 9), absolute=0.0),
        Case("one row", lambda: weight_arguments(406, [3 / 128], 6), absolute=0.0),
        Case("halves between two codes", tie_arguments, absolute=0.0),
        Case("a row of zeros", zero_row_arguments, absolute=0.0),
        Case("extreme inputs", extreme_arguments, absolute=0.0),
    ),
    mistakes=(
        *(
            Mistake(
                "one scale for the whole tensor",
                "the largest value of the matrix decides for all channels. A channel with small weights then uses a few "
                "codes only. Each row has its own largest magnitude.",
                outputs,
            )
            for outputs in per_tensor()
        ),
        Mistake(
            "scale along the wrong axis",
            "takes the maximum over the output channels, so there is one scale for each input. It could not be taken out "
            "of the sum over inputs; that of a row can.",
            quantizer(lambda w: np.abs(w).max(axis=0, keepdims=True)),
        ),
        *(
            Mistake(
                "largest value for largest magnitude",
                "looks at positive values only. In a row whose largest magnitude is negative, that value is cut off.",
                quantizer(lambda w: w.max(axis=1, keepdims=True), cast=lambda c, low=lowest: saturated(c, low)),
            )
            for lowest in (-127, -128)
        ),
        Mistake(
            "truncated",
            "cuts the fraction off instead of rounding: values are off by up to a whole step, and all towards zero, so the "
            "errors do not cancel.",
            quantizer(round_=np.trunc),
        ),
        Mistake(
            "rounded down",
            "takes the floor: values are off by up to a whole step, and all downwards, so the errors do not cancel.",
            quantizer(round_=np.floor),
        ),
        Mistake(
            "not rounded",
            "divides by the scale and leaves it at that: the codes have to be whole numbers, of type int8.",
            quantizer(round_=lambda x: x, cast=lambda x: x),
        ),
        Mistake(
            "128 steps",
            "maps the largest magnitude onto 128, which int8 does not have on the positive side: it saturates at 127 and "
            "comes back too small.",
            quantizer(scale=steps(128)),
        ),
        Mistake(
            "128 wraps around",
            "maps the largest magnitude onto 128, which int8 does not have: the largest weight of a row becomes -128, its "
            "own opposite.",
            quantizer(scale=steps(128), cast=wrapped),
        ),
        *(
            Mistake(
                "127.5 steps",
                "spreads the range over 255 steps of equal width. The largest magnitude then lies half a step beyond the "
                "last code; here it is exactly 127.",
                quantizer(scale=steps(127.5), cast=lambda c, low=lowest: saturated(c, low)),
            )
            for lowest in (-127, -128)
        ),
        Mistake(
            "scale inverted",
            "the codes are right, but the scale is its own reciprocal: codes times scale must give back w.",
            quantizer(finish=lambda codes, scale, w: (codes, 1 / scale)),
        ),
        Mistake(
            "multiplied by the scale",
            "the scale is right, but w was multiplied by it: dividing is what brings w to -127..127.",
            quantizer(finish=lambda codes, scale, w: (saturated(np.rint(w * scale)), scale)),
        ),
        Mistake(
            "fake quantization",
            "returns rounded weights in place of codes. Those are still numbers of 32 bits: nothing has become smaller.",
            quantizer(finish=lambda codes, scale, w: (codes * scale, scale)),
        ),
        Mistake(
            "halves rounded away from zero",
            "halves have to go to the even neighbour. Always outwards makes magnitudes too large on average.",
            quantizer(round_=half_away),
        ),
        Mistake(
            "halves rounded up",
            "halves have to go to the even neighbour. Always upwards shifts the mean of the weights.",
            quantizer(round_=lambda x: np.floor(x + 0.5)),
        ),
        Mistake(
            "0/0 in a row of zeros",
            "the scale of a row of zeros is 0, and its codes come from 0/0. The cast turns that NaN into a harmless 0 here; "
            "other hardware need not. Its scale is 1.",
            quantizer(scale=lambda top: top / 127),
        ),
        *(
            Mistake(
                "an epsilon under the scale",
                "no division by 0, but another scale than the one asked for: for a row of zeros it is 1, and a row "
                "of tiny weights keeps its own, which a fixed number would swamp.",
                outputs,
            )
            for outputs in epsilons()
        ),
    ),
)
