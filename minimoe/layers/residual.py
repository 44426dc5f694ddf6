"""How the branches of a block are joined to the stream that runs through the model, and the table of ways.

A kind is a frozen dataclass that can build its module, one for each branch, and say what that costs. To add one, write
it in a file of its own and name it in `RESIDUALS`. Axes: B batch, L sequence, D model width.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from minimoe.layers.hyper_config import HyperConnectionConfig

if TYPE_CHECKING:
    from flax import nnx
    from jaxtyping import Array, Float

    from minimoe.layers.add import AddResidual, SameStream


@runtime_checkable
class ResidualConfig(Protocol):
    """A kind of residual; frozen and hashable."""

    kind: ClassVar[str]

    @property
    def streams(self) -> int:
        """How many rows of D numbers run through the model for each token."""

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> Any:
        """The module of one branch, with ``read(stream) -> (x, kept)`` and ``write(stream, y, kept) -> stream``.

        ``kept`` is whatever `write` needs of what `read` computed.
        """

    def build_leave(self, d_model: int, *, rngs: nnx.Rngs) -> Any:
        """The module of the end: called with the stream, it gives what the last norm sees, ``[B, L, D]``."""

    def enter(self, x: Float[Array, "B L D"]) -> Float[Array, "B L ..."]:
        """The stream that begins with the embeddings ``x``."""

    def num_params(self, d_model: int) -> int:
        """Weights of one branch."""

    def leave_params(self, d_model: int) -> int:
        """Weights of the end."""

    def flops_per_token(self, d_model: int) -> float:
        """Forward FLOPs of one branch and token."""

    def leave_flops_per_token(self, d_model: int) -> float:
        """Forward FLOPs of the end, for one token."""


@dataclasses.dataclass(frozen=True)
class AddConfig:
    """``x + branch(x)``: the stream is ``[B, L, D]``, and there is nothing to learn."""

    kind: ClassVar[str] = "add"
    streams: ClassVar[int] = 1

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> AddResidual:
        """The module."""
        from minimoe.layers.add import AddResidual

        return AddResidual()

    def build_leave(self, d_model: int, *, rngs: nnx.Rngs) -> SameStream:
        """The module."""
        from minimoe.layers.add import SameStream

        return SameStream()

    def enter(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """``x`` itself."""
        return x

    def num_params(self, d_model: int) -> int:
        """None."""
        return 0

    def flops_per_token(self, d_model: int) -> float:
        """One addition a number is left out, as norms are."""
        return 0.0

    def leave_params(self, d_model: int) -> int:
        """None."""
        return 0

    def leave_flops_per_token(self, d_model: int) -> float:
        """None."""
        return 0.0


ADD = AddConfig()
RESIDUALS: dict[str, type[Any]] = {cls.kind: cls for cls in (AddConfig, HyperConnectionConfig)}
