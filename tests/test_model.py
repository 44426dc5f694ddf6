"""The whole model: against loops, causality, independence of batch mates, and the cache."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe import MoETransformer, UserError
from minimoe.moe import Routing

B, L = 2, 12


@nnx.jit
def forward(model, tokens):
    return model(tokens)


@jax.jit  # not nnx.jit, which fills pytree arguments with None on the way in: the shape checker objects to such a cache
def extend(model, tokens, cache):
    return model.extend(tokens, cache)


@pytest.fixture(scope="module")
def tokens(tiny_config) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(tiny_config.vocab_size, size=(B, L)), jnp.int32)


def flat_weights(model) -> dict[str, np.ndarray]:
    return {"/".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(model))}


@pytest.mark.parametrize("kind", ["sparse", "dense", "untied"])
def test_logits_match_the_loops(kind, tiny_config, tokens):
    changes = {"sparse": {}, "dense": {"moe": None, "d_ff": 10}, "untied": {"tie_embeddings": False}}[kind]
    config = dataclasses.replace(tiny_config, **changes)
    model = MoETransformer(config, rngs=nnx.Rngs(1))
    logits, routing = forward(model, tokens)
    assert (logits.shape, logits.dtype) == ((B, L, config.vocab_size), jnp.float32)
    assert len(routing) == (0 if kind == "dense" else config.num_layers)
    want = [oracles.transformer(flat_weights(model), row, config) for row in tokens]
    np.testing.assert_allclose(logits, want, rtol=1e-3, atol=1e-5)
    assert (model.head is None) == config.tie_embeddings


def test_the_past_does_not_see_the_future(tiny_model, tokens):
    """Through attention and through the routers."""
    before, _ = forward(tiny_model, tokens)
    for t in (1, 6, 11):
        changed = tokens.at[:, t].set((tokens[:, t] + 1) % 19)
        after, _ = forward(tiny_model, changed)
        np.testing.assert_allclose(after[:, :t], before[:, :t], rtol=1e-4, atol=1e-5)
        assert np.abs(np.asarray(after - before)[:, t]).max() > 1e-2


def test_a_sequence_does_not_see_its_batch_mates(tiny_model, tokens):
    """Even one whose tokens all crowd into the same experts."""
    alone, _ = forward(tiny_model, jnp.concatenate([tokens[:1], tokens[:1]]))
    crowded, _ = forward(tiny_model, jnp.concatenate([tokens[:1], jnp.zeros((1, L), jnp.int32)]))
    np.testing.assert_allclose(crowded[0], alone[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone[1], alone[0], rtol=1e-4, atol=1e-5)


def test_routing_is_one_record_a_layer(tiny_model, tokens):
    _, routing = forward(tiny_model, tokens)
    assert all(isinstance(record, Routing) for record in routing)
    assert [float(record.load.sum()) for record in routing] == [B * L * 2] * 2


def test_padding_does_not_count(tiny_model, tokens):
    where = jnp.asarray(np.arange(L)[None] < np.array([[5], [9]]))
    logits, routing = nnx.jit(lambda model, tokens, where: model(tokens, where=where))(tiny_model, tokens, where)
    full, _ = forward(tiny_model, tokens)
    assert [float(record.load.sum()) for record in routing] == [(5 + 9) * 2] * 2
    np.testing.assert_allclose(logits[where], full[where], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunks", [(12,), (6, 6), (6, *[1] * 6)], ids=str)
def test_extend_equals_one_call(chunks, tiny_model, tokens):
    """Prefill at once, in chunks, and token by token; the cache has room left over."""
    want, _ = forward(tiny_model, tokens)
    cache, start, found = tiny_model.init_cache(B, 15), 0, []
    for size in chunks:
        logits, routing, cache = extend(tiny_model, tokens[:, start : start + size], cache)
        found.append(logits)
        start += size
        assert float(routing[0].load.sum()) == B * size * 2
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), want, rtol=1e-3, atol=1e-4)
    assert [int(c.length) for c in cache] == [L, L]


def test_dropout_needs_rngs(tiny_config, tokens):
    config = dataclasses.replace(tiny_config, dropout=0.5)
    model = MoETransformer(config, rngs=nnx.Rngs(3))
    run = jax.jit(lambda state, tokens, key: nnx.merge(graphdef, state)(tokens, rngs=nnx.Rngs(dropout=key))[0])
    graphdef, state = nnx.split(model)
    drops = [np.asarray(run(state, tokens, jax.random.key(seed))) for seed in (0, 0, 1)]
    plain = forward(model, tokens)[0]
    np.testing.assert_array_equal(drops[0], drops[1])
    assert np.abs(drops[0] - drops[2]).max() > 1e-4
    assert np.abs(drops[0] - np.asarray(plain)).max() > 1e-4
    without = MoETransformer(dataclasses.replace(config, dropout=0.0), rngs=nnx.Rngs(3))
    np.testing.assert_array_equal(forward(without, tokens)[0], plain)


def test_one_seed_decides_everything(tiny_config):
    first, again, other = (flat_weights(MoETransformer(tiny_config, rngs=nnx.Rngs(s))) for s in (5, 5, 6))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["embed/embedding"] != other["embed/embedding"]).any()


def test_too_long_a_sequence_is_refused(tiny_model):
    with pytest.raises(UserError, match="25 tokens do not fit in context_length=24; shorten the text"):
        tiny_model(jnp.zeros((1, 25), jnp.int32))
    with pytest.raises(UserError, match="25 tokens do not fit"):
        tiny_model.init_cache(1, 25)
