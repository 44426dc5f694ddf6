"""Multiplying by quantized weights. Axes: T rows, I inputs, O outputs, E experts.

Two ways, and `multiply` chooses between them:

- `qmatmul` turns the codes back into floats and multiplies those. It works for every format and saves memory, not
  time: decoding costs more than it spares. In a loop over tokens, as in `minimoe.generate`, XLA may do the decoding once,
  before the loop: then floats take their memory while the loop runs, but for the experts, which the tokens pick.
- `int8_matmul` rounds the activations too, one scale a token, and multiplies integers. Both scales leave the sum,
  ``y[t, o] = s_x[t] * s_w[o] * sum_i q_x[t, i] * q_w[o, i]``, which is why weights have one scale an output and not one
  a group. An int8 weight is a quarter of a float32's bytes, and reading weights is all that decoding waits for.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Int32

from minimoe.errors import UserError
from minimoe.quant.specs import INT8_TOKEN, PerChannel, Spec
from minimoe.quant.tensor import QTensor, quantize

UNROLLED = 32  # XLA's CPU compiler sums longer axes in several passes, and writes all products to memory first


def qmatmul(x: Float[Array, "*B I"], w: QTensor) -> Float[Array, "*B O"]:
    """``x @ w.T`` with the values that the codes of ``w [O, I]`` stand for, in the dtype of ``x``.

    Example:
      >>> w = quantize(jnp.array([[1.0, -2.0]]), INT8_CHANNEL)
      >>> print(qmatmul(jnp.array([[1.0, 1.0]]), w))
      [[-0.992126]]
    """
    return jnp.einsum("...i,oi->...o", x, w.dequantize(x.dtype))


def int8_matmul(x: Float[Array, "*B I"], w: QTensor) -> Float[Array, "*B O"]:
    """``x @ w.T`` in integers: ``x`` is rounded to int8 with one scale a row, products are summed in int32.

    Args:
      x: a row with NaN or infinity comes out as NaN.
      w: ``[O, I]``, int8 with a symmetric scale for each output.

    Returns:
      In the dtype of ``x``; the scales are applied in float32.

    Raises:
      UserError: for a weight in another format, whose scales cannot leave the sum.

    Example:
      >>> w = quantize(jnp.array([[1.0, -127.0]]), INT8_CHANNEL)
      >>> print(int8_matmul(jnp.array([[127.0, 3.0]]), w))
      [[-254.]]
    """
    _require_int8(w, ndim=2)
    if not x.shape[-1]:
        return jnp.zeros((*x.shape[:-1], w.shape[0]), x.dtype)
    rows = quantize(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), INT8_TOKEN, check=False)
    sums = int8_dot(rows.codes, w.codes)
    return _scaled(sums, rows, w.block_scales()).reshape(*x.shape[:-1], w.shape[0]).astype(x.dtype)


def int8_dot(a: Int8[Array, "T I"], b: Int8[Array, "O I"]) -> Int32[Array, "T O"]:
    """``a @ b.T`` of int8, exact in int32 up to I = 131,071."""
    if a.shape[0] == 1:
        return _row_dot(a[0], b)[None]
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)


def _row_dot(row: Int8[Array, "I"], b: Int8[Array, "O I"]) -> Int32[Array, "O"]:
    """``b @ row`` as products and sums, for decoding: XLA's CPU compiler has no fast integer matmul of one row.

    With I seen as ``[R, S]``, products are summed over R and then over S. The short loop over R is unrolled and the one
    over S done in vector registers. If ``b`` is an expert sliced out of a stack, the slice becomes part of the loop:
    each code is read once, where a matmul would first have the expert copied. Three details keep the compiler
    from spoiling it, and ``tests/test_quant_layers.py`` looks at what it makes of them.
    """
    width = row.shape[0]
    short = max(factor for factor in range(1, UNROLLED + 1) if width % factor == 0)  # R
    # A gather of everything: computed once and kept, where the rounding that made the row would else move into the
    # loop and be done again for each output.
    row = row.at[jnp.arange(width, dtype=jnp.int32)].get(mode="promise_in_bounds")
    # Ties the weights to the row: a loop over tokens would else widen them to int32 before it starts, and read four
    # bytes for each of one.
    row, b = jax.lax.optimization_barrier((row, b))
    products = row.reshape(1, short, -1).astype(jnp.int32) * b.reshape(-1, short, width // short).astype(jnp.int32)
    # A barrier: without it both sums become one, which is not vectorised.
    partial = jax.lax.optimization_barrier(products.sum(axis=1, dtype=jnp.int32))  # [O, S]
    return partial.sum(axis=1, dtype=jnp.int32)


def multiply(x: Float[Array, "*B I"], w: QTensor, activations: Spec | None = None) -> Float[Array, "*B O"]:
    """``x @ w.T`` for ``w [O, I]``, with activations rounded as ``activations`` says.

    None leaves them alone (`qmatmul`); int8 by token meets int8 weights in `int8_matmul`. Other pairs are emulated:
    activations are rounded, turned back into floats and multiplied as such, which gives the numbers of the hardware
    that has these formats, up to how it adds them, and not its speed.

    Raises:
      UserError: for the gradient of a product with rounded activations.
    """
    if activations is None:
        return qmatmul(x, w)
    x = without_gradient(x)
    if is_w8a8(w, activations):
        return int8_matmul(x, w)
    return qmatmul(quantize(x, activations, check=False).dequantize(x.dtype), w)


@jax.custom_jvp
def without_gradient(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``x``; whoever asks for a gradient through it is told why there is none.

    Rounded activations have the derivative 0 nearly everywhere, and JAX would quietly return it.
    """
    return x


@without_gradient.defjvp
def _refuse(primals, tangents):
    repair = "use minimoe.quant.dequantize_model(model), or a recipe that rounds weights alone"
    raise UserError(f"a quantized layer rounds its activations, and rounding has no gradient; {repair}")


def is_w8a8(w: QTensor, activations: Spec) -> bool:
    """Whether both can be multiplied as integers, with all scales outside the sum."""
    by_token = isinstance(activations.granularity, PerChannel) and activations.scale_format == "float32"
    return activations.format == "int8" and activations.symmetric and by_token and _is_int8(w)


def _is_int8(w: QTensor) -> bool:
    return w.spec.format == "int8" and w.spec.symmetric and isinstance(w.spec.granularity, PerChannel)


def _require_int8(w: QTensor, ndim: int) -> None:
    if not _is_int8(w) or w.ndim != ndim:
        raise UserError(
            f"int8_matmul needs a weight [O, I] in int8 with a symmetric scale an output (INT8_CHANNEL), not shape "
            f"{w.shape} with {w.spec}; quantize it so, or use multiply"
        )


def _scaled(sums: Int32[Array, "T O"], rows: QTensor, scales: Float[Array, "O 1"]) -> Float[Array, "T O"]:
    return sums.astype(jnp.float32) * rows.block_scales() * scales[:, 0][None, :]
