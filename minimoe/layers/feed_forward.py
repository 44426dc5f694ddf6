"""SwiGLU feed-forward. Axes: T tokens, D model width, F hidden width (F2 = 2*F in annotations)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from minimoe.layers.initializers import fan_in


def clamp_gate_up(gate_up: Float[Array, "*B F2"], limit: float | None) -> Float[Array, "*B F2"]:
    """``min(gate, limit)`` and ``up`` held between ``-limit`` and ``limit``; None changes nothing.

    The gate has no lower bound: far below zero ``silu`` closes by itself. What is held has a gradient of 0.

    Example:
      >>> print(clamp_gate_up(jnp.array([-20.0, 20.0, -20.0, 20.0]), 10.0))
      [-20.  10. -10.  10.]

    References:
      DeepSeek-AI, DeepSeek-V4 (arXiv 2606.19348), section 4.2.3: against spikes of the loss, with a limit of 10.
    """
    if limit is None:
        return gate_up
    gate, up = jnp.split(gate_up, 2, axis=-1)
    gate = jnp.where(gate > limit, limit, gate)
    up = jnp.where(up > limit, limit, jnp.where(up < -limit, -limit, up))
    return jnp.concatenate([gate, up], axis=-1)


def swiglu(gate_up: Float[Array, "*B F2"], limit: float | None = None) -> Float[Array, "*B F2//2"]:
    """``silu(gate) * up``, the two stored side by side on the last axis: gate first.

    Args:
      gate_up: the two projections.
      limit: of both before the product, see `clamp_gate_up`; None for none.

    References:
      Shazeer, `GLU Variants Improve Transformer <https://arxiv.org/abs/2002.05202>`_, eq. 6.
    """
    gate, up = jnp.split(clamp_gate_up(gate_up, limit), 2, axis=-1)
    return jax.nn.silu(gate) * up


class SwiGLU(nnx.Module):
    """``down(silu(gate(x)) * up(x))`` without biases; the two input projections are one matrix ``[D, 2F]``.

    Args:
      d_model: D.
      d_ff: F.
      dtype: of the matmuls; ``param_dtype``: of the stored matrices.
      out_scale: multiplies the initial standard deviation of the output matrix.
      limit: of gate and up, see `clamp_gate_up`; None for none.
      gate_up_init, down_init: initialisers in place of `fan_in`; what metadata they attach is kept.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        dtype: str = "float32",
        param_dtype: str = "float32",
        out_scale: float = 1.0,
        limit: float | None = None,
        gate_up_init: nnx.initializers.Initializer | None = None,
        down_init: nnx.initializers.Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        self.limit = limit
        kwargs: dict[str, Any] = {"use_bias": False, "rngs": rngs}
        kwargs |= {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}
        self.gate_up_proj = nnx.Linear(d_model, 2 * d_ff, kernel_init=gate_up_init or fan_in(), **kwargs)
        self.down_proj = nnx.Linear(d_ff, d_model, kernel_init=down_init or fan_in(out_scale), **kwargs)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return self.down_proj(swiglu(self.gate_up_proj(x), self.limit))
