"""Lesson 04, second exercise: blocks of 32 FP4 values under a scale that is a power of two.

Axes: N blocks of 32 values.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from minimoe.exercises.record import Arguments, Case, Exercise, Mistake, Output

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # its magnitudes; code i is the i-th


def mxfp4_oracle(x: Float[np.ndarray, "N 32"]) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N 32"]]:
    """Block by block: double and halve the scale until it is the smallest that will do; try all eight magnitudes."""
    scales, rows = [], []
    for block in x:
        largest, scale = max(abs(float(value)) for value in block), 1.0
        while largest > 6 * scale:
            scale *= 2
        while 0 < largest <= 3 * scale:
            scale /= 2
        row = []
        for value in block:
            size = abs(float(value)) / scale
            code = min(range(8), key=lambda i: (abs(size - E2M1[i]), i % 2))  # of two equally near ones the even code
            row.append(np.copysign(E2M1[code] * scale, value))
        scales.append(scale)
        rows.append(row)
    return np.array(scales), np.array(rows)


# What can go wrong: the scale from the largest magnitudes, and the reading of x / scale as e2m1.


def power(exponent: Any) -> Any:
    return np.exp2(exponent)


def round_up(largest: Any) -> Any:
    mantissa, exponent = np.frexp(largest / 6)
    return np.where(largest > 0, np.ldexp(1.0, exponent - (mantissa == 0.5)), 1.0)


def by_step(y: np.ndarray, limit: float = 6.0) -> np.ndarray:
    """e2m1 by its spacing: 0.5 up to 2, 1 up to 4, then 2. Without a limit it goes on beyond 6 in steps of 2."""
    step = np.where(np.abs(y) < 2, 0.5, np.where(np.abs(y) < 4, 1.0, 2.0))
    return np.clip(np.rint(y / step) * step, -limit, limit)


def nearest(y: np.ndarray, *, tie_down: bool) -> np.ndarray:
    """e2m1 by distance, ties all to one side."""
    values = np.array(E2M1 if tie_down else E2M1[::-1])
    return np.sign(y) * values[np.abs(np.abs(y)[..., None] - values).argmin(-1)]


def towards_zero(y: np.ndarray) -> np.ndarray:
    return np.sign(y) * np.array(E2M1)[np.searchsorted(E2M1, np.abs(y), side="right") - 1]


def blocks(
    scale: Callable[[Any], Any] = round_up,
    read: Callable[[np.ndarray], np.ndarray] = by_step,
    *,
    largest: Callable[[np.ndarray], Any] = lambda x: np.abs(x).max(axis=1),
    finish: Callable[[Any, np.ndarray, np.ndarray], Any] | None = None,
) -> Callable[..., Any]:
    """A mistaken function: another scale, reading of ``x / scale``, largest, or other returns ``(scale, x_hat, x)``."""

    def outputs(x: np.ndarray) -> Any:
        x = x.astype(np.float64)
        scales = scale(largest(x))
        column = scales[:, None] if scales.shape == (len(x),) else scales
        x_hat = read(x / column) * column
        return finish(scales, x_hat, x) if finish else (scales, x_hat)

    return outputs


def too_small(scale: Callable[[Any], Any], **rest: Any) -> Iterator[Callable[..., Any]]:
    """With a scale that leaves values beyond 6, by code that saturates and by code that does not."""
    yield blocks(scale, by_step, **rest)
    yield blocks(scale, lambda y: by_step(y, np.inf), **rest)


def over_all() -> Iterator[Callable[..., Any]]:
    """One scale for all blocks, in the three shapes that people give it."""
    yield blocks(largest=lambda x: np.abs(x).max())
    yield blocks(largest=lambda x: np.abs(x).max(keepdims=True)[0])
    yield blocks(largest=lambda x: np.full(len(x), np.abs(x).max()))


def by_logarithm() -> Iterator[Callable[..., Any]]:
    """With JAX's own float32 logarithms: which powers of two they miss differs from NumPy's."""

    def scale(exponent: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
        def power_above(largest: Any) -> Any:
            import jax.numpy as jnp

            exponents = exponent(jnp, jnp.asarray(largest, jnp.float32))
            return np.where(largest > 0, np.exp2(np.ceil(np.asarray(exponents, np.float64))), 1.0)

        return power_above

    yield blocks(scale(lambda jnp, top: jnp.log2(top / 6)))
    yield blocks(scale(lambda jnp, top: jnp.log2(top) - jnp.log2(6.0)))
    yield blocks(scale(lambda jnp, top: jnp.log(top / 6) / jnp.log(2.0)))


def almost_a_power(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Off by as much as an exponential in float32; whatever is as near is recognised too."""
    scale, x_hat = mxfp4_oracle(x)
    return scale * (1 + 1e-7), x_hat * (1 + 1e-7)


def zero_block() -> Iterator[Callable[..., Any]]:
    def scale(top: Any) -> Any:
        return np.where(top > 0, round_up(top), 0.0)

    yield blocks(scale)
    yield blocks(scale, lambda y: np.nan_to_num(by_step(y)))


def block_arguments(seed: int, largest: list[float]) -> Arguments:
    """Blocks whose largest magnitude is as given, by turns positive and negative.

    Beside a negative one positive values are small, so that they do not have the same scale.
    """
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.93, 0.93, (len(largest), 32))
    x[1::2] = np.where(x[1::2] > 0, 0.4 * x[1::2], x[1::2])
    for row, column in enumerate(rng.integers(0, 32, len(largest))):
        x[row, column] = (-1) ** row
    return ((x * np.array(largest)[:, None]).astype(np.float32),)


def tie_arguments() -> Arguments:
    """The middle between every two neighbours, both signs; each block's largest value is 6 scales."""
    middles = np.array([(a + b) / 2 for a, b in itertools.pairwise(E2M1)])
    row = np.concatenate([[6.0, -6.0], middles, -middles, E2M1[:-1], -np.array(E2M1), [0.0]])
    return ((row * np.array([[1.0], [2.0**-12], [2.0**9], [0.125]])).astype(np.float32),)


BORDERS = [6.0 * 2.0**k for k in (-31, -26, -13, 0, 5, 20)]


def just_above_arguments() -> Arguments:
    return block_arguments(414, [float(np.nextafter(np.float32(b), np.float32(np.inf))) for b in BORDERS])


def zero_block_arguments() -> Arguments:
    (x,) = block_arguments(415, [5.0, 1.0, 0.7, 30.0])
    x[1], x[2] = 0.0, -np.abs(x[2])
    return (x,)


def extreme_arguments() -> Arguments:
    """Blocks of 1e-30 and 1e30, one outlier beside small values, equal values, and one value alone."""
    (x,) = block_arguments(416, [1e-30, 1e30, 1.0, 1.0, 1.0, 5e-7])
    x[2, 0], x[3], x[4] = 900.0, -0.1, 0.0
    x[4, 7] = -7.0
    return (x,)


MXFP4_SCALE = Exercise(
    id="quant.mxfp4_scale",
    lesson=4,
    title="The power-of-two scale of an FP4 block",
    signature="mxfp4_scale(x)",
    task=(
        "A block of 32 values shares one scale, a power of two (UE8M0: a byte that holds nothing but an exponent). By the "
        "rule of DeepSeek's kernels it is rounded up, so that nothing saturates:\n\n"
        "$$s = 2^{\\lceil \\log_2 (\\max_i |x_i| / 6) \\rceil},$$\n\n"
        "which is the *smallest power of two with* $\\max |x| \\le 6 s$. Each $x_i / s$ is then rounded to the nearest "
        "number that e2m1 has, one of 0, 0.5, 1, 1.5, 2, 3, 4, 6 with a sign. Between two equally near ones it takes the "
        "one with the even code; their codes are 0 to 7 in that order, so 2.5 becomes 2, and 3.5 becomes 4. A block of "
        "zeros has the scale 1.\n\n"
        "`x [N, 32]` float32, one row a block, its largest magnitude 0 or between 1e-30 and 1e30. Returns `(scale, "
        "x_hat)`: scale `[N]` and the rounded values times their scale `[N, 32]`, both float32. Both are **exact**: float32 "
        "holds these numbers without any error, so none is allowed."
    ),
    difficulty=4,
    minutes=30,
    points=15,
    hints=(
        "Take the two halves apart. First the scale of each row: the largest magnitude over 6, brought up to a power of "
        "two. Then the rounding of y = x / scale, of which you know that |y| <= 6.",
        "float32 logarithms are off in the last bit, and ceil makes a whole step of it; jnp.exp2 need not be exact either. "
        "jnp.frexp takes a number apart without error, into a mantissa in [0.5, 1) and an exponent, and jnp.ldexp puts "
        "one together. Which mantissa does an exact power of two have?",
        "Neighbours in e2m1 are 0.5 apart below 2, 1 apart from 2 to 4, and 2 apart above. Divide y by the distance that "
        "holds where it lies, round to whole numbers (halves to even, as jnp.round does), multiply again.",
    ),
    outputs=(Output("scale", "float32"), Output("x_hat", "float32")),
    oracle=mxfp4_oracle,
    cases=(
        Case(
            "first shape",
            lambda: block_arguments(411, [8.2 * 2.0**-9, 5.5 * 2.0**13, 6.6, 7.7 * 2.0**-14]),
            absolute=0.0,
            exact=True,
        ),
        Case("halfway between two values", tie_arguments, absolute=0.0, exact=True),
        Case(
            "largest value exactly 6 times a power of two",
            lambda: block_arguments(413, BORDERS),
            absolute=0.0,
            exact=True,
        ),
        Case("largest value just above 6 times a power of two", just_above_arguments, absolute=0.0, exact=True),
        Case("one block", lambda: block_arguments(417, [5.5]), absolute=0.0, exact=True),
        Case("a block of zeros", zero_block_arguments, absolute=0.0, exact=True),
        Case("extreme inputs", extreme_arguments, absolute=0.0, exact=True),
    ),
    mistakes=(
        Mistake(
            "almost a power of two",
            "the scale is right to six digits, but no power of two: exponentials in float32 need not be exact. "
            "A byte with an exponent cannot hold it, and cutting its mantissa off may halve it.",
            almost_a_power,
        ),
        *(
            Mistake(
                "rounded down",
                "takes the floor of the exponent, so the largest values lie beyond 6 scales, where e2m1 has nothing: they "
                "saturate. DeepSeek's rule rounds up.",
                outputs,
            )
            for outputs in too_small(lambda top: np.where(top > 0, power(np.floor(np.log2(top / 6))), 1.0))
        ),
        Mistake(
            "exact powers rounded up",
            "doubles the scale also where the largest value is exactly 6 times a power of two and would just fit: a bit "
            "of every value in the block is given away.",
            blocks(lambda top: np.ldexp(1.0, np.frexp(top / 6)[1])),
        ),
        *(
            Mistake(
                "the OCP rule",
                "that is the scale of the MX specification, the exponent of the largest value minus 2: whatever lies "
                "between 6 and 8 scales saturates. DeepSeek rounds up instead.",
                outputs,
            )
            for outputs in too_small(lambda top: np.where(top > 0, power(np.floor(np.log2(top)) - 2), 1.0))
        ),
        *(
            Mistake(
                "rounded to the nearest power",
                "goes to the nearest power of two, which is too small for about half of all blocks: their largest values "
                "saturate. It has to be rounded up.",
                outputs,
            )
            for outputs in too_small(lambda top: np.where(top > 0, power(np.rint(np.log2(top / 6))), 1.0))
        ),
        Mistake(
            "not a power of two",
            "the scale is the largest magnitude over 6, a float of 32 bits. A scale of one byte holds an exponent and "
            "nothing else.",
            blocks(lambda top: np.where(top > 0, top / 6, 1.0)),
        ),
        *(
            Mistake(
                "divided by 6 twice",
                "once is enough: dividing by the scale maps the largest magnitude to between 3 and 6.",
                outputs,
            )
            for outputs in (
                *too_small(lambda top: np.where(top > 0, round_up(top / 6), 1.0)),
                blocks(read=lambda y: by_step(y / 6)),
                blocks(read=lambda y: by_step(y / 6) * 6),
            )
        ),
        *(
            Mistake(
                "one scale for all blocks",
                "the largest value of the whole array decides for all. Each block of 32 has its own scale; that is what "
                "keeps an outlier from flattening all others.",
                outputs,
            )
            for outputs in over_all()
        ),
        Mistake(
            "one scale for each column",
            "takes the maximum over the blocks. The 32 values of a row share a scale.",
            blocks(
                largest=lambda x: np.abs(x).max(axis=0)[None],
                finish=lambda scale, x_hat, x: (scale[0], x_hat),
            ),
        ),
        *(
            Mistake(
                "largest value for largest magnitude",
                "looks at positive values only. In a block whose largest magnitude is negative, that value saturates.",
                outputs,
            )
            for outputs in too_small(round_up, largest=lambda x: x.max(axis=1))
        ),
        Mistake(
            "whole numbers",
            "rounds to whole numbers, which is int4. e2m1 is a float: it has 0.5 and 1.5, and nothing between 4 and 6.",
            blocks(read=np.rint),
        ),
        Mistake(
            "steps of 0.5 everywhere",
            "e2m1 is a float: its steps are 0.5 only up to 2, then 1, then 2. Sixteen codes do not reach from -6 to 6 in "
            "halves.",
            blocks(read=lambda y: np.rint(2 * y) / 2),
        ),
        Mistake(
            "not rounded",
            "the scale is right, but x_hat is x: the values have to be among those that e2m1 has.",
            blocks(read=lambda y: y),
        ),
        Mistake(
            "codes for values",
            "x_hat is still in units of the scale: multiply it back.",
            blocks(finish=lambda scale, x_hat, x: (scale, x_hat / scale[:, None])),
        ),
        Mistake(
            "scale inverted",
            "x_hat is right, but the scale is its own reciprocal: x is divided by it, and codes are multiplied.",
            blocks(finish=lambda scale, x_hat, x: (1 / scale, x_hat)),
        ),
        Mistake(
            "ties to the smaller magnitude",
            "takes the first of two equally near values, as argmin over a list does. Ties go to the even code: 0.75 "
            "becomes 1, and 3.5 becomes 4.",
            blocks(read=lambda y: nearest(y, tie_down=True)),
        ),
        Mistake(
            "ties to the larger magnitude",
            "takes the larger of two equally near values. Ties go to the even code: 0.25 becomes 0, and 5 becomes 4.",
            blocks(read=lambda y: nearest(y, tie_down=False)),
        ),
        Mistake(
            "rounded towards zero",
            "takes the value below instead of the nearest one: everything becomes smaller.",
            blocks(read=towards_zero),
        ),
        *(
            Mistake(
                "a logarithm at the border",
                "float32 logarithms are off in the last bit, and ceil makes a factor of two of it: where the largest value "
                "is 6 times a power of two, or just above, the scale comes out doubled or halved.",
                outputs,
            )
            for outputs in by_logarithm()
        ),
        *(
            Mistake(
                "0/0 in a block of zeros",
                "the logarithm of 0 is minus infinity, so the scale is 0 and x / scale is 0/0. Its scale is 1.",
                outputs,
            )
            for outputs in zero_block()
        ),
    ),
)
