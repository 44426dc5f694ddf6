"""RMSNorm in float32, whatever the dtypes of its input and of its scale. Axis: D model width."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm`, which mixes bfloat16 and float32 inside: here also where JAX promotes no dtypes by itself.

    Mean square, root and scale are computed in float32; the result has the ``dtype`` of the layer.
    """

    def __call__(self, x: Float[Array, "... D"], mask: Array | None = None) -> Float[Array, "... D"]:
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, mask)
