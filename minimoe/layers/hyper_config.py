"""The sizes of manifold-constrained hyper-connections, and what they cost. The module is `minimoe.layers.hyper`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from minimoe.checks import number_fields, require, whole_fields

if TYPE_CHECKING:
    from flax import nnx
    from jaxtyping import Array, Float

    from minimoe.layers.hyper import HyperCollapse, HyperConnection


@dataclasses.dataclass(frozen=True)
class HyperConnectionConfig:
    """Manifold-constrained hyper-connections: the stream is ``[B, L, n, D]``.

    Args:
      streams: n, at least 2. DeepSeek-V4 has 4.
      sinkhorn_iters: normalisations of columns, and of rows between them.
      eps: keeps A and the sums of B from 0. norm_eps: inside the root of equation 3.

    Raises:
      UserError: naming the value and the repair.

    Example:
      >>> HyperConnectionConfig(streams=4).num_params(128) == 24 * 4 * 128 + 24 + 3
      True
    """

    streams: int = 4
    sinkhorn_iters: int = 20
    eps: float = 1e-6
    norm_eps: float = 1e-6
    kind: ClassVar[str] = "hyper"

    def __post_init__(self) -> None:
        whole_fields(self, "streams", "sinkhorn_iters")
        require(self.streams > 1, self, 'streams=1 has nothing to mix; use 2 or more, or the residual of kind "add"')
        number_fields(self, "eps", "norm_eps", low=1e-30, high=1, hint="1e-6 is usual")

    @property
    def outputs(self) -> int:
        """What the generator of one branch gives: 2n + n^2 numbers."""
        return 2 * self.streams + self.streams**2

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> HyperConnection:
        """The module of one branch."""
        from minimoe.layers.hyper import HyperConnection

        return HyperConnection(self, d_model, rngs=rngs)

    def build_leave(self, d_model: int, *, rngs: nnx.Rngs) -> HyperCollapse:
        """The module that makes one stream of n."""
        from minimoe.layers.hyper import HyperCollapse

        return HyperCollapse(self, d_model, rngs=rngs)

    def enter(self, x: Float[Array, "B L D"]) -> Float[Array, "B L n D"]:
        """``x`` in every stream."""
        from minimoe.layers.hyper import equal_streams

        return equal_streams(x, self.streams)

    def num_params(self, d_model: int) -> int:
        """Generator, base and scales of one branch."""
        return self.outputs * self.streams * d_model + self.outputs + 3

    def leave_params(self, d_model: int) -> int:
        """Generator, base and scale of the collapse."""
        return self.streams * self.streams * d_model + self.streams + 1

    def flops_per_token(self, d_model: int) -> float:
        """The generator, equation 1 and equation 2; norm and Sinkhorn are left out, as norm and softmax are elsewhere."""
        n = self.streams
        return 2.0 * n * d_model * (self.outputs + 1 + n + 1)

    def leave_flops_per_token(self, d_model: int) -> float:
        """The generator of the collapse and its sum."""
        return 2.0 * self.streams * d_model * (self.streams + 1)
