"""Initial weights."""

from __future__ import annotations

import jax


def fan_in(scale: float = 1.0) -> jax.nn.initializers.Initializer:
    """Truncated normal of standard deviation ``scale / sqrt(fan in)``, expert axes (all but the last two) left out.

    Branch outputs take ``scale = 1/sqrt(2 * num_layers)``, so that the residual stream starts near unit size whatever
    the depth (Radford et al. 2019, section 2.3).
    """

    def init(key, shape, dtype=None, out_sharding=None):
        batch_axis = tuple(range(len(shape) - 2))
        inner = jax.nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal", batch_axis=batch_axis)
        return inner(key, shape, dtype)

    return init
