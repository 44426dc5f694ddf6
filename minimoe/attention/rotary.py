"""Angles of rotary positions, and the turn of the last dims of a head; `minimoe.attention.yarn` has the frequencies.

    head of H numbers   [ x_0 ... x_(H-R-1) | (a_0, b_0) (a_1, b_1) ... ]      the last R numbers turn, in pairs
                          stay as they are      turned by position * f_0, position * f_1, ...

`turn_last` turns neighbouring dims, as the published weights of DeepSeek-V4 have them. `minimoe.layers.apply_rope` turns
dim i with dim i + R/2.

Axes: L sequence, B batch, N heads, H head width, R rotary dims.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rotary_angles(
    positions: Int[Array, "L"], frequencies: Float[np.ndarray, "_"], scale: float = 1.0
) -> tuple[Float[Array, "L _"], Float[Array, "L _"]]:
    """Cosine and sine of ``position * frequency``, float32, both multiplied by ``scale``."""
    angle = positions.astype(jnp.float32)[:, None] * jnp.asarray(frequencies)[None, :]
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def turn_last(
    x: Float[Array, "B L N H"], cos: Float[Array, "L _"], sin: Float[Array, "L _"]
) -> Float[Array, "B L N H"]:
    """Turns the pairs ``(x[2i], x[2i+1])`` of the last R dims, in float32; with ``-sin`` it turns them back."""
    rope_dim = 2 * cos.shape[1]
    still, last = x[..., :-rope_dim], x[..., -rope_dim:].astype(jnp.float32)
    a, b = last[..., 0::2], last[..., 1::2]
    cos, sin = cos[None, :, None], sin[None, :, None]
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(last.shape)
    return jnp.concatenate([still, turned.astype(x.dtype)], axis=-1)
