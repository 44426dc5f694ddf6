"""Causal grouped-query attention on arrays.

Axes: B batch, L queries, S keys, N query heads, M key/value heads, G = N/M heads a group, H head width, U value width.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

FEW_BLOCKS, MANY_BLOCKS = 4, 16  # of queries; each costs time to compile
SMALLEST_BLOCK, LONG_BLOCK = 32, 128


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

    The queries are cut in blocks (`query_blocks`), each of which multiplies only the keys up to its own end: of four
    blocks 5/8 of the full square, of sixteen 17/32. On CPUs that beats `jax.nn.dot_product_attention`, which masks the
    whole square (``minimoe bench attention`` prints both).
    """
    length = q.shape[1]
    q, k, v = _heads_first(q, k, v)
    blocks = 1 if jax.export.is_symbolic_dim(length) else query_blocks(length)
    edges = [length * i // blocks for i in range(blocks + 1)]
    outs = []
    for start, end in itertools.pairwise(edges):
        mask = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
        outs.append(_attend(q[:, :, :, start:end], k[:, :, :end], v[:, :, :end], mask))
    return _queries_first(jnp.concatenate(outs, axis=3))


def query_blocks(length: int) -> int:
    """Four blocks of 32 queries or more; in a long text more blocks, up to sixteen, of 128 or more."""
    return max(1, min(FEW_BLOCKS, length // SMALLEST_BLOCK), min(MANY_BLOCKS, length // LONG_BLOCK))


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
    """The group shares its keys, so its queries are stacked into one matrix ``[G*L, H]`` a key/value head.

    ``o = (sum_s e^(z_s - max z) v_s) / sum_s e^(z_s - max z)``: the H numbers of an output are divided, not its S weights.
    Backward that saves two walks over the S weights, the largest arrays here; the maximum has no part in the gradient.
    """
    batch, kv_heads, group, length, width = q.shape
    rows = q.reshape(batch, kv_heads, group * length, width)
    scores = jnp.einsum("bmqh,bmsh->bmqs", rows, k, preferred_element_type=jnp.float32) * width**-0.5
    scores = scores.reshape(batch, kv_heads, group, length, k.shape[2])
    scores = jnp.where(mask[None, None, None], scores, -jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True, initial=-jnp.inf)))
    stacked = weights.reshape(batch, kv_heads, group * length, k.shape[2]).astype(v.dtype)
    out = jnp.einsum("bmqs,bmsh->bmqh", stacked, v, preferred_element_type=jnp.float32)
    out = out.reshape(batch, kv_heads, group, length, v.shape[-1]) / weights.sum(axis=-1, keepdims=True)
    return out.astype(v.dtype)
