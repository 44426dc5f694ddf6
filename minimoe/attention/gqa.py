"""Grouped-query attention with rotary positions: the module. Its sizes and costs are in `minimoe.attention.gqa_config`.

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

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from minimoe.attention.cache import Cache
from minimoe.attention.core import causal_attention, masked_attention
from minimoe.attention.gqa_config import GroupedQueryConfig
from minimoe.layers import RMSNorm, apply_rope, fan_in, rope_angles
from minimoe.layers.sizes import surely_at_most


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
        if surely_at_most(x.shape[1], 2) or not all(isinstance(layer, nnx.Linear) for layer in layers):
            return jnp.concatenate([layer(flat) for layer in layers], axis=-1)
        kernels = [layer.kernel[...].astype(x.dtype) for layer in layers]
        joined = flat @ jnp.concatenate(kernels, axis=-1)
        if not self.config.bias:
            return joined
        return joined + jnp.concatenate([layer.bias[...].astype(x.dtype) for layer in layers])[None, :]  # type: ignore[index]
