"""Rotary position embeddings. Axes: B batch, L sequence, N heads, H head width."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rope_angles(
    positions: Int[Array, "L"], head_dim: int, theta: float
) -> tuple[Float[Array, "L {head_dim//2}"], Float[Array, "L {head_dim//2}"]]:
    """Cosine and sine of ``position * theta**(-2i/H)`` for each pair i.

    Args:
      positions: whole numbers from 0, the place of each token in its sequence.
      head_dim: H, even.
      theta: base of the frequencies; larger turns slower.

    Returns:
      ``(cos, sin)``, both float32 ``[L, H/2]``.

    References:
      Su et al., `RoFormer <https://arxiv.org/abs/2104.09864>`_, eq. 15.
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)  # [H/2]
    angle = positions.astype(jnp.float32)[:, None] * frequency[None, :]
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(
    x: Float[Array, "B L N H"], cos: Float[Array, "L H/2"], sin: Float[Array, "L H/2"]
) -> Float[Array, "B L N H"]:
    """Turns the pairs ``(x[i], x[i + H/2])`` by their angle.

    This is the "half" layout of Llama, GLM and most published weights, not the interleaved one of DeepSeek. The dot
    product of two turned vectors depends on the difference of their positions only.
    """
    cos, sin = cos[None, :, None, :].astype(x.dtype), sin[None, :, None, :].astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
