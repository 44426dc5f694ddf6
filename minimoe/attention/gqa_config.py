"""The sizes of grouped-query attention, and what they cost. The module is `minimoe.attention.gqa`.

Axes as in `minimoe.attention.core`; D is the model width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from minimoe.attention.row_bytes import dtype_bytes
from minimoe.checks import flag_fields, number_fields, require, whole_fields

if TYPE_CHECKING:
    from flax import nnx

    from minimoe.attention.cache import Cache
    from minimoe.attention.gqa import GroupedQueryAttention


@dataclasses.dataclass(frozen=True)
class GroupedQueryConfig:
    """N query heads share M key/value heads (Ainslie et al., `GQA <https://arxiv.org/abs/2305.13245>`_).

    Args:
      num_heads: N query heads. num_kv_heads: M key/value heads, a divisor of N. head_dim: H, even.
      rope_theta: base of the rotary frequencies.
      rope_dim: P, how many numbers of a head its position turns, the first ones; even. None turns all H.
      qk_norm: a norm over each query and key, before they are turned; one scale of H for all queries, one for all keys.
      bias: adds a bias to queries, keys and values, not to the output.
      norm_eps: inside the square root of those norms.

    Raises:
      UserError: naming the value and the repair.

    Example:
      >>> GroupedQueryConfig(num_heads=4, num_kv_heads=2, head_dim=32).num_params(d_model=128)
      49152
    """

    kind: ClassVar[str] = "grouped_query"

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_dim: int | None = None
    qk_norm: bool = False
    bias: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        whole_fields(self, "num_heads", "num_kv_heads", "head_dim")
        n, m, h = self.num_heads, self.num_kv_heads, self.head_dim
        require(n % m == 0, self, f"num_heads={n} must be a multiple of num_kv_heads={m}; change one of them")
        require(h % 2 == 0, self, f"head_dim={h} must be even, because rotary embeddings turn pairs; use {h + 1}")
        number_fields(self, "rope_theta", low=1, high=1e12, hint="10000.0 is usual")
        number_fields(self, "norm_eps", low=1e-30, high=1, hint="1e-6 is usual")
        flag_fields(self, "qk_norm", "bias")
        if self.rope_dim is not None:
            whole_fields(self, "rope_dim", most=h, hint="use None to turn all of a head")
            p = self.rope_dim
            require(p % 2 == 0, self, f"rope_dim={p} must be even, because rotary embeddings turn pairs; use {p - 1}")

    @property
    def turned(self) -> int:
        """P, numbers of a head that its position turns."""
        return self.head_dim if self.rope_dim is None else self.rope_dim

    def build(
        self, d_model: int, *, out_scale: float, dtype: str, param_dtype: str, rngs: nnx.Rngs
    ) -> GroupedQueryAttention:
        """The module with these sizes."""
        from minimoe.attention.gqa import GroupedQueryAttention

        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        return GroupedQueryAttention(self, d_model, out_scale=out_scale, rngs=rngs, **dtypes)

    def init_cache(self, batch: int, size: int, make: Callable[..., Cache], dtype: Any) -> Cache:
        """``make(batch, size, M, H, dtype)``."""
        return make(batch, size, self.num_kv_heads, self.head_dim, dtype)

    def num_params(self, d_model: int) -> int:
        """Four matrices, D x N*H for queries and output, D x M*H for keys and values; then norms and biases, if any."""
        norms = 2 * self.head_dim if self.qk_norm else 0
        biases = self.head_dim * (self.num_heads + 2 * self.num_kv_heads) if self.bias else 0
        return self._matrices(d_model) + norms + biases

    def _matrices(self, d_model: int) -> int:
        return 2 * d_model * self.head_dim * (self.num_heads + self.num_kv_heads)

    def cache_bytes_per_token(self, dtype: Any) -> int:
        """A key and a value of M * H numbers each."""
        return 2 * self.num_kv_heads * self.head_dim * dtype_bytes(dtype)

    def cache_parts(self, context: int, dtype: Any) -> dict[str, int]:
        """Bytes that one sequence of ``context`` tokens keeps in one layer: entries alone."""
        return {"entries": self.cache_bytes(context, dtype)}

    def cache_bytes(self, context: int, dtype: Any) -> int:
        """Bytes that one sequence of ``context`` tokens keeps in one layer."""
        return context * self.cache_bytes_per_token(dtype)

    def flops_per_token(self, d_model: int, context: int) -> float:
        """Two a weight, and ``4 * N * H`` an attended position, of which a token sees ``(context + 1) / 2`` on average."""
        return 2 * self._matrices(d_model) + 4 * self.num_heads * self.head_dim * (context + 1) / 2
