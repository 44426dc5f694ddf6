"""Causal grouped-query attention on arrays.

Axes: B batch, L queries, S keys, N query heads, M key/value heads, G = N/M heads a group, H head width, U value width.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

QUERY_BLOCKS = 4
SMALLEST_BLOCK = 32


def masked_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B S M H"],
    v: Float[Array, "B S M U"],
    mask: Bool[Array, "L S"],
) -> Float[Array, "B L N U"]:
    """Softmax attention where ``mask`` says which keys each query sees; softmax in float32, scale ``1/sqrt(H)``.

    Query head n reads key/value head ``n // (N/M)`` (Ainslie et al., `GQA <https://arxiv.org/abs/2305.13245>`_).
    """
    q, k, v = _heads_first(q, k, v)
    return _queries_first(_attend(q, k, v, mask))


def causal_attention(
    q: Float[Array, "B L N H"], k: Float[Array, "B L M H"], v: Float[Array, "B L M U"]
) -> Float[Array, "B L N U"]:
    """Every query sees its own position and those before it.

    The queries are cut in up to `QUERY_BLOCKS` blocks, each of which multiplies only the keys up to its own end: 5/8
    of the full square instead of all of it. On CPUs that beats `jax.nn.dot_product_attention`, which masks the whole
    square (``minimoe bench attention`` prints both).
    """
    length = q.shape[1]
    q, k, v = _heads_first(q, k, v)
    blocks = 1 if jax.export.is_symbolic_dim(length) else max(1, min(QUERY_BLOCKS, length // SMALLEST_BLOCK))
    edges = [length * i // blocks for i in range(blocks + 1)]
    outs = []
    for start, end in itertools.pairwise(edges):
        mask = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
        outs.append(_attend(q[:, :, :, start:end], k[:, :, :end], v[:, :, :end], mask))
    return _queries_first(jnp.concatenate(outs, axis=3))


def _heads_first(q, k, v):
    """``[B, M, G, L, H]`` queries (G = N/M heads share a key) and ``[B, M, S, H]`` keys and values."""
    batch, length, heads, width = q.shape
    q = q.reshape(batch, length, k.shape[2], heads // k.shape[2], width)
    return q.transpose(0, 2, 3, 1, 4), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


def _queries_first(out: Float[Array, "B M G L H"]) -> Float[Array, "B L N H"]:
    batch, kv_heads, group, length, width = out.shape
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * group, width)


def _attend(
    q: Float[Array, "B M G L H"],
    k: Float[Array, "B M S H"],
    v: Float[Array, "B M S U"],
    mask: Bool[Array, "L S"],
) -> Float[Array, "B M G L U"]:
    """The group shares its keys, so its queries are stacked into one matrix ``[G*L, H]`` a key/value head."""
    batch, kv_heads, group, length, width = q.shape
    rows = q.reshape(batch, kv_heads, group * length, width)
    scores = jnp.einsum("bmqh,bmsh->bmqs", rows, k, preferred_element_type=jnp.float32) * width**-0.5
    scores = scores.reshape(batch, kv_heads, group, length, k.shape[2])
    weights = jax.nn.softmax(jnp.where(mask[None, None, None], scores, -jnp.inf), axis=-1).astype(v.dtype)
    out = jnp.einsum("bmqs,bmsh->bmqh", weights.reshape(batch, kv_heads, group * length, k.shape[2]), v)
    return out.reshape(batch, kv_heads, group, length, v.shape[-1])
