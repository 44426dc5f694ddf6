"""Causal grouped-query attention: against loops, against JAX's own, and by laws."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe.attention import Cache, GroupedQueryAttention, KVCache, causal_attention, masked_attention
from minimoe.attention.core import query_blocks

# (L, N, M): one block of queries, odd lengths, and enough for several blocks of unequal size; at 650 there are five
SIZES = [(1, 2, 2), (7, 2, 1), (33, 4, 2), (64, 4, 1), (250, 2, 1), (650, 2, 1)]


def qkv(length: int, heads: int, kv_heads: int) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    shapes = [(2, length, heads, 4), (2, length, kv_heads, 4), (2, length, kv_heads, 4)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def reference(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


@jax.jit
def both(q, k, v, cotangent):
    """Value and gradients of ours and of JAX's."""

    def pulled(attend):
        out, pull = jax.vjp(attend, q, k, v)
        return out, pull(cotangent)

    with jax.numpy_rank_promotion("allow"):  # JAX's own masks promote
        theirs = pulled(reference)
    return pulled(causal_attention), theirs


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_value_and_gradients(size):
    args = qkv(*size)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=args[0].shape), jnp.float32)
    (out, grads), (their_out, their_grads) = both(*args, cotangent)
    np.testing.assert_allclose(out, oracles.attention(*args), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out, their_out, rtol=1e-4, atol=1e-5)
    for a, b in zip(grads, their_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


def test_the_past_does_not_see_the_future():
    """Across the edges of the query blocks too: length 70 is cut at 35."""
    q, k, v = qkv(70, 2, 1)
    run = jax.jit(causal_attention)
    before = np.asarray(run(q, k, v))
    for t in (1, 34, 35, 69):
        after = np.asarray(run(q.at[:, t].add(1.0), k.at[:, t].add(1.0), v.at[:, t].add(1.0)))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.abs(after[:, t:] - before[:, t:]).max() > 1e-3


def test_blocks_of_queries():
    found = {length: query_blocks(length) for length in (1, 31, 63, 64, 128, 256, 639, 640, 2048, 100_000)}
    assert found == {1: 1, 31: 1, 63: 1, 64: 2, 128: 4, 256: 4, 639: 4, 640: 5, 2048: 16, 100_000: 16}


def test_masked_attention_with_a_causal_mask_is_causal_attention():
    q, k, v = qkv(33, 4, 2)
    mask = jnp.asarray(np.tri(33, dtype=bool))
    np.testing.assert_allclose(masked_attention(q, k, v, mask), causal_attention(q, k, v), rtol=1e-5, atol=1e-6)


def test_cache_keeps_what_is_appended():
    _, k, v = qkv(7, 2, 1)
    cache = KVCache.zeros(2, 10, 1, 4)
    for start, end in ((0, 4), (4, 5), (5, 7)):
        cache = cache.append(k[:, start:end], v[:, start:end])
    held_k, held_v = cache.read()
    assert int(cache.length) == 7
    assert isinstance(cache, Cache)
    np.testing.assert_array_equal(held_k[:, :7], k)
    np.testing.assert_array_equal(held_v[:, :7], v)
    np.testing.assert_array_equal(held_k[:, 7:], 0.0)


def test_layer_with_and_without_cache(tiny_config):
    config = dataclasses.replace(tiny_config.attention, rope_theta=50.0)
    layer = GroupedQueryAttention(config, tiny_config.d_model, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    run = jax.jit(lambda layer, x, cache: layer(x, cache))
    whole, none = run(layer, x, None)
    assert none is None
    first, cache = run(layer, x[:, :3], KVCache.zeros(2, 9, 2, 4))
    rest, cache = run(layer, x[:, 3:], cache)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), whole, rtol=1e-4, atol=1e-6)
    assert int(cache.length) == 6
