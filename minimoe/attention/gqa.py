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
from minimoe.checks import flag_fields, number_fields, require, whole_fields
from minimoe.layers import RMSNorm, apply_rope, fan_in, rope_angles


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
        return 2 * self.num_kv_heads * self.head_dim * jnp.dtype(dtype).itemsize

    def cache_parts(self, context: int, dtype: Any) -> dict[str, int]:
        """Bytes that one sequence of ``context`` tokens keeps in one layer: entries alone."""
        return {"entries": self.cache_bytes(context, dtype)}

    def cache_bytes(self, context: int, dtype: Any) -> int:
        """Bytes that one sequence of ``context`` tokens keeps in one layer."""
        return context * self.cache_bytes_per_token(dtype)

    def flops_per_token(self, d_model: int, context: int) -> float:
        """Two a weight, and ``4 * N * H`` an attended position, of which a token sees ``(context + 1) / 2`` on average."""
        return 2 * self._matrices(d_model) + 4 * self.num_heads * self.head_dim * (context + 1) / 2


class GroupedQueryAttention(nnx.Module):
    """N query heads share M key/value heads.

    Kernels: ``q_proj [D, N*H]``, ``k_proj`` and ``v_proj [D, M*H]``, ``o_proj [N*H, D]``. The first three have biases
    with ``config.bias``. With ``config.qk_norm`` there are ``q_norm`` and ``k_norm``, of width H.

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
        kwargs: dict[str, Any] = {"rngs": rngs, "dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}
        inner = kwargs | {"use_bias": config.bias, "kernel_init": fan_in()}
        self.q_proj = nnx.Linear(d_model, query, **inner)
        self.k_proj = nnx.Linear(d_model, kv, **inner)
        self.v_proj = nnx.Linear(d_model, kv, **inner)
        self.o_proj = nnx.Linear(query, d_model, use_bias=False, kernel_init=fan_in(out_scale), **kwargs)
        norm = {"epsilon": config.norm_eps} | kwargs
        self.q_norm = nnx.data(RMSNorm(config.head_dim, **norm) if config.qk_norm else None)
        self.k_norm = nnx.data(RMSNorm(config.head_dim, **norm) if config.qk_norm else None)

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
        both = heads[:, :, : n + m]
        if config.qk_norm:
            both = jnp.concatenate([self.q_norm(both[:, :, :n]), self.k_norm(both[:, :, n:])], axis=2)
        p = config.turned
        cos, sin = rope_angles(start + jnp.arange(x.shape[1], dtype=jnp.int32), p, config.rope_theta)
        turned = apply_rope(both[..., :p], cos, sin)
        if p < h:
            turned = jnp.concatenate([turned, both[..., p:]], axis=-1)
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
        joined = flat @ jnp.concatenate(kernels, axis=-1)
        if not self.config.bias:
            return joined
        return joined + jnp.concatenate([layer.bias[...].astype(x.dtype) for layer in layers])[None, :]  # type: ignore[index]
