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
        return self.o_proj(out.reshape(x.shape[0] * x.shape[1], -1)).reshape(x.shape), cache

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
        added. For the single token of decoding, copying the kernels would cost more than it saves; and layers of
        another kind, put in the place of these, are simply called.
        """
        layers = (self.q_proj, self.k_proj, self.v_proj)
        flat = x.reshape(-1, x.shape[-1])
        if x.shape[1] == 1 or not all(isinstance(layer, nnx.Linear) for layer in layers):
            return jnp.concatenate([layer(flat) for layer in layers], axis=-1)
        kernels = [layer.kernel[...].astype(x.dtype) for layer in layers]
        return flat @ jnp.concatenate(kernels, axis=-1)
