"""Lesson 02, second exercise: an affinity that stays finite, with its gradient, for all logits.

Axes: T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from minimoe.exercises.record import Arguments, Arrays, Case, Exercise, Mistake, Output


def sqrtsoftplus_oracle(logits: Float[np.ndarray, "T E"]) -> Float[np.ndarray, "T E"]:
    return np.sqrt(np.logaddexp(0.0, logits))


def in_float32(formula: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """A mistaken formula, computed as a float32 program computes it: overflows where that one does."""
    return lambda logits: formula(logits.astype(np.float32))


def nan_where(bad: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arguments, Arrays], Arrays]:
    """The right gradient with NaN at some logits."""
    return lambda arguments, expected: (np.where(bad(arguments[0]), np.nan, expected[0]),)


def logit_arguments(seed: int, tokens: int, num_experts: int) -> Arguments:
    rng = np.random.default_rng(seed)
    return (rng.uniform(-20.0, 20.0, (tokens, num_experts)).astype(np.float32),)


def extreme_logits() -> Arguments:
    return (np.array([[-1e4, -300.0, -20.0, 0.0], [20.0, 80.0, 300.0, 1e4], [-200.0, -120.0, 5.0, 120.0]], np.float32),)


SQRTSOFTPLUS = Exercise(
    id="routing.sqrtsoftplus",
    lesson=2,
    title="The sqrt-softplus affinity, for all logits",
    signature="sqrtsoftplus(logits)",
    task=(
        "DeepSeek-V4 turns router logits into affinities by $s = \\sqrt{\\log(1 + e^{x})}$ (arXiv 2606.19348, section "
        "2.1). Written down like that it overflows for large logits, and has a NaN gradient for very negative ones.\n\n"
        "`logits [T, E]` float32. Returns affinities `[T, E]` float32 that are finite, with a finite gradient, for "
        "logits from -10,000 to 10,000. Anything below 1e-12, in value or gradient, may be off by as much: it may be held "
        "at a tiny value."
    ),
    difficulty=3,
    minutes=20,
    points=10,
    hints=(
        "Above 89 exp overflows in float32; there log(1 + exp(x)) is x. JAX has a function for log(1 + exp(x)) that knows "
        "this.",
        "The derivative divides by the square root. Below about -90 softplus is 0 in float32, and the chain rule computes "
        "0/0. The cure has to come before the function, not after it.",
        "jnp.where evaluates, and differentiates, both branches: NaN times 0 is NaN. Limit the argument instead, with "
        "jnp.maximum at a logit whose affinity is negligible but whose softplus is not 0 yet.",
    ),
    outputs=(Output("affinities", "float32"),),
    oracle=sqrtsoftplus_oracle,
    cases=(
        Case("first shape", lambda: logit_arguments(211, 3, 4), gradient=True, absolute=0.0),
        Case("extreme inputs", extreme_logits, gradient=True, absolute=1e-12),
        Case("other sizes", lambda: logit_arguments(212, 5, 2), gradient=True, absolute=0.0),
        Case("one token", lambda: logit_arguments(213, 1, 4), gradient=True, absolute=0.0),
    ),
    mistakes=(
        Mistake(
            "softplus without the square root",
            "that is log(1 + exp(x)); the affinity is its square root.",
            lambda logits: np.logaddexp(0.0, logits.astype(np.float64)),
        ),
        Mistake(
            "square root inside the logarithm",
            "takes the root of exp(x) before the logarithm. The root belongs around the whole.",
            lambda logits: np.logaddexp(0.0, logits.astype(np.float64) / 2),
        ),
        Mistake(
            "sigmoid",
            "that is the affinity of DeepSeek-V3. Sqrt-softplus does not stop at 1: it grows like the root of the logit.",
            lambda logits: 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64))),
        ),
        Mistake(
            "overflow in exp",
            "the formula as written: exp(x) is infinite in float32 from x = 89 on, and its logarithm stays infinite.",
            in_float32(lambda x: np.sqrt(np.log1p(np.exp(x)))),
        ),
        Mistake(
            "log(1 + exp(x)) loses small values",
            "1 + exp(x) is exactly 1 in float32 below about -17, and its logarithm 0: the affinity of an unlikely expert "
            "vanishes. log1p exists for this.",
            in_float32(lambda x: np.sqrt(np.log(np.float32(1) + np.exp(x)))),
        ),
        Mistake(
            "root of the logit",
            "that is what it looks like far above zero. Below, softplus bends smoothly instead of stopping at 0.",
            lambda logits: np.sqrt(np.maximum(logits.astype(np.float64), 0.0)),
        ),
        Mistake(
            "NaN gradient far below zero",
            "the values are right, but below about -90 softplus is 0 in float32 and the root's derivative is 0/0. One such "
            "logit turns every weight of the router into NaN.",
            gradient=nan_where(lambda x: x < -90),
        ),
        Mistake(
            "NaN gradient far above zero",
            "the values are right, but jnp.where differentiates the branch that it does not take as well: exp overflows "
            "there, and infinity times 0 is NaN.",
            gradient=nan_where(lambda x: x > 90),
        ),
        Mistake(
            "NaN gradient on both sides",
            "the values are right. Far above zero jnp.where differentiates also the branch in which exp overflows; far "
            "below zero softplus is 0 in float32 and the root's derivative is 0/0.",
            gradient=nan_where(lambda x: abs(x) > 90),
        ),
    ),
    wrt=("logits",),
)
