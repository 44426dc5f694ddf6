"""The sizes that the three kinds of attention of DeepSeek-V4 have in common, and what they cost.

The module is `minimoe.attention.shared_kv`, which also names the axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from minimoe.attention.row_bytes import entry_bytes
from minimoe.attention.yarn import YarnConfig, check_yarn, rotary_frequencies
from minimoe.checks import flag_fields, number_fields, require, whole_fields

if TYPE_CHECKING:
    from minimoe.attention.cache import Cache
    from minimoe.attention.compress import Compressed
    from minimoe.attention.shared_kv import SharedKVCache


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedKVConfig:
    """Sizes that the three kinds share.

    Args:
      num_heads: N. head_dim: H. rope_dim: R, the last dims of a head, which turn; even.
      q_rank: Q, width of the query latent. window: W, tokens that a query sees as they are, itself included.
      out_groups: g, a divisor of N. out_rank: numbers that a group of heads becomes.
      rope_theta: base of the rotary frequencies. yarn: how they are stretched, None for not.
      norm_eps: inside the square root of the norms.
      sink: whether each head has a sink, a learnt score in the softmax whose weight goes to nothing; V4 has them. Without,
        the weights of a query always sum to 1.

    Raises:
      UserError: naming the value and the repair.
    """

    kind: ClassVar[str]

    num_heads: int
    head_dim: int
    rope_dim: int
    q_rank: int
    window: int
    out_groups: int
    out_rank: int
    rope_theta: float = 10_000.0
    yarn: YarnConfig | None = None
    norm_eps: float = 1e-6
    sink: bool = True

    def __post_init__(self) -> None:
        whole_fields(self, "num_heads", "head_dim", "rope_dim", "q_rank", "window", "out_groups", "out_rank")
        n, g = self.num_heads, self.out_groups
        require(n % g == 0, self, f"num_heads={n} must be a multiple of out_groups={g}; change one of them")
        self._check_rotary("head_dim")
        number_fields(self, "rope_theta", low=1, high=1e12, ends="()", hint="10000.0 is usual")
        number_fields(self, "norm_eps", low=1e-30, high=1, hint="1e-6 is usual")
        flag_fields(self, "sink")
        check_yarn(self)
        plain = self.yarn is None or self.yarn.mscale == self.yarn.mscale_all_dim == 0
        require(plain, self, "yarn scales cosine, sine or scores, which these kinds do not; leave mscale out")

    def _check_rotary(self, width: str) -> None:
        r, h = self.rope_dim, getattr(self, width)
        fits = r % 2 == 0 and r <= h
        require(fits, self, f"rope_dim={r} must be even and at most {width}={h}, since its last dims turn in pairs")

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Of the rotary positions, radians a token."""
        return tuple(float(f) for f in rotary_frequencies(self.rope_dim, self.rope_theta, self.yarn))

    def init_cache(self, batch: Any, size: Any, make: Callable[..., Cache], dtype: Any) -> SharedKVCache:
        """An empty decoding state of one layer, with room for ``size`` tokens.

        Args:
          make: `KVCache.zeros` for rows in ``dtype``, or a `minimoe.attention.RowStorage`.

        Raises:
          UserError: for another ``make``, which would hold keys and values of every token.
        """
        from jax.numpy import int32, zeros

        from minimoe.attention.cache import KVCache, cache_shape
        from minimoe.attention.shared_kv import SharedKVCache
        from minimoe.attention.storage import PlainStorage, RowStorage

        storage: Any = PlainStorage() if make == KVCache.zeros else make
        rows = "its cache holds a window and entries, not the keys and values that make= builds; leave make out"
        require(isinstance(storage, RowStorage), self, rows)
        batch, size, _, width = cache_shape(batch, size, 1, self.head_dim)
        window = storage.entry_rows(batch, min(self.window, size), width, self.rope_dim, dtype)
        return SharedKVCache(window, self._compressed(batch, size, storage, dtype), zeros((), int32), size)

    def _compressed(self, batch: int, size: int, storage: Any, dtype: Any) -> tuple[Compressed, ...]:
        """Empty compressed state; none for a window alone."""
        return ()

    def num_params(self, d_model: int) -> int:
        """Matrices, norms of the query latent and of the row, a sink a head if there are any."""
        return self._matrices(d_model) + self.q_rank + self.head_dim + self.num_heads * self.sink

    def _matrices(self, d_model: int) -> int:
        heads = self.num_heads * self.head_dim
        queries = self.q_rank * (d_model + heads)
        return queries + d_model * self.head_dim + heads * self.out_rank + self.out_groups * self.out_rank * d_model

    def cache_bytes_per_token(self, dtype: Any) -> int | float:
        """What grows with the context, in bytes a token; the window and the tails do not. ``dtype`` may be "v4"."""
        return 0

    def cache_bytes(self, context: int, dtype: Any) -> int:
        """Bytes of the decoding state of one sequence with room for ``context`` tokens; the arrays are this large."""
        return sum(self.cache_parts(context, dtype).values())

    def cache_parts(self, context: int, dtype: Any) -> dict[str, int]:
        """The same by part: "entries" grow with the context, the "window" is full after W tokens, "tails" are fixed."""
        window = min(self.window, context) * entry_bytes(self.head_dim, self.rope_dim, dtype)
        return {"entries": 0, "window": window, "tails": 0}

    def flops_per_token(self, d_model: int, context: int) -> float:
        """Two a weight of a matrix, and ``4 * N * H`` a row or entry that is attended to."""
        core = 4 * self.num_heads * self.head_dim
        return 2 * self._matrices(d_model) + core * self._attended(context)

    def _attended(self, context: int) -> float:
        return mean_visible(context, 1, self.window)


def mean_visible(context: int, ratio: int, most: int | None = None) -> float:
    """Mean over positions ``t = 0 .. context - 1`` of ``min(most, (t + 1) // ratio)``: entries that a token sees.

    Example:
      >>> mean_visible(4, 2), mean_visible(4, 1, most=2)  # (0+1+1+2)/4, (1+2+2+2)/4
      (1.0, 1.75)
    """

    def total(tokens: int) -> int:
        whole = tokens // ratio
        return ratio * whole * (whole - 1) // 2 + whole * (tokens - whole * ratio + 1)

    if most is None or context < most * ratio:
        return total(context) / context
    return (total(most * ratio - 1) + most * (context - most * ratio + 1)) / context
