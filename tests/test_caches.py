"""Key/value caches that are full, too small or made for something else: an error, or NaN under jit, in every kind."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from minimoe import UserError
from minimoe.attention import KVCache
from minimoe.attention.cache import checked_caches
from minimoe.quant import CACHES, kv_cache

M, H, V = 2, 8, 19
KINDS = ["float", *CACHES]


def make(kind):
    return KVCache.zeros if kind == "float" else kv_cache(kind)


def rows(length, batch=1, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, length, M, H))


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_cache_refuses_or_is_nan_from_then_on(kind):
    cache = make(kind)(1, 8, M, H).append(rows(6), rows(6))
    for tokens, words in (
        (4, "holds 6 of 8 tokens and cannot take 4 more"),
        (9, "has room for 8 tokens and cannot take 9"),
    ):
        with pytest.raises(UserError, match=f"the cache {words}; give init_cache a larger size"):
            cache.append(rows(tokens), rows(tokens))
    append = jax.jit(lambda cache, k: cache.append(k, k))
    with pytest.raises(UserError, match="has room for 8 tokens and cannot take 9"):
        append(cache, rows(9))
    over = append(cache, rows(4))
    assert np.isnan(np.asarray(over.read()[1], np.float32)).any()
    assert int(over.length) == 10
    again = append(over, rows(1))
    assert np.isnan(np.asarray(again.read()[1], np.float32)).any()
    with pytest.raises(UserError, match="holds 10 of 8"):
        over.append(rows(1), rows(1))
    full = append(cache, rows(2))
    assert np.isfinite(np.asarray(full.read()[1], np.float32)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_attention_called_directly_does_the_same(tiny_model, tiny_config, kind):
    layer, sizes = tiny_model.layers[0].attention, tiny_config.attention
    x = jax.random.normal(jax.random.key(1), (2, 6, tiny_config.d_model))
    empty = make(kind)(2, 8, sizes.num_kv_heads, sizes.head_dim)
    _, cache = layer(x, empty)
    with pytest.raises(UserError, match="holds 6 of 8 tokens and cannot take 6 more"):
        layer(x, cache)
    run = jax.jit(lambda x, cache: layer(x, cache))
    y, over = run(x, cache)
    assert np.isnan(np.asarray(y)).all()
    assert np.isnan(np.asarray(run(x[:, :1], over)[0])).all()
    y, _ = run(x[:, :2], cache)
    assert np.isfinite(np.asarray(y)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_for_something_else_is_named(kind):
    cache = make(kind)(2, 8, M, H)
    with pytest.raises(
        UserError, match="the cache holds 2 sequences, but 3 are to be added to; give init_cache the same"
    ):
        cache.append(rows(1, batch=3), rows(1, batch=3))
    narrow = rows(1, batch=2)[:, :, :1]
    with pytest.raises(UserError, match=r"made for heads \[2, 8\], not for keys \[1, 8\].*; make it with this model's"):
        jax.jit(lambda cache, k: cache.append(k, k))(cache, narrow)


def test_extend_names_what_does_not_fit(tiny_model):
    tokens = np.arange(10)[None] % V
    cache = tiny_model.init_cache(1, 8)
    extend = jax.jit(lambda tokens, cache: tiny_model.extend(tokens, cache)[0])
    for run in (lambda *args: tiny_model.extend(*args), extend):
        with pytest.raises(UserError, match="the cache has room for 8 tokens and cannot take 10; give init_cache"):
            run(tokens, cache)
        with pytest.raises(UserError, match="the cache holds 1 sequences, but 2 are to be added to"):
            run(tokens[:, :3].repeat(2, axis=0), cache)
        layers = len(tiny_model.layers)
        with pytest.raises(
            UserError, match=f"cache holds {layers - 1} caches, but the model has {layers} layers; give what"
        ):
            run(tokens[:, :3], cache[1:])


def test_routing_is_no_cache(tiny_model):
    """It stands beside the cache in what extend returns. The suite's own check of types would speak first in extend."""
    layers = len(tiny_model.layers)
    routing, cache = tiny_model.extend(np.arange(3)[None], tiny_model.init_cache(1, 8))[1:]
    assert checked_caches(cache, layers) == list(cache)
    for wrong, name in (((*cache[1:], routing[0]), "Routing"), (({},) * layers, "dict")):
        with pytest.raises(UserError, match=f"cache holds a {name}, which is no cache; give the third"):
            checked_caches(wrong, layers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("batch", "size", "words"),
    [
        (1, -1, "size=-1 must be a whole"),
        (1, 2.5, r"size=2.5"),
        (-2, 4, "batch=-2"),
        (1.5, 4, "batch=1.5"),
        (1, "8", "size='8'"),
    ],
)
def test_impossible_sizes_are_named(tiny_model, kind, batch, size, words):
    with pytest.raises(UserError, match=f"init_cache: {words}"):
        tiny_model.init_cache(batch, size, make(kind))
    with pytest.raises(UserError, match=f"init_cache: {words}"):
        make(kind)(batch, size, M, H)


def test_sizes_may_be_numpy_integers(tiny_model):
    cache = tiny_model.init_cache(np.int64(2), np.int32(8))
    assert cache[0].k.shape[:2] == (2, 8)
