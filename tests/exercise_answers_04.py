"""Answers to the exercises of lesson 04, right and wrong; see `exercise_answers`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

stop = jax.lax.stop_gradient

# Int8.


def row_max(w):
    return jnp.abs(w).max(axis=1, keepdims=True)


def absmax_where(w):
    largest = row_max(w)
    scale = jnp.where(largest > 0, largest / 127, 1.0)
    return jnp.round(w / scale).astype(jnp.int8), scale


def absmax_vmap(w):
    """A row at a time, by the reciprocal."""

    def row(values):
        largest = jnp.maximum(values.max(), -values.min())
        inverse = jnp.where(largest == 0, 1.0, 127.0 / jnp.where(largest == 0, 1.0, largest))
        return jnp.clip(jnp.rint(values * inverse), -127, 127).astype("int8"), (1 / inverse)[None]

    return list(jax.vmap(row)(w))


def absmax_with(largest=row_max, steps=127, round_=jnp.round, cast=lambda c: c.astype(jnp.int8), scale=None):
    def answer(w):
        top = largest(w)
        step = scale(top) if scale else jnp.where(top == 0, 1.0, top / steps)
        return cast(round_(w / step)), step

    return answer


def wraps(codes):
    return codes.astype(jnp.int32).astype(jnp.int8)


def clipped(codes):
    return jnp.clip(codes, -127, 127).astype(jnp.int8)


ABSMAX_RIGHT = [absmax_where, absmax_vmap]
ABSMAX_WRONG = [
    (absmax_with(lambda w: jnp.abs(w).max()), "one scale for the whole tensor"),
    (absmax_with(lambda w: jnp.abs(w).max(keepdims=True)), "one scale for the whole tensor"),
    (absmax_with(lambda w: jnp.broadcast_to(jnp.abs(w).max(), (len(w), 1))), "one scale for the whole tensor"),
    (absmax_with(lambda w: jnp.abs(w).max(axis=0, keepdims=True)), "scale along the wrong axis"),
    (absmax_with(lambda w: w.max(axis=1, keepdims=True)), "largest value for largest magnitude"),
    (absmax_with(lambda w: w.max(axis=1, keepdims=True), cast=clipped), "largest value for largest magnitude"),
    (absmax_with(round_=lambda x: x), "truncated"),
    (absmax_with(round_=jnp.floor), "rounded down"),
    (absmax_with(round_=lambda x: x, cast=lambda x: x), "not rounded"),
    (absmax_with(steps=128), "128 steps"),
    (absmax_with(steps=128, cast=wraps), "128 wraps around"),
    (absmax_with(steps=127.5), "127.5 steps"),
    (absmax_with(steps=127.5, cast=clipped), "127.5 steps"),
    (lambda w: (absmax_where(w)[0], 1 / absmax_where(w)[1]), "scale inverted"),
    (lambda w: (jnp.round(w * absmax_where(w)[1]).astype(jnp.int8), absmax_where(w)[1]), "multiplied by the scale"),
    (lambda w: (absmax_where(w)[0] * absmax_where(w)[1], absmax_where(w)[1]), "fake quantization"),
    (absmax_with(round_=lambda x: jnp.sign(x) * jnp.floor(jnp.abs(x) + 0.5)), "halves rounded away from zero"),
    (absmax_with(round_=lambda x: jnp.floor(x + 0.5)), "halves rounded up"),
    (absmax_with(scale=lambda top: top / 127), "0/0 in a row of zeros"),
    (absmax_with(scale=lambda top: jnp.maximum(top, 1e-8) / 127), "an epsilon under the scale"),
    (absmax_with(scale=lambda top: top / 127 + 1e-5), "an epsilon under the scale"),
    (absmax_with(cast=lambda c: c), "aspect:dtype"),
    (absmax_with(cast=lambda c: c.astype(jnp.int32)), "aspect:dtype"),
    (lambda w: (absmax_where(w)[0], absmax_where(w)[1][:, 0]), "aspect:shape"),
    (lambda w: absmax_where(w)[0], "aspect:structure"),
    (lambda w: absmax_where(w)[::-1], "aspect:shape"),
    (lambda w: absmax_where(np.asarray(w)), "aspect:jit"),
    (lambda w: absmax_where(w.at[:, 0].multiply(1.5)), "aspect:values"),
]

# MXFP4.


def by_spacing(y):
    size = jnp.abs(y)
    step = jnp.where(size < 2, 0.5, jnp.where(size < 4, 1.0, 2.0))
    return jnp.round(y / step) * step


def power_above(largest):
    mantissa, exponent = jnp.frexp(largest / 6)
    return jnp.where(largest > 0, jnp.ldexp(1.0, exponent - (mantissa == 0.5)), 1.0)


def mxfp4_spacing(x):
    scale = power_above(jnp.abs(x).max(axis=1))
    return scale, by_spacing(x / scale[:, None]) * scale[:, None]


def mxfp4_bits(x):
    """The bits of the quotient rounded up, and JAX's own FP4."""
    largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    bits = jax.lax.bitcast_convert_type(largest / 6, jnp.int32)
    scale = jax.lax.bitcast_convert_type((bits + 0x007FFFFF) & 0x7F800000, jnp.float32)
    scale = jnp.where(largest == 0, 1.0, scale)
    return [scale[:, 0], (x / scale).astype(jnp.float4_e2m1fn).astype(jnp.float32) * scale]


GRID = jnp.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def by_distance(y, grid=GRID):
    """Its ties go to the first in the grid."""
    return jnp.sign(y) * grid[jnp.abs(jnp.abs(y)[..., None] - grid).argmin(-1)]


def towards_zero(y):
    return jnp.sign(y) * GRID[jnp.searchsorted(GRID, jnp.abs(y), side="right") - 1]


def mxfp4_with(scale=power_above, read=by_spacing, largest=lambda x: jnp.abs(x).max(axis=1, keepdims=True), flat=True):
    def answer(x):
        s = scale(largest(x))
        return (s[..., 0] if flat else s), read(x / s) * s

    return answer


def exponent_by(exponent):
    return lambda top: jnp.where(top > 0, jnp.ldexp(1.0, exponent(top).astype(jnp.int32)), 1.0)


def up_to_logarithm(top):
    return 2.0 ** jnp.ceil(jnp.log2(top / 6))


def mxfp4_changed(change):
    return lambda x: change(x, *mxfp4_spacing(x))


rounded_down = exponent_by(lambda top: jnp.frexp(top / 6)[1] - 1)
ocp = exponent_by(lambda top: jnp.frexp(top)[1] - 3)

MXFP4_RIGHT = [mxfp4_spacing, mxfp4_bits]
MXFP4_WRONG = [
    (mxfp4_with(lambda top: power_above(top) * (1 + 2.0**-22)), "almost a power of two"),
    (mxfp4_changed(lambda x, s, x_hat: (s * (1 - 2.0**-24), x_hat)), "almost a power of two"),
    (mxfp4_with(rounded_down), "rounded down"),
    (mxfp4_with(rounded_down, by_distance), "rounded down"),
    (mxfp4_with(lambda top: jnp.ldexp(1.0, jnp.frexp(top / 6)[1])), "exact powers rounded up"),
    (mxfp4_with(ocp), "the OCP rule"),
    (mxfp4_with(ocp, by_distance), "the OCP rule"),
    (mxfp4_with(exponent_by(lambda top: jnp.round(jnp.log2(top / 6)))), "rounded to the nearest power"),
    (mxfp4_with(exponent_by(lambda top: jnp.round(jnp.log2(top / 6))), by_distance), "rounded to the nearest power"),
    (mxfp4_with(lambda top: jnp.where(top > 0, top / 6, 1.0)), "not a power of two"),
    (mxfp4_with(lambda top: power_above(top / 6)), "divided by 6 twice"),
    (mxfp4_with(lambda top: power_above(top / 6), by_distance), "divided by 6 twice"),
    (mxfp4_with(read=lambda y: by_spacing(y / 6)), "divided by 6 twice"),
    (mxfp4_with(read=lambda y: by_spacing(y / 6) * 6), "divided by 6 twice"),
    (mxfp4_with(largest=lambda x: jnp.abs(x).max(), flat=False), "one scale for all blocks"),
    (mxfp4_with(largest=lambda x: jnp.abs(x).max(keepdims=True)[0], flat=False), "one scale for all blocks"),
    (mxfp4_with(largest=lambda x: jnp.broadcast_to(jnp.abs(x).max(), (len(x), 1))), "one scale for all blocks"),
    (mxfp4_with(largest=lambda x: jnp.abs(x).max(axis=0), flat=False), "one scale for each column"),
    (mxfp4_with(largest=lambda x: x.max(axis=1, keepdims=True)), "largest value for largest magnitude"),
    (
        mxfp4_with(largest=lambda x: x.max(axis=1, keepdims=True), read=by_distance),
        "largest value for largest magnitude",
    ),
    (mxfp4_with(read=jnp.round), "whole numbers"),
    (mxfp4_with(read=lambda y: jnp.round(2 * y) / 2), "steps of 0.5 everywhere"),
    (mxfp4_with(read=towards_zero), "rounded towards zero"),
    (mxfp4_with(read=lambda y: y), "not rounded"),
    (mxfp4_changed(lambda x, s, x_hat: (s, x_hat / s[:, None])), "codes for values"),
    (mxfp4_changed(lambda x, s, x_hat: (1 / s, x_hat)), "scale inverted"),
    (mxfp4_with(read=by_distance), "ties to the smaller magnitude"),
    (mxfp4_with(read=lambda y: by_distance(y, GRID[::-1])), "ties to the larger magnitude"),
    (mxfp4_with(up_to_logarithm), "a logarithm at the border"),
    (mxfp4_with(lambda top: 2.0 ** jnp.ceil(jnp.log2(top) - jnp.log2(6.0))), "a logarithm at the border"),
    (mxfp4_with(lambda top: 2.0 ** jnp.ceil(jnp.log(top / 6) / jnp.log(2.0))), "a logarithm at the border"),
    (mxfp4_with(lambda top: power_above(top) * (top > 0)), "0/0 in a block of zeros"),
    (
        mxfp4_with(lambda top: power_above(top) * (top > 0), lambda y: jnp.nan_to_num(by_spacing(y))),
        "0/0 in a block of zeros",
    ),
    (mxfp4_with(flat=False), "aspect:shape"),
    (mxfp4_changed(lambda x, s, x_hat: (jnp.log2(s).astype(jnp.int32), x_hat)), "aspect:dtype"),
    (mxfp4_changed(lambda x, s, x_hat: (s, x_hat.astype(jnp.bfloat16))), "aspect:dtype"),
    (mxfp4_changed(lambda x, s, x_hat: x_hat), "aspect:structure"),
    (mxfp4_changed(lambda x, s, x_hat: (s, np.asarray(x_hat))), "aspect:jit"),
]

# Straight through.


def whole(x, scale):
    return jnp.clip(jnp.round(x / scale), -127, 127)


def through_clip(x, scale):
    scale = stop(scale)
    carrier = jnp.clip(x, -127 * scale, 127 * scale)
    return carrier + stop(whole(x, scale) * scale - carrier)


def through_where(x, scale):
    rounded = stop(whole(x, scale) * scale)
    return jnp.where(jnp.abs(x) > 127 * scale, rounded, x + (rounded - stop(x)))


@jax.custom_vjp
def through_rule(x, scale):
    return whole(x, scale) * scale


def through_rule_forward(x, scale):
    return through_rule(x, scale), (x, scale)


def through_rule_backward(kept, gradient):
    x, scale = kept
    return jnp.where(jnp.abs(x / scale) < 127.2, gradient, 0.0), jnp.zeros_like(scale)


through_rule.defvjp(through_rule_forward, through_rule_backward)


def with_gradient_of(carrier):
    """The right values, and the gradient of something else."""

    def answer(x, scale):
        other = carrier(x, scale)
        return stop(whole(x, scale) * scale) + (other - stop(other))

    return answer


def valued(value):
    """Other values, the right gradient."""

    def answer(x, scale):
        carrier = through_clip(x, scale)
        return carrier + stop(value(x, scale) - carrier)

    return answer


def skip_rounding(y):
    return y + stop(jnp.round(y) - y)


def limited(x, scale):
    return jnp.clip(x, -127 * stop(scale), 127 * stop(scale))


THROUGH_RIGHT = [through_clip, through_where, through_rule]
THROUGH_WRONG = [
    (lambda x, scale: x, "identity"),
    (lambda x, scale: limited(x, scale), "clipped, not rounded"),
    (lambda x, scale: jnp.clip(skip_rounding(x / scale), -127, 127), "codes for values"),
    (valued(lambda x, s: jnp.round(x / s) * s), "not clipped"),
    (valued(lambda x, s: jnp.clip(jnp.round(x / s), -128, 127) * s), "clipped at -128"),
    (valued(lambda x, s: jnp.clip(jnp.trunc(x / s), -127, 127) * s), "truncated"),
    (valued(lambda x, s: jnp.clip(jnp.round(x * s), -127, 127) / s), "multiplied by the scale"),
    (
        valued(lambda x, s: jnp.clip(jnp.sign(x) * jnp.floor(jnp.abs(x / s) + 0.5), -127, 127) * s),
        "halves rounded away from zero",
    ),
    (lambda x, scale: whole(x, scale) * scale, "plain rounding"),
    (lambda x, scale: stop(whole(x, scale) * scale), "no gradient"),
    (lambda x, scale: whole(x, scale) * stop(scale), "no gradient"),
    (with_gradient_of(lambda x, s: x), "gradient for saturated values"),
    (lambda x, scale: x + stop(whole(x, scale) * scale - x), "gradient for saturated values"),
    (with_gradient_of(lambda x, s: jnp.clip(x, -127 * s, 127 * s)), "the clip's limits learn"),
    (lambda x, scale: skip_rounding(jnp.clip(x / scale, -127, 127)) * scale, "a learnt scale"),
    (lambda x, scale: (x / scale + stop(whole(x, scale) - x / scale)) * scale, "a learnt scale"),
    (lambda x, scale: (limited(x, scale) / stop(scale) + stop(whole(x, scale) - limited(x, scale) / scale)) * scale,
     "a learnt scale"),
    (lambda x, scale: (x / stop(scale) + stop(whole(x, scale) - x / scale)) * scale, "a learnt scale"),
    (with_gradient_of(lambda x, s: limited(x, s) / stop(s)), "gradient divided by the scale"),
    (with_gradient_of(lambda x, s: jnp.clip(x / s, -127, 127)), "gradient divided by the scale"),
    (with_gradient_of(lambda x, s: x / stop(s)), "gradient divided by the scale"),
    (with_gradient_of(lambda x, s: x / s), "gradient divided by the scale"),
    (with_gradient_of(lambda x, s: limited(x, s) * stop(s)), "gradient times the scale"),
    (lambda x, scale: (x + stop(whole(x, scale) - x)) * scale, "gradient times the scale"),
    (lambda x, scale: (x + stop(whole(x, scale) - x)) * stop(scale), "gradient times the scale"),
    (lambda x, scale: (limited(x, scale) + stop(whole(x, scale) - limited(x, scale))) * scale,
     "gradient times the scale"),
    (lambda x, scale: 2 * through_clip(x, scale) - stop(through_clip(x, scale)), "aspect:gradient"),
    (lambda x, scale: through_clip(x, scale).astype(jnp.int8), "aspect:dtype"),
    (lambda x, scale: through_clip(x, scale).astype(jnp.bfloat16), "aspect:dtype"),
    (lambda x, scale: np.asarray(through_clip(x, scale)), "aspect:jit"),
    (lambda x, scale: through_clip(x, scale)[0], "aspect:shape"),
    (lambda x, scale: (x, scale), "aspect:structure"),
]  # fmt: skip

RIGHT = {
    "quant.absmax_int8": ABSMAX_RIGHT,
    "quant.mxfp4_scale": MXFP4_RIGHT,
    "quant.straight_through": THROUGH_RIGHT,
}
WRONG = {
    "quant.absmax_int8": ABSMAX_WRONG,
    "quant.mxfp4_scale": MXFP4_WRONG,
    "quant.straight_through": THROUGH_WRONG,
}
