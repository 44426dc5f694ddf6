"""Training with 8-bit matmuls, the way DeepSeek-V3 did.

Axes: T tokens, D model width, I inputs, O outputs, E experts, K experts per token, F expert hidden width (F2 = 2*F).

A linear layer multiplies three times in a training step, and each product takes e4m3 values on both sides:

========  =================  ===========  ===================================================================
product   formula            contracts    tiles
========  =================  ===========  ===================================================================
fprop     ``y = x w``        inputs I     x: 1 token x 128 inputs; w: blocks of 128 x 128
dgrad     ``dx = dy w^T``    outputs O    dy: 1 token x 128 outputs; w: the same blocks, which serve both ways
wgrad     ``dw = x^T dy``    tokens T     x and dy: 128 tokens x 1 channel
========  =================  ===========  ===================================================================

Tiles lie along the axis that is summed, so that a scale can be taken out of a partial sum. The activations kept for the
backward pass are the 8-bit ones; they are tiled anew for wgrad, from those values. Scales are float32, the tile's
largest magnitude over 448, computed from the array at hand. Sums are float32. Embedding, head, router, norms and the
products inside attention keep their precision, and so do the master weights.

This is an emulation: values are rounded to e4m3 and multiplied as float32, which shows what the rounding does to
learning and takes more time, not less. It has none of the error that a narrow accumulator would add.

References:
  `DeepSeek-V3 <https://arxiv.org/abs/2412.19437>`_, section 3.3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.layers import swiglu
from minimoe.layers.reverse_mode import reverse_mode_only
from minimoe.model import MoETransformer, copy_model
from minimoe.moe import MoELayer, weights_by_expert
from minimoe.moe.capacity import make_capacity_plan
from minimoe.quant.grouped_query import check_grouped_query
from minimoe.quant.specs import FP8_BLOCK, FP8_TILE, Spec
from minimoe.quant.tensor import quantize

# Rounds an array as a spec says, tiles along the last axis; another one, say the identity, can be injected.
Quantizer = Callable[[Array, Spec], Array]

FORWARD_MODE = (
    "fp8_matmul has a gradient for reverse mode (jax.grad, jax.vjp) alone, since what it rounds is the gradient; for jax.jvp "
    "differentiate the model without with_fp8_training"
)


def round_trip(x: Float[Array, "*B N"], spec: Spec) -> Float[Array, "*B N"]:
    """``x`` quantized and dequantized, in float32."""
    return quantize(x.astype(jnp.float32), spec, check=False).dequantize(jnp.float32)


def fp8_matmul(
    x: Float[Array, "T I"], w: Float[Array, "I O"], quantizer: Quantizer = round_trip
) -> Float[Array, "T O"]:
    """``x @ w`` whose three products, this one and the two of its gradient, take e4m3 values.

    Args:
      x: activations. w: a kernel.
      quantizer: called with an array and `FP8_TILE` or `FP8_BLOCK`; the default rounds.

    Returns:
      The product in ``x``'s dtype; gradients come in the dtypes of ``x`` and ``w``.

    Raises:
      UserError: for forward-mode differentiation.

    Example:
      >>> fp8_matmul(jnp.array([[1.0, 0.3]]), jnp.eye(2)).tolist()  # 0.3 * 448 = 134.4 is between 128 and 144
      [[1.0, 0.2857142984867096]]
    """
    return _fp8_matmul(reverse_mode_only(x, FORWARD_MODE), reverse_mode_only(w, FORWARD_MODE), quantizer)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _fp8_matmul(x, w, quantizer):
    return _forward(x, w, quantizer)[0]


def _forward(x, w, quantizer):
    x8, w8 = quantizer(x, FP8_TILE), quantizer(w, FP8_BLOCK)
    return _matmul(x8, w8).astype(x.dtype), (x8, w8, _like(x), _like(w))


def _backward(quantizer, kept, dy):
    x8, w8, x_like, w_like = kept
    dx = _matmul(quantizer(dy, FP8_TILE), w8.T)
    dw = _matmul(quantizer(x8.T, FP8_TILE), quantizer(dy.T, FP8_TILE).T)
    return dx.astype(x_like.dtype), dw.astype(w_like.dtype)


def _matmul(a: Float[Array, "P Q"], b: Float[Array, "Q R"]) -> Float[Array, "P R"]:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _like(x: Array) -> Array:
    """An empty array that carries a dtype through the residuals."""
    return jnp.zeros(0, x.dtype)


_fp8_matmul.defvjp(_forward, _backward)


class Fp8Linear(nnx.Module):
    """In the place of an `nnx.Linear` without bias: the same ``kernel [I, O]``, multiplied by `fp8_matmul`.

    Args:
      kernel: the parameter itself, so that its path and its optimiser state stay as they are.
      dtype: of input and output.
      quantizer: see `fp8_matmul`.
    """

    def __init__(self, kernel: nnx.Param, *, dtype: str = "float32", quantizer: Quantizer = round_trip):
        self.kernel = kernel
        self.dtype = dtype
        self.quantizer = quantizer

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        rows = x.reshape(-1, x.shape[-1]).astype(jnp.dtype(self.dtype))
        y = fp8_matmul(rows, self.kernel[...].astype(rows.dtype), self.quantizer)
        return y.reshape(*x.shape[:-1], y.shape[-1])


class Fp8Experts(nnx.Module):
    """In the place of `minimoe.moe.Experts`: the same two stacks, multiplied by `fp8_matmul`, expert by expert.

    All experts see all tokens, whatever ``dispatch`` says, and each token keeps the K answers it asked for: E/K times
    the useful work, but the tiles are easy to see. The tiles of wgrad span 128 neighbouring tokens, chosen or not, where
    a grouped product would span 128 tokens of one expert.

    Args:
      gate_up_proj: ``[E, D, 2F]``, gate first. down_proj: ``[E, F, D]``. Both are the parameters themselves.
      limit: of SwiGLU, see `minimoe.layers.clamp_gate_up`.
      dtype: of the matmuls' input and output.
      quantizer: see `fp8_matmul`.
    """

    def __init__(
        self,
        gate_up_proj: nnx.Param,
        down_proj: nnx.Param,
        *,
        limit: float | None = None,
        dtype: str = "float32",
        quantizer: Quantizer = round_trip,
    ):
        self.gate_up_proj = gate_up_proj
        self.down_proj = down_proj
        self.limit = limit
        self.dtype = dtype
        self.quantizer = quantizer

    def __call__(
        self,
        x: Float[Array, "T D"],
        experts: Int[Array, "T K"],
        weights: Float[Array, "T K"],
        *,
        dispatch: str,
        capacity: int | None = None,
        used: Bool[Array, "T K"] | None = None,
    ) -> Float[Array, "T D"]:
        """``y[t] = sum_k weights[t, k] * FFN[experts[t, k]](x[t])``; ``dispatch="capacity"`` drops what has no slot."""
        dtype = jnp.dtype(self.dtype)
        gate_up, down = self.gate_up_proj[...].astype(dtype), self.down_proj[...].astype(dtype)
        num_experts = gate_up.shape[0]
        if dispatch == "capacity" and capacity is not None:
            plan = make_capacity_plan(experts, used, num_experts, capacity)
            weights = jnp.where(plan.kept, weights, 0.0)
        multiply = functools.partial(fp8_matmul, quantizer=self.quantizer)
        hidden = jax.vmap(multiply, in_axes=(None, 0))(x.astype(dtype), gate_up)  # [E, T, 2F]
        out = jax.vmap(multiply)(swiglu(hidden, self.limit), down)  # [E, T, D]
        weight = weights_by_expert(experts, weights, num_experts).astype(dtype)  # [T, E]
        return jnp.einsum("te,etd->td", weight, out)


def with_fp8_training(model: MoETransformer, quantizer: Quantizer = round_trip) -> MoETransformer:
    """A copy of the model that trains with 8-bit products in attention projections and feed-forward layers.

    Parameters keep their paths and values, so optimisers and checkpoints fit both models. The copy shares no array with
    the original: a training step gives away the arrays it is passed.

    Args:
      model: sparse or dense.
      quantizer: see `fp8_matmul`; the identity gives the model's own answers.

    Raises:
      UserError: if a block has another attention than grouped-query, or one with biases.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> twin = with_fp8_training(model)
      >>> twin.layers[0].attention.q_proj.kernel.shape, type(twin.layers[0].ffn.router) is type(model.layers[0].ffn.router)
      ((128, 128), True)
    """
    check_grouped_query(model, "with_fp8_training", biases=False)
    twin = copy_model(model)

    def linear(layer: nnx.Linear) -> Fp8Linear:
        return Fp8Linear(layer.kernel, dtype=jnp.dtype(layer.dtype).name, quantizer=quantizer)

    def replace(module: nnx.Module, *names: str) -> None:
        for name in names:
            setattr(module, name, linear(getattr(module, name)))

    for block in twin.named_blocks().values():
        attention: Any = block.attention
        replace(attention, "q_proj", "k_proj", "v_proj", "o_proj")
        ffn: Any = block.ffn
        dense = ffn.shared if isinstance(block.ffn, MoELayer) else ffn
        if dense is not None:
            replace(dense, "gate_up_proj", "down_proj")
        if isinstance(block.ffn, MoELayer):
            stacks = ffn.experts.gate_up_proj, ffn.experts.down_proj
            limit, dtype = ffn.experts.limit, ffn.config.dtype
            ffn.experts = Fp8Experts(*stacks, limit=limit, dtype=dtype, quantizer=quantizer)
    return twin
