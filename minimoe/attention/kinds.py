"""What a model asks of a kind of attention, and the table of kinds.

A kind is a frozen dataclass of its sizes that can build its module, make its cache and say what both cost. To add one,
write its sizes and its module in two files of its own and name it in `ATTENTIONS`: sizes load no JAX, so that counting
a model's parameters does not wait for it. Axes: B batch, L sequence, S cache length, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from minimoe.attention.csa_config import CompressedSparseConfig
from minimoe.attention.gqa_config import GroupedQueryConfig
from minimoe.attention.hca_config import HeavilyCompressedConfig
from minimoe.attention.mla_config import MultiHeadLatentConfig
from minimoe.attention.sliding import SlidingWindowConfig

if TYPE_CHECKING:
    from flax import nnx
    from jaxtyping import Array, Float

    from minimoe.attention.cache import Cache
    from minimoe.attention.indexer import IndexLoss


@runtime_checkable
class AttentionModule(Protocol):
    """The module of one layer."""

    def __call__(
        self, x: Float[Array, "B L D"], cache: Cache | None = None
    ) -> tuple[Float[Array, "B L D"], Cache | IndexLoss | None]:
        """Attends within ``x``, or, with a cache, also to the tokens it holds; gives the longer cache back.

        Without a cache there is none to give back; a kind with an indexer may then say what that lost.
        """


@runtime_checkable
class AttentionConfig(Protocol):
    """The sizes of one kind of attention; frozen and hashable, so that equal configs compile once."""

    kind: ClassVar[str]

    def build(self, d_model: int, *, out_scale: float, dtype: str, param_dtype: str, rngs: nnx.Rngs) -> AttentionModule:
        """The module. ``out_scale`` multiplies the initial standard deviation of its output matrix."""

    def init_cache(self, batch: int, size: int, make: Callable[..., Cache], dtype: Any) -> Cache:
        """An empty cache of one layer, with room for ``size`` tokens; ``make`` builds what holds keys and values."""

    def num_params(self, d_model: int) -> int:
        """Weights of one layer."""

    def cache_bytes_per_token(self, dtype: Any) -> int | float:
        """What one more token adds to the cache of one layer, in bytes; a fraction where one entry stands for many."""

    def cache_parts(self, context: int, dtype: Any) -> dict[str, int]:
        """`cache_bytes` by part: "entries", which grow with the context, and, where they exist, "window" and "tails"."""

    def cache_bytes(self, context: int, dtype: Any) -> int:
        """Bytes of the cache of one layer and one sequence with room for ``context`` tokens; the arrays are this large."""

    def flops_per_token(self, d_model: int, context: int) -> float:
        """Forward FLOPs of one layer and token, averaged over the positions of a sequence of ``context`` tokens."""


ATTENTIONS: dict[str, type[Any]] = {
    cls.kind: cls
    for cls in (
        GroupedQueryConfig,
        MultiHeadLatentConfig,
        SlidingWindowConfig,
        CompressedSparseConfig,
        HeavilyCompressedConfig,
    )
}
