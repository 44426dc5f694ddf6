"""What a model does with ids it does not know, caches that are full and batches that compete: never a quiet answer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe import MoEConfig, MoETransformer, UserError, generate
from minimoe.attention import (
    CompressedSparseConfig,
    HeavilyCompressedConfig,
    MultiHeadLatentConfig,
    SlidingWindowConfig,
)
from minimoe.data import Document, load_tokenizer
from minimoe.inference import continue_prompts
from minimoe.layers import HyperConnectionConfig
from minimoe.moe import MoELayer, depends_on_batch, select_hash, without_drops
from minimoe.quant import kv_cache, quantize_model
from minimoe.training import evaluate

V = 19
GOOD = np.array([[1, 2, 3, 4]])


@pytest.fixture(scope="module")
def hash_model(tiny_config):
    config = tiny_config.replace_moe(select="hash", hash_vocab_size=V, score="softmax")
    return MoETransformer(config, rngs=nnx.Rngs(3))


@pytest.fixture(scope="module", params=["float", "hash", "int8", "v4"])
def model(request, tiny_model, hash_model):
    if request.param in ("float", "hash"):
        return tiny_model if request.param == "float" else hash_model
    return quantize_model(tiny_model, request.param)


@pytest.fixture(scope="module")
def jitted(model):
    """Compiled once for all ids of a shape and dtype."""
    return jax.jit(lambda tokens: model(tokens)[0])


@pytest.mark.parametrize("wrong", [V, -1, 2**40])
def test_an_unknown_id_is_named_where_its_value_is_known(model, wrong):
    tokens = np.array([[1, 2, wrong, 4]])
    with pytest.raises(UserError, match=rf"tokens\[0, 2\] is {wrong}, outside the vocabulary 0\.\.18"):
        model(tokens)
    with pytest.raises(UserError, match=rf"is {wrong}, outside"):
        model.extend(tokens, model.init_cache(1, 8))
    with pytest.raises(UserError, match=rf"is {wrong}, outside"):
        generate(model, tokens, 2)
    with pytest.raises(UserError, match=rf"prompt 1\[0\] is {wrong}, outside"):
        continue_prompts(model, [[1], [wrong]], 2, stop_token=0)


@pytest.mark.parametrize("wrong", [V, -1, 2**30])
def test_under_jit_all_that_depends_on_it_is_nan_and_nothing_else(jitted, wrong):
    logits = np.asarray(jitted(jnp.array([[1, 2, 3, 4], [1, 2, wrong, 4]], jnp.int32)))
    assert np.isfinite(logits[0]).all()
    assert np.isfinite(logits[1, :2]).all()
    assert np.isnan(logits[1, 2:]).all()


@pytest.mark.parametrize("wrong", [V + 2**32, 1 + 2**32, -(2**32) + 1, 2**63 - 1, -(2**63)])
def test_a_wide_id_does_not_wrap_into_the_vocabulary(jitted, wrong):
    with jax.enable_x64(True):
        tokens = jnp.asarray(np.array([[1, 2, wrong, 4]]))
        assert tokens.dtype == jnp.int64
        logits = np.asarray(jitted(tokens))
    assert np.isfinite(logits[0, :2]).all()
    assert np.isnan(logits[0, 2:]).all()


def test_an_unsigned_id_above_int32_is_none_either(tiny_model):
    tokens = jnp.array([[1, 2**32 - 5, 3]], jnp.uint32)
    logits = np.asarray(jax.jit(lambda tokens: tiny_model(tokens)[0])(tokens))
    assert np.isnan(logits[0, 1:]).all()
    layer = MoELayer(MoEConfig(8, 4, 4, 2, select="hash", hash_vocab_size=V), rngs=nnx.Rngs(0))
    with jax.enable_x64(True):
        y, _ = jax.jit(lambda ids: layer(jnp.ones((2, 8), jnp.float32), tokens=ids))(jnp.asarray([1, 1 + 2**32]))
    assert np.isnan(np.asarray(y)).all(axis=1).tolist() == [False, True]


def test_ids_of_any_integer_dtype_and_lists_are_ids(model):
    want = np.asarray(model(jnp.asarray(GOOD, jnp.int32))[0])
    for tokens in (GOOD.astype(np.uint8), GOOD.astype(np.int64), GOOD.tolist()):
        np.testing.assert_array_equal(np.asarray(model(tokens)[0]), want)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([1, 2, 3], r"shape \(3,\); give"),
        ([[1.0, 2.0]], "dtype float64; give token ids as integers"),
        ([[True, False]], "dtype bool"),
        ([[1, 2], [3]], "unequal length; minimoe.inference.continue_prompts"),
        (np.zeros((1, 99), np.int32), "99 tokens do not fit in context_length=24"),
    ],
)
def test_what_is_no_batch_of_ids_is_told_so(tiny_model, tokens, words):
    with pytest.raises(UserError, match=words):
        tiny_model(tokens)


@pytest.mark.parametrize("kind", ["grouped_query", "latent", "sliding", "compressed_sparse", "heavily_compressed"])
def test_nothing_in_nothing_out(tiny_config, kind):
    """In V4's residual streams, and in as many tokens as make each query of CSA gather its entries."""
    shared = {"num_heads": 2, "head_dim": 6, "rope_dim": 2, "q_rank": 4, "window": 3, "out_groups": 2, "out_rank": 3}
    sparse = {"ratio": 2, "index_heads": 2, "index_dim": 4, "index_top_k": 1}
    attention = {
        "grouped_query": tiny_config.attention,
        "latent": MultiHeadLatentConfig(num_heads=2, nope_dim=4, rope_dim=2, v_dim=3, kv_rank=5),
        "sliding": SlidingWindowConfig(**shared),
        "compressed_sparse": CompressedSparseConfig(**shared, **sparse),
        "heavily_compressed": HeavilyCompressedConfig(**shared, ratio=4),
    }[kind]
    config = tiny_config.replace(num_layers=1, attention=attention, residual=HyperConnectionConfig(2))
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    for shape in ((2, 0), (0, 20)):
        tokens = jnp.zeros(shape, jnp.int32)
        found = jax.eval_shape(
            lambda ids: (model(ids)[0], model.extend(ids, model.init_cache(len(ids), 24))[0]), tokens
        )
        assert [logits.shape for logits in found] == [(*shape, V)] * 2
    assert model(np.zeros((2, 0), np.int32))[0].shape == (2, 0, V)


def test_a_layer_with_a_hash_table_alone():
    layer = MoELayer(MoEConfig(8, 4, 4, 2, select="hash", hash_vocab_size=V), rngs=nnx.Rngs(0))
    x, ids = jnp.ones((3, 8)), jnp.array([1, V, 2])
    with pytest.raises(UserError, match=r"tokens\[1\] is 19"):
        layer(x, tokens=ids)
    y, _ = jax.jit(lambda ids: layer(x, tokens=ids))(ids)
    assert np.isnan(np.asarray(y)).all(axis=1).tolist() == [False, True, False]
    with pytest.raises(UserError, match="outside"):
        select_hash(layer.router.table[...], ids)


# Caches.


@pytest.fixture(scope="module")
def one_layer(tiny_config):
    return MoETransformer(tiny_config.replace(num_layers=1).replace_moe(dispatch="dense"), rngs=nnx.Rngs(3))


@pytest.mark.parametrize("kind", [None, "bf16", "fp8", "int8", "int4"])
def test_a_full_cache_takes_no_more(one_layer, kind):
    make = () if kind is None else (kv_cache(kind),)
    cache = one_layer.init_cache(1, 8, *make)
    tokens = jnp.asarray(np.arange(10)[None] % V, jnp.int32)
    extend = jax.jit(lambda tokens, cache: one_layer.extend(tokens, cache)[::2])
    for place in (0, 2, 4):
        _, cache = extend(tokens[:, place : place + 2], cache)
    with pytest.raises(UserError, match="holds 6 of 8 tokens and cannot take 4 more"):
        one_layer.extend(tokens[:, :4], cache)
    logits, over = extend(tokens[:, 6:], cache)
    assert np.isnan(np.asarray(logits)).all()
    assert np.isnan(np.asarray(extend(tokens[:, :2], over)[0])).all()  # and so it stays
    with pytest.raises(UserError, match="holds 10 of 8"):
        one_layer.extend(tokens[:, :1], over)
    last, full = extend(tokens[:, 6:8], cache)  # to the last place
    assert np.isfinite(np.asarray(last)).all()
    assert int(full[0].length) == 8


# Batch-mates.


def documents(texts):
    return [Document("prose", f"text-{i}", "val", text) for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    "changes", [{"dispatch": "capacity", "capacity_factor": 0.5}, {"select": "expert_choice", "capacity_factor": 0.5}]
)
def test_a_score_does_not_depend_on_the_neighbours(tiny_config, changes):
    tokenizer = load_tokenizer("byte")
    config = tiny_config.replace(vocab_size=tokenizer.vocab_size).replace_moe(**changes)
    assert depends_on_batch(config.moe)
    model = MoETransformer(config, rngs=nnx.Rngs(3))
    first, second = "the quick brown fox jumps over the lazy dog " * 2, "zzzz zzzz 0000 " * 9
    alone = evaluate(model, documents([first]), tokenizer).per_domain["prose"]
    pairs = [[first, second], [second, first]]
    other = evaluate(model, documents([second]), tokenizer)
    mine = len(first.encode())
    for texts in pairs:
        both = evaluate(model, documents(texts), tokenizer)
        together = alone * mine + other.per_domain["prose"] * len(second.encode())
        np.testing.assert_allclose(both.per_domain["prose"] * both.num_bytes, together, rtol=1e-6)


def test_generation_drops_nothing_and_rows_do_not_meet(tiny_config):
    config = tiny_config.replace_moe(dispatch="capacity", capacity_factor=0.3)
    model = MoETransformer(config, rngs=nnx.Rngs(3))
    nnx.update(model, jax.tree.map(lambda p: p * 3, nnx.state(model, nnx.Param)))
    prompts = np.random.default_rng(0).integers(V, size=(5, 6))
    together = np.asarray(generate(model, prompts, 6, temperature=0))
    for row, prompt in zip(together, prompts, strict=True):
        np.testing.assert_array_equal(row, np.asarray(generate(model, prompt[None], 6, temperature=0))[0])
    new = continue_prompts(model, prompts.tolist(), 6, stop_token=0, temperature=0, batch_size=np.int64(2))
    for row, words in zip(together, new, strict=True):
        assert row[6 : 6 + len(words)].tolist() == words
    exact = MoETransformer(tiny_config, rngs=nnx.Rngs(3))
    nnx.update(exact, nnx.state(model))
    np.testing.assert_array_equal(together, np.asarray(generate(exact, prompts, 6, temperature=0)))
    assert model.config.moe.dispatch == "capacity"
    assert without_drops(exact) is exact


def test_experts_that_choose_cannot_generate(tiny_config):
    model = MoETransformer(tiny_config.replace_moe(select="expert_choice"), rngs=nnx.Rngs(0))
    for call in (lambda: generate(model, GOOD, 2), lambda: continue_prompts(model, [[1]], 2, stop_token=0)):
        with pytest.raises(UserError, match="cannot generate: what a token gets"):
            call()


# Plain values from NumPy and JAX.


def test_numbers_may_come_from_numpy_and_jax(tiny_model):
    want = np.asarray(generate(tiny_model, GOOD, 3, temperature=0.5, top_k=4, top_p=0.9, stop_token=1))
    got = generate(
        tiny_model,
        GOOD,
        np.int32(3),
        temperature=jnp.float32(0.5),
        top_k=jnp.int32(4),
        top_p=np.float64(0.9),
        stop_token=np.int64(1),
    )
    np.testing.assert_array_equal(np.asarray(got), want)
    new = continue_prompts(
        tiny_model,
        [np.array([1, 2])],
        np.int64(3),
        stop_token=np.uint8(0),
        temperature=jnp.float32(0),
        size=np.int64(9),
    )
    assert 1 <= len(new[0]) <= 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stop_token": V}, r"stop_token=19 must be a whole number in 0\.\.18"),
        ({"stop_token": 0, "batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ({"stop_token": 0, "temperature": float("nan")}, "temperature=nan must be a number"),
        ({"stop_token": 0, "max_new_tokens": 2.5}, "max_new_tokens=2.5 must be a whole number"),
        (
            {"stop_token": 0, "size": 25},
            r"size=25 must be a whole number in 1\.\.24; that is the model.s context_length",
        ),
    ],
)
def test_settings_of_continue_prompts_that_are_refused(tiny_model, options, words):
    options = {"max_new_tokens": 2} | options
    with pytest.raises(UserError, match=words):
        continue_prompts(tiny_model, [[1, 2]], options.pop("max_new_tokens"), **options)


# Parameters in bfloat16.


def test_a_bfloat16_model_runs_where_nothing_is_promoted(tiny_config):
    for stored in ("float32", "bfloat16"):
        config = tiny_config.replace(dtype="bfloat16", param_dtype=stored)
        config = config.replace_moe(dtype="bfloat16", param_dtype=stored)
        logits = jax.jit(lambda model: model(jnp.asarray(GOOD, jnp.int32))[0])(MoETransformer(config, rngs=nnx.Rngs(0)))
        assert logits.dtype == jnp.float32
        assert np.isfinite(np.asarray(logits)).all()


def test_parameters_in_bfloat16_take_every_step(tiny_config):
    from minimoe.training import Recipe
    from minimoe.training.optim import optimizer_for
    from minimoe.training.step import train_step

    recipe = Recipe(steps=40, warmup_steps=2, learning_rate=1e-3, batch_size=2, weight_decay=0.0)
    tokens = jnp.asarray(np.random.default_rng(0).integers(V, size=(2, 13)), jnp.int32)
    losses = {}
    for stored in ("float32", "bfloat16"):
        config = tiny_config.replace(param_dtype=stored).replace_moe(param_dtype=stored, dispatch="dense")
        model = MoETransformer(config, rngs=nnx.Rngs(0))
        optimizer = optimizer_for(model, recipe)
        before = np.asarray(model.layers[0].attention_norm.scale[...], np.float32).copy()
        everywhere = jnp.ones((2, 12), bool)
        for step in range(40):
            metrics = train_step(
                model, optimizer, tokens[:, :-1], tokens[:, 1:], everywhere, jax.random.key(step), recipe=recipe
            )
            losses.setdefault(stored, []).append(float(metrics.loss))
        scale = np.asarray(model.layers[0].attention_norm.scale[...], np.float32)
        assert (scale != before).mean() > 0.5  # steps of 0.001 would all be rounded to nothing
        assert {p.dtype.name for p in jax.tree.leaves(nnx.state(model, nnx.Param))} <= {stored, "float32"}
    assert losses["float32"][0] - losses["float32"][-1] > 0.1
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], atol=0.05)
    assert dataclasses.is_dataclass(recipe)
