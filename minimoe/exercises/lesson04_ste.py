"""Lesson 04, third exercise: rounding that a gradient passes through.

Axes: O output channels, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from minimoe.exercises.numeric import cotangent
from minimoe.exercises.record import Arguments, Arrays, Case, Exercise, Mistake, Output


def straight_through_oracle(x: Float[np.ndarray, "O I"], scale: Float[np.ndarray, "O 1"]) -> Float[np.ndarray, "O I"]:
    """Value by value."""
    rows = []
    for row, (step,) in zip(x, scale, strict=True):
        rows.append([max(-127, min(127, round(float(value / step)))) * step for value in row])
    return np.array(rows)


def inside(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """1 where the value is within reach of the codes, else 0."""
    return (np.abs(x) <= 127 * scale).astype(np.float64)


def codes(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x / scale), -127, 127)


def asked_gradient(x: Float[np.ndarray, "O I"], scale: Float[np.ndarray, "O 1"]) -> Arrays:
    """The identity's for values within reach, 0 for saturated ones and for the scale."""
    return cotangent(x.shape) * inside(x, scale), np.zeros_like(scale)


# Mistaken gradients: a slope for each value, and for each value its share of the scale's gradient.

Slope = Callable[[np.ndarray, np.ndarray], Any]


def slopes(of_x: Slope, of_scale: Slope | None = None) -> Callable[[Arguments, Arrays], Arrays]:
    def gradient(arguments: Arguments, expected: Arrays) -> Arrays:
        x, scale = (value.astype(np.float64) for value in arguments)
        weights = cotangent(x.shape)
        shares = weights * of_scale(x, scale) if of_scale else np.zeros_like(x)
        return weights * of_x(x, scale), shares.sum(axis=1, keepdims=True)

    return gradient


def everywhere(x: np.ndarray, scale: np.ndarray) -> Any:
    return 1.0


def nowhere(x: np.ndarray, scale: np.ndarray) -> Any:
    return 0.0


def learnt_scale() -> Iterator[Callable[[Arguments, Arrays], Arrays]]:
    """Values are divided and multiplied by a scale that is not held fixed."""
    yield slopes(inside, lambda x, s: codes(x, s) - x / s * inside(x, s))
    yield slopes(everywhere, lambda x, s: codes(x, s) - x / s)
    yield slopes(inside, codes)
    yield slopes(everywhere, codes)


def over_scale() -> Iterator[Callable[[Arguments, Arrays], Arrays]]:
    for where in (inside, everywhere):
        yield slopes(lambda x, s, w=where: w(x, s) / s)
        yield slopes(lambda x, s, w=where: w(x, s) / s, lambda x, s, w=where: -w(x, s) * x / s**2)


def times_scale() -> Iterator[Callable[[Arguments, Arrays], Arrays]]:
    for where in (inside, everywhere):
        yield slopes(lambda x, s, w=where: w(x, s) * s)
        yield slopes(lambda x, s, w=where: w(x, s) * s, codes)


def rounded(
    round_: Callable[[np.ndarray], np.ndarray] = np.rint, lowest: int | float = -127, highest: int | float = 127
) -> Callable[..., Any]:
    def outputs(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        x, scale = x.astype(np.float64), scale.astype(np.float64)
        return np.clip(round_(x / scale), lowest, highest) * scale

    return outputs


def half_away(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


def value_arguments(seed: int, scales: list[float], inputs: int) -> Arguments:
    """Two values of every row saturate, one on each side; none is near a tie or near the end of the range."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(-120, 121, (len(scales), inputs)) + rng.uniform(-0.4, 0.4, (len(scales), inputs))
    for row in steps:
        low, high = rng.choice(inputs, 2, replace=False)
        row[low], row[high] = -rng.uniform(135, 290), rng.uniform(135, 290)
    scale = np.array(scales)[:, None]
    return (steps * scale).astype(np.float32), scale.astype(np.float32)


def tie_arguments() -> Arguments:
    """Halves of scales that are powers of two, so that ``x / scale`` is exact."""
    steps = np.array([[0.5, 1.5, 2.5, -0.5, -1.5], [-2.5, 3.5, 126.5, -126.5, 127.5], [4.5, -5.5, 6.5, -127.5, 60.5]])
    scale = np.array([[1.0], [0.25], [2.0**-9]])
    return (steps * scale).astype(np.float32), scale.astype(np.float32)


def extreme_arguments() -> Arguments:
    """Scales of 1e-8 and 1e8, values far beyond them, and zeros."""
    scale = np.array([[1e-8], [1.0], [1e8]], np.float32)
    x = np.array([[0.4, -3.0, 125.7, 0.0, 1.2], [0.0, 0.3, -0.3, 0.0, 0.0], [-126.7, 2.2, 0.0, 0.1, 1.0]]) * scale
    x[0, 3], x[1, 3], x[1, 4], x[2, 2] = 1e30, 1e30, -1e30, -1e30
    return x.astype(np.float32), scale


STRAIGHT_THROUGH = Exercise(
    id="quant.straight_through",
    lesson=4,
    title="Rounding with a straight-through gradient",
    signature="straight_through(x, scale)",
    task=(
        "Quantization-aware training computes with rounded weights,\n\n"
        "$$\\hat x = s \\cdot \\mathrm{clip}(\\mathrm{round}(x / s),\\, -127,\\, 127),$$\n\n"
        "and trains the exact ones. The derivative of a staircase is 0, so another one is *declared*:\n\n"
        "- with respect to `x` it is 1 where $|x| \\le 127 s$, as if nothing had been rounded, and 0 for saturated values, "
        "which are beyond the last code on either side;\n"
        "- with respect to `scale` it is 0: the scale follows from the weights and is not learnt.\n\n"
        "(This is one of two conventions. The other lets the gradient of saturated values through as well, so that they "
        "can come back; `minimoe.quant.qat` does that, and hardly any of its values saturate.)\n\n"
        "`x [O, I]` float32; `scale [O, 1]` float32, positive. Returns x_hat `[O, I]` float32, halves rounded to even. "
        "No gradient is asked for at exactly $|x| = 127 s$."
    ),
    difficulty=3,
    minutes=20,
    points=10,
    hints=(
        "The value and the gradient come from different formulas. jax.lax.stop_gradient(z) has the value of z and the "
        "gradient 0: write x_hat as something with the right gradient plus something that has none.",
        "Which function has the slope 1 within reach of the codes and 0 beyond, before anything is rounded? It is the "
        "carrier of the gradient; what is missing to x_hat is added without gradient.",
        "The limits of the range are 127 times the scale, so a gradient can leak into the scale through them too. Hold "
        "the scale fixed with stop_gradient in the first line.",
    ),
    outputs=(Output("x_hat", "float32"),),
    oracle=straight_through_oracle,
    gradient=asked_gradient,
    cases=(
        Case("first shape", lambda: value_arguments(421, [0.02, 0.5, 3.0], 5), gradient=True),
        Case("other sizes", lambda: value_arguments(422, [0.3, 0.01], 7), gradient=True),
        Case("one row", lambda: value_arguments(423, [0.05], 5), gradient=True),
        Case("halves between two codes", tie_arguments, absolute=0.0),
        Case("extreme inputs", extreme_arguments, absolute=0.0),
    ),
    mistakes=(
        Mistake(
            "identity",
            "returns x as it is. The gradient of the identity is right, but the forward pass has to see rounded values, or "
            "training never meets the error it should get used to.",
            lambda x, scale: x,
        ),
        Mistake(
            "clipped, not rounded",
            "limits the range only. Values within it have to be whole multiples of the scale.",
            rounded(lambda y: y),
        ),
        Mistake(
            "codes for values",
            "returns whole numbers: multiply them by the scale again, so that x_hat is near x.",
            lambda x, scale: codes(x.astype(np.float64), scale.astype(np.float64)),
        ),
        Mistake(
            "not clipped",
            "rounds, but goes on beyond the last code: int8 has nothing above 127, although a float in its place has.",
            rounded(lowest=-np.inf, highest=np.inf),
        ),
        Mistake(
            "clipped at -128",
            "reaches one code further below zero than above. Symmetric quantization leaves -128 unused.",
            rounded(lowest=-128),
        ),
        Mistake(
            "truncated",
            "cuts the fraction off instead of rounding.",
            rounded(np.trunc),
        ),
        Mistake(
            "multiplied by the scale",
            "multiplies by the scale before rounding, and divides after: the other way round.",
            lambda x, scale: np.clip(np.rint(x.astype(np.float64) * scale), -127, 127) / scale,
        ),
        Mistake(
            "halves rounded away from zero",
            "halves have to go to the even neighbour, as jnp.round does.",
            rounded(half_away),
        ),
        Mistake(
            "plain rounding",
            "the values are right, but this is the true derivative of the staircase: 0 for x, so the weights never move. The "
            "only gradient is that of the scale.",
            gradient=slopes(nowhere, codes),
        ),
        Mistake(
            "no gradient",
            "the values are right, but everything is cut off from the gradient, x too. The straight-through estimator has "
            "to leave one way open.",
            gradient=slopes(nowhere),
        ),
        Mistake(
            "gradient for saturated values",
            "the values are right, and so is the slope of 1 within the range. Beyond it x_hat does not follow x, and here "
            "the gradient has to be 0.",
            gradient=slopes(everywhere),
        ),
        Mistake(
            "the clip's limits learn",
            "the gradient of x is right. But the limits of the clip are 127 times the scale, and saturated values pass "
            "their gradient on to it.",
            gradient=slopes(inside, lambda x, s: 127 * np.sign(x) * (1 - inside(x, s))),
        ),
        *(
            Mistake(
                "a learnt scale",
                "the values are right, but the scale gets a gradient through the division, the product, or both. That is "
                "another method, which trains the scale; here it counts as a constant.",
                gradient=gradient,
            )
            for gradient in learnt_scale()
        ),
        *(
            Mistake(
                "gradient divided by the scale",
                "the values are right, but x / scale carries the gradient, so the slope is 1 / scale: with small scales "
                "training explodes. The slope from x to x_hat is 1.",
                gradient=gradient,
            )
            for gradient in over_scale()
        ),
        *(
            Mistake(
                "gradient times the scale",
                "the values are right, but the gradient skips the codes only and is then multiplied by the scale: with "
                "small scales training stands still. The slope from x to x_hat is 1.",
                gradient=gradient,
            )
            for gradient in times_scale()
        ),
    ),
    wrt=("x", "scale"),
)
