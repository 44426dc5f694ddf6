"""The plain residual, ``x + branch(x)``, as modules. Axes: B batch, L sequence, D model width."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float


class AddResidual(nnx.Module):
    """Joins a branch to the stream by adding its output."""

    def read(self, stream: Float[Array, "B L D"]) -> tuple[Float[Array, "B L D"], None]:
        """What the branch sees."""
        return stream, None

    def write(self, stream: Float[Array, "B L D"], y: Float[Array, "B L D"], kept: None) -> Float[Array, "B L D"]:
        """The stream after the branch gave ``y``."""
        return stream + y


class SameStream(nnx.Module):
    """The end of a stream that needs none: what the last norm sees is the stream."""

    def __call__(self, stream: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return stream
