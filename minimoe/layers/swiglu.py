"""SwiGLU feed-forward. Axes: T tokens, D model width, F hidden width (F2 = 2*F in annotations)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from minimoe.layers.initializers import fan_in


def swiglu(gate_up: Float[Array, "*B F2"]) -> Float[Array, "*B F2//2"]:
    """``silu(gate) * up``, the two stored side by side on the last axis: gate first.

    References:
      Shazeer, `GLU Variants Improve Transformer <https://arxiv.org/abs/2002.05202>`_, eq. 6.
    """
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return jax.nn.silu(gate) * up


def swiglu_params(d_model: int, d_ff: int) -> int:
    """Weights of one SwiGLU: three matrices D x F.

    Example:
      >>> swiglu_params(128, 512) == 3 * 128 * 512
      True
    """
    return 3 * d_model * d_ff


class SwiGLU(nnx.Module):
    """``down(silu(gate(x)) * up(x))`` without biases; the two input projections are one matrix ``[D, 2F]``.

    Args:
      d_model: D.
      d_ff: F.
      dtype: of the matmuls; ``param_dtype``: of the stored matrices.
      out_scale: multiplies the initial standard deviation of the output matrix.
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
        gate_up_init: nnx.initializers.Initializer | None = None,
        down_init: nnx.initializers.Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"use_bias": False, "rngs": rngs}
        kwargs |= {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}
        self.gate_up_proj = nnx.Linear(d_model, 2 * d_ff, kernel_init=gate_up_init or fan_in(), **kwargs)
        self.down_proj = nnx.Linear(d_ff, d_model, kernel_init=down_init or fan_in(out_scale), **kwargs)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return self.down_proj(swiglu(self.gate_up_proj(x)))
