"""Answers to the exercises of lesson 01, right and wrong; see `exercise_answers`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Counting.


def params_formula(d_model, d_expert, num_experts, top_k, num_shared_experts):
    one, router = 3 * d_model * d_expert, d_model * num_experts
    return router + (num_experts + num_shared_experts) * one, router + (top_k + num_shared_experts) * one


def params_shapes(d, f, e, k, s):
    expert = sum(np.prod(shape, dtype=np.int64) for shape in [(d, f), (d, f), (f, d)])
    return [expert * (n + s) + d * e for n in (e, k)]


PARAMS_RIGHT = [params_formula, params_shapes]
PARAMS_WRONG = [
    (lambda d, f, e, k, s: (d * e + (e + s) * 2 * d * f, d * e + (k + s) * 2 * d * f), "two matrices an expert"),
    (lambda d, f, e, k, s: (e + (e + s) * 3 * d * f, e + (k + s) * 3 * d * f), "a router of E numbers"),
    (lambda d, f, e, k, s: ((e + s) * 3 * d * f, (k + s) * 3 * d * f), "no router"),
    (lambda *sizes: (params_formula(*sizes)[0],) * 2, "active equals total"),
    (
        lambda d, f, e, k, s: (d * e + (e + s) * 3 * d * f, d * e + k * 3 * d * f),
        "the shared experts are not active",
    ),
    (lambda d, f, e, k, s: (d * e + e * 3 * d * f, d * e + k * 3 * d * f), "no shared experts"),
    (
        lambda d, f, e, k, s: (d * e + (e + s) * 3 * d * f, d * k + (k + s) * 3 * d * f),
        "only the chosen part of the router is active",
    ),
    (lambda d, f, e, k, s: (d * e + (e + s) * 3 * d * f, (k + s) * 3 * d * f), "the router is not active"),
    (lambda *sizes: tuple(float(n) for n in params_formula(*sizes)), "aspect:dtype"),
    (lambda *sizes: params_formula(*sizes)[0], "aspect:structure"),
    (lambda d, f, e, k, s: params_formula(d, f, e, s, k), "aspect:values"),
    (lambda d, f, e, k, s: tuple(np.int32(n % 2**31) for n in params_formula(d, f, e, k, s)), "aspect:values"),
]

# The dense twin.


def width_formula(d_model, d_expert, num_experts, top_k, num_shared_experts):
    width = (top_k + num_shared_experts) * d_expert
    return width, 2 * d_model * (num_experts + 3 * width), 6 * d_model * width


def width_from_params(d, f, e, k, s):
    dense = 2.0 * (params_formula(d, f, e, k, s)[1] - d * e)
    return round(dense / (6 * d)), dense + 2.0 * d * e, dense


def width_with(width, per_matrix=3, flops=2, router=1):
    def answer(d, f, e, k, s):
        ffn = flops * per_matrix * d
        return width(f, e, k, s), ffn * (k + s) * f + router * flops * d * e, ffn * width(f, e, k, s)

    return answer


WIDTH_RIGHT = [width_formula, width_from_params]
WIDTH_WRONG = [
    (width_with(lambda f, e, k, s: (e + s) * f), "as wide as all experts"),
    (width_with(lambda f, e, k, s: k * f), "no shared experts"),
    (width_with(lambda f, e, k, s: f), "as wide as one expert"),
    (width_with(lambda f, e, k, s: (k + s) * f, flops=1), "one FLOP for a multiply-add"),
    (width_with(lambda f, e, k, s: (k + s) * f, per_matrix=2), "two matrices an expert"),
    (width_with(lambda f, e, k, s: (k + s) * f, router=0), "a free router"),
    (lambda *sizes: (float(width_formula(*sizes)[0]), *width_formula(*sizes)[1:]), "aspect:dtype"),
]

# The layer.


def moe_by_expert(x, experts, weights, gate_up, down):
    y = jnp.zeros_like(x)
    for e in range(gate_up.shape[0]):
        gate, up = jnp.split(x @ gate_up[e], 2, axis=-1)
        share = jnp.where(experts == e, weights, 0).sum(-1, keepdims=True).astype(x.dtype)
        y = y + share * ((jax.nn.silu(gate) * up) @ down[e])
    return y


def moe_by_slot(x, experts, weights, gate_up, down, *, silu=jax.nn.silu, before=False, swap=False):
    if before:
        tokens, weights = weights[:, :, None] * x[:, None, :], jnp.ones_like(weights)
    else:
        tokens = jnp.broadcast_to(x[:, None, :], (*experts.shape, x.shape[1]))
    hidden = jnp.einsum("tkd,tkdf->tkf", tokens.astype(x.dtype), gate_up[experts])
    f = down.shape[1]
    gate, up = (hidden[..., f:], hidden[..., :f]) if swap else (hidden[..., :f], hidden[..., f:])
    out = jnp.einsum("tkf,tkfd->tkd", silu(gate) * up, down[experts])
    return (weights[:, :, None].astype(x.dtype) * out).sum(1)


def moe_weights(change):
    return lambda x, experts, weights, gate_up, down: moe_by_slot(x, experts, change(weights), gate_up, down)


FORWARD_RIGHT = [moe_by_expert, moe_by_slot]
FORWARD_WRONG = [
    (lambda x, experts, weights, gate_up, down: x, "identity"),
    (lambda *a: moe_by_slot(*a, before=True), "weights on the inputs"),
    (lambda *a: moe_by_slot(*a, swap=True), "gate and up swapped"),
    (moe_weights(lambda w: jnp.full_like(w, 1 / w.shape[1])), "plain mean of the experts"),
    (moe_weights(jnp.ones_like), "plain sum of the experts"),
    (moe_weights(lambda w: w.at[:, 1:].set(0)), "first expert only"),
    (moe_weights(lambda w: w / w.sum(-1, keepdims=True)), "weights renormalised"),
    (lambda *a: moe_by_slot(*a, silu=lambda g: g), "no nonlinearity"),
    (lambda *a: moe_by_slot(*a, silu=jax.nn.sigmoid), "sigmoid for silu"),
    (lambda *a: moe_by_slot(*a).astype(jnp.float32), "aspect:dtype"),
    (lambda *a: moe_by_slot(*a, silu=lambda g: g * jnp.exp(g) / (1 + jnp.exp(g))), "aspect:nan"),
    (moe_weights(jax.lax.stop_gradient), "aspect:gradient zero"),
    (lambda x, *rest: moe_by_slot(jax.lax.stop_gradient(x), *rest), "aspect:gradient zero"),
    (lambda *a: np.asarray(moe_by_slot(*a)), "aspect:jit"),
    (lambda *a: jax.nn.gelu(moe_by_slot(*a)), "aspect:values"),
]

RIGHT = {
    "sparse.params": PARAMS_RIGHT,
    "sparse.dense_width": WIDTH_RIGHT,
    "sparse.moe_forward": FORWARD_RIGHT,
}
WRONG = {
    "sparse.params": PARAMS_WRONG,
    "sparse.dense_width": WIDTH_WRONG,
    "sparse.moe_forward": FORWARD_WRONG,
}
