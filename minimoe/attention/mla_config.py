"""The sizes of multi-head latent attention, and what they cost. The module is `minimoe.attention.mla`, with its axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from minimoe.attention.row_bytes import dtype_bytes
from minimoe.attention.yarn import YarnConfig, check_yarn
from minimoe.checks import number_fields, require, whole_fields

if TYPE_CHECKING:
    from flax import nnx

    from minimoe.attention.cache import Cache
    from minimoe.attention.mla import MultiHeadLatentAttention


@dataclasses.dataclass(frozen=True)
class MultiHeadLatentConfig:
    """N heads whose keys and values come from one latent of R numbers a token, and one rotary key that all share.

    Args:
      num_heads: N.
      kv_rank: R, width of the latent. q_rank: width of the latent of the queries; None makes them from the token itself.
      nope_dim: C, width of a head's part without position. rope_dim: P, of its turned part, even. v_dim: U, of its value.
      rope_theta: base of the rotary frequencies. yarn: how they are stretched for longer contexts, None for not.
      norm_eps: inside the square root of the norms of the two latents.

    Raises:
      UserError: naming the value and the repair.

    Example:
      >>> v3 = MultiHeadLatentConfig(128, kv_rank=512, q_rank=1536, nope_dim=128, rope_dim=64, v_dim=128)
      >>> v3.cache_bytes_per_token("bfloat16") // 2  # numbers a token and layer
      576
    """

    kind: ClassVar[str] = "latent"

    num_heads: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    q_rank: int | None = None
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    yarn: YarnConfig | None = None

    def __post_init__(self) -> None:
        whole_fields(self, "num_heads", "kv_rank", "nope_dim", "rope_dim", "v_dim")
        if self.q_rank is not None:
            whole_fields(self, "q_rank", hint="use None for queries without a latent")
        p = self.rope_dim
        require(p % 2 == 0, self, f"rope_dim={p} must be even, because rotary embeddings turn pairs; use {p + 1}")
        number_fields(self, "rope_theta", low=1, high=1e12, hint="10000.0 is usual")
        number_fields(self, "norm_eps", low=1e-30, high=1, hint="1e-6 is usual")
        check_yarn(self)

    @property
    def head_dim(self) -> int:
        """C + P, what a query and a key are multiplied over."""
        return self.nope_dim + self.rope_dim

    def build(
        self, d_model: int, *, out_scale: float, dtype: str, param_dtype: str, rngs: nnx.Rngs
    ) -> MultiHeadLatentAttention:
        """The module with these sizes."""
        from minimoe.attention.mla import MultiHeadLatentAttention

        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        return MultiHeadLatentAttention(self, d_model, out_scale=out_scale, rngs=rngs, **dtypes)

    def init_cache(self, batch: int, size: int, make: Callable[..., Cache], dtype: Any) -> Cache:
        """A `LatentCache`.

        Raises:
          UserError: for a ``make`` of one's own, which would hold keys and values: this attention keeps neither.
        """
        from minimoe.attention.cache import KVCache
        from minimoe.attention.mla import LatentCache

        own = make == KVCache.zeros
        require(own, self, "its cache holds latents, not the keys and values that make= builds; leave make out")
        return LatentCache.zeros(batch, size, self.kv_rank, self.rope_dim, dtype)

    def num_params(self, d_model: int) -> int:
        """The matrices, and the scales of the norms of the latents."""
        return self._matrices(d_model) + self.kv_rank + (self.q_rank or 0)

    def _matrices(self, d_model: int) -> int:
        n, r = self.num_heads, self.kv_rank
        queries = n * self.head_dim
        query = d_model * queries if self.q_rank is None else self.q_rank * (d_model + queries)
        return query + d_model * (r + self.rope_dim) + r * n * (self.nope_dim + self.v_dim) + n * self.v_dim * d_model

    def cache_bytes_per_token(self, dtype: Any) -> int:
        """A latent of R numbers and a rotary key of P."""
        return (self.kv_rank + self.rope_dim) * dtype_bytes(dtype)

    def cache_parts(self, context: int, dtype: Any) -> dict[str, int]:
        """Bytes that one sequence of ``context`` tokens keeps in one layer: entries alone."""
        return {"entries": self.cache_bytes(context, dtype)}

    def cache_bytes(self, context: int, dtype: Any) -> int:
        """Bytes that one sequence of ``context`` tokens keeps in one layer."""
        return context * self.cache_bytes_per_token(dtype)

    def flops_per_token(self, d_model: int, context: int) -> float:
        """Two a weight, and ``2 * N * (C + P + U)`` an attended position, of which there are ``(context + 1) / 2``.

        That is the form which makes keys and values, as in training; the absorbed form of decoding multiplies wider
        vectors, ``2 * N * (2 * R + P)`` a position, and makes none of them again.
        """
        core = 2 * self.num_heads * (self.head_dim + self.v_dim)
        return 2 * self._matrices(d_model) + core * (context + 1) / 2

    def absorbed_extra_flops(self, context: int) -> int:
        """What the token at position ``context`` costs more in decoding: the absorbed form less that of `flops_per_token`."""
        absorbed = 2 * self.kv_rank + self.rope_dim
        return 2 * self.num_heads * (absorbed - self.head_dim - self.v_dim) * context
