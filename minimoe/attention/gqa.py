"""Grouped-query attention with rotary positions: its sizes, what they cost, and the module.

    query at t     q_1 q_2 | q_3 q_4          N = 4 heads, M = 2 key/value heads: two query heads share each
                     |   |     |   |
    token 0          k_1 v_1   k_2 v_2        kept while decoding: 2 * M * H numbers a token, for all tokens
    ...
    token t          k_1 v_1   k_2 v_2        (causal: tokens behind t are not seen)

    q_n = RoPE(W_Q,n h),  k_m = RoPE(W_K,m h),  v_m = W_V,m h                                    (1)
    o_n = sum_s softmax_s(q_n . k_(m,s) / sqrt(H)) v_(m,s),  m = the group of n                  (2)

M = N is multi-head attention, M = 1 multi-query attention. The numbers of the equations are ours.

Axes as in `minimoe.attention.core`; D is the model width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from minimoe.attention.cache import Cache
from minimoe.attention.core import causal_attention, masked_attention
from minimoe.checks import number_fields, require, whole_fields
from minimoe.layers import apply_rope, fan_in, rope_angles


@dataclasses.dataclass(frozen=True)
class GroupedQueryConfig:
    """N query heads share M key/value heads (Ainslie et al., `GQA <https://arxiv.org/abs/2305.13245>`_).

    Args:
      num_heads: N query heads. num_kv_heads: M key/value heads, a divisor of N. head_dim: H, even.
      rope_theta: base of the rotary frequencies.

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

    def __post_init__(self) -> None:
        whole_fields(self, "num_heads", "num_kv_heads", "head_dim")
        n, m, h = self.num_heads, self.num_kv_heads, self.head_dim
        require(n % m == 0, self, f"num_heads={n} must be a multiple of num_kv_heads={m}; change one of them")
        require(h % 2 == 0, self, f"head_dim={h} must be even, because rotary embeddings turn pairs; use {h + 1}")
        number_fields(self, "rope_theta", low=1, high=1e12, hint="10000.0 is usual")

    def build(
        self, d_model: int, *, out_scale: float, dtype: str, param_dtype: str, rngs: nnx.Rngs
    ) -> GroupedQueryAttention:
        """The module with these sizes."""
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        return GroupedQueryAttention(self, d_model, out_scale=out_scale, rngs=rngs, **dtypes)

    def init_cache(self, batch: int, size: int, make: Callable[..., Cache], dtype: Any) -> Cache:
        """``make(batch, size, M, H, dtype)``."""
        return make(batch, size, self.num_kv_heads, self.head_dim, dtype)

    def num_params(self, d_model: int) -> int:
        """Four matrices: D x N*H for queries and output, D x M*H for keys and values."""
        return 2 * d_model * self.head_dim * (self.num_heads + self.num_kv_heads)

    def cache_bytes_per_token(self, dtype: Any) -> int:
        """A key and a value of M * H numbers each."""
        return 2 * self.num_kv_heads * self.head_dim * jnp.dtype(dtype).itemsize

    def cache_parts(self, context: int, dtype: Any) -> dict[str, int]:
        """Bytes that one sequence of ``context`` tokens keeps in one layer: entries alone."""
        return {"entries": self.cache_bytes(context, dtype)}

    def cache_bytes(self, context: int, dtype: Any) -> int:
        """Bytes that one sequence of ``context`` tokens keeps in one layer."""
        return context * self.cache_bytes_per_token(dtype)

    def flops_per_token(self, d_model: int, context: int) -> float:
        """Two a weight, and ``4 * N * H`` an attended position, of which a token sees ``(context + 1) / 2`` on average."""
        return 2 * self.num_params(d_model) + 4 * self.num_heads * self.head_dim * (context + 1) / 2


class GroupedQueryAttention(nnx.Module):
    """N query heads share M key/value heads; no biases.

    Kernels: ``q_proj [D, N*H]``, ``k_proj`` and ``v_proj [D, M*H]``, ``o_proj [N*H, D]``.

    Args:
      config: N, M and H. d_model: D.
      dtype: of the matmuls; ``param_dtype``: of the stored kernels.
      out_scale: multiplies the initial standard deviation of ``o_proj``.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        config: GroupedQueryConfig,
        d_model: int,
        *,
        dtype: str = "float32",
        param_dtype: str = "float32",
        out_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        self.config = config
        query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        kwargs: dict[str, Any] = {"use_bias": False, "rngs": rngs}
        kwargs |= {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}
        self.q_proj = nnx.Linear(d_model, query, kernel_init=fan_in(), **kwargs)
        self.k_proj = nnx.Linear(d_model, kv, kernel_init=fan_in(), **kwargs)
        self.v_proj = nnx.Linear(d_model, kv, kernel_init=fan_in(), **kwargs)
        self.o_proj = nnx.Linear(query, d_model, kernel_init=fan_in(out_scale), **kwargs)

    def __call__(
        self, x: Float[Array, "B L D"], cache: Cache | None = None
    ) -> tuple[Float[Array, "B L D"], Cache | None]:
        """Attends within ``x``, or, with a cache, also to the tokens it holds.

        Returns:
          The output and the cache with the new tokens appended (None if none was given).
        """
        start = jnp.zeros((), jnp.int32) if cache is None else cache.length
        q, k, v = self._project(x, start)
        if cache is None:
            out = causal_attention(q, k, v)
        else:
            cache = cache.append(k, v)
            k, v = cache.read()
            position = start + jnp.arange(x.shape[1], dtype=jnp.int32)
            mask = jnp.arange(k.shape[1], dtype=jnp.int32)[None, :] <= position[:, None]
            out = masked_attention(q, k.astype(q.dtype), v.astype(q.dtype), mask)
        return self.o_proj(out.reshape(x.shape[0] * x.shape[1], out.shape[2] * out.shape[3])).reshape(x.shape), cache

    def _project(self, x: Float[Array, "B L D"], start):
        """Queries, keys and values by head, the first two turned by their positions from ``start`` on."""
        config = self.config
        n, m, h = config.num_heads, config.num_kv_heads, config.head_dim
        heads = self._heads(x).reshape(*x.shape[:2], n + 2 * m, h)
        cos, sin = rope_angles(start + jnp.arange(x.shape[1], dtype=jnp.int32), h, config.rope_theta)
        turned = apply_rope(heads[:, :, : n + m], cos, sin)
        return turned[:, :, :n], turned[:, :, n:], heads[:, :, n + m :]

    def _heads(self, x: Float[Array, "B L D"]):
        """Queries, keys and values side by side, from ``[T, D]``: the gradient of a kernel is then one plain matmul.

        For many tokens the three kernels are joined first: one matmul, and one gradient of ``x`` instead of three to be
        added. For the one token of decoding, or two with a draft, copying the kernels would cost more than it saves; and
        layers of another kind, put in the place of these, are simply called.
        """
        layers = (self.q_proj, self.k_proj, self.v_proj)
        flat = x.reshape(-1, x.shape[-1])
        if x.shape[1] <= 2 or not all(isinstance(layer, nnx.Linear) for layer in layers):
            return jnp.concatenate([layer(flat) for layer in layers], axis=-1)
        kernels = [layer.kernel[...].astype(x.dtype) for layer in layers]
        return flat @ jnp.concatenate(kernels, axis=-1)
