"""Grouped-query attention with rotary positions. Axes as in `minimoe.attention.core`; D is the model width."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from minimoe.attention.cache import Cache
from minimoe.attention.core import causal_attention, masked_attention
from minimoe.config import ModelConfig
from minimoe.layers import apply_rope, fan_in, rope_angles


class GroupedQueryAttention(nnx.Module):
    """N query heads share M key/value heads; no biases.

    Kernels: ``q_proj [D, N*H]``, ``k_proj`` and ``v_proj [D, M*H]``, ``o_proj [N*H, D]``.
    """

    def __init__(self, config: ModelConfig, *, out_scale: float = 1.0, rngs: nnx.Rngs):
        self.config = config
        d, h = config.d_model, config.head_dim
        kwargs: dict[str, Any] = {"use_bias": False}
        kwargs |= {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}
        self.q_proj = nnx.Linear(d, config.num_heads * h, kernel_init=fan_in(), rngs=rngs, **kwargs)
        self.k_proj = nnx.Linear(d, config.num_kv_heads * h, kernel_init=fan_in(), rngs=rngs, **kwargs)
        self.v_proj = nnx.Linear(d, config.num_kv_heads * h, kernel_init=fan_in(), rngs=rngs, **kwargs)
        self.o_proj = nnx.Linear(config.num_heads * h, d, kernel_init=fan_in(out_scale), rngs=rngs, **kwargs)

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
        return self.o_proj(out.reshape(*x.shape[:2], -1)), cache

    def _project(self, x: Float[Array, "B L D"], start):
        """Queries, keys and values by head, the first two turned by their positions from ``start`` on."""
        config = self.config
        batch, length, _ = x.shape
        q = self.q_proj(x).reshape(batch, length, config.num_heads, config.head_dim)
        k = self.k_proj(x).reshape(batch, length, config.num_kv_heads, config.head_dim)
        v = self.v_proj(x).reshape(batch, length, config.num_kv_heads, config.head_dim)
        cos, sin = rope_angles(start + jnp.arange(length, dtype=jnp.int32), config.head_dim, config.rope_theta)
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v
