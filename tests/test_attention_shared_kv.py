"""DeepSeek-V4's three kinds of attention: decoding in pieces, what the state holds, counts, and models made of them."""

from __future__ import annotations

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minimoe
from minimoe import LayerConfig, ModelConfig, MoETransformer
from minimoe.attention import (
    Cache,
    CompressedSparseConfig,
    HeavilyCompressedConfig,
    KVCache,
    SlidingWindowConfig,
    YarnConfig,
)
from minimoe.attention.indexer import index_loss
from minimoe.attention.shared_kv_config import mean_visible
from minimoe.cost import count_params, forward_flops_per_token, kv_bytes_per_token
from minimoe.errors import UserError
from minimoe.quant import V4_CACHE, cache_bytes_per_token
from minimoe.training import Recipe, StepMetrics, make_optimizer, optimizer_for, train_step
from minimoe.training.loop import step_record

D, LENGTH = 8, 14
SIZES = {
    "num_heads": 4, "head_dim": 10, "rope_dim": 6, "q_rank": 5, "window": 3, "out_groups": 2, "out_rank": 3,
    "rope_theta": 300.0,
}  # fmt: skip
LONG = SIZES | {"yarn": YarnConfig(factor=4.0, original_length=40, beta_fast=4.0, beta_slow=0.5)}
CONFIGS = {
    config.kind: config
    for config in (
        SlidingWindowConfig(**SIZES),
        HeavilyCompressedConfig(**LONG, ratio=4),
        CompressedSparseConfig(**LONG, ratio=3, index_heads=3, index_dim=8, index_top_k=2),
    )
}
kinds = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
run = jax.jit(lambda layer, x, cache: layer(x, cache))


def made(config, length=LENGTH):
    """A layer whose sinks, norms and biases are not those of the start, and tokens."""
    layer = config.build(D, out_scale=1.0, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(0))
    for n, (path, value) in enumerate(nnx.to_flat_state(nnx.state(layer, nnx.Param))):
        if "kernel" not in path:
            value[...] += 0.5 * jax.random.normal(jax.random.key(n), value.shape)
    return layer, jax.random.normal(jax.random.key(1), (2, length, D))


def decoded(layer, x, chunks, size, make=KVCache.zeros):
    cache, outs, at = layer.config.init_cache(2, size, make, jnp.float32), [], 0
    for count in chunks:
        out, cache = run(layer, x[:, at : at + count], cache)
        outs.append(out)
        at += count
    return jnp.concatenate(outs, axis=1), cache


@pytest.mark.parametrize("chunks", [(1,) * LENGTH, (5, 1, 6, 2), (LENGTH,)], ids=["one by one", "irregular", "at once"])
@kinds
def test_decoding_in_pieces_is_the_full_forward(config, chunks):
    """Attention is causal, so the outputs of a longer text are those of every shorter one too."""
    layer, x = made(config)
    whole, none = run(layer, x, None)
    assert none is None
    pieces, cache = decoded(layer, x, chunks, LENGTH + 3)
    np.testing.assert_allclose(pieces, whole, rtol=1e-4, atol=1e-5)
    assert int(cache.length) == LENGTH
    assert isinstance(cache, Cache)


@kinds
def test_a_shorter_text_is_the_beginning_of_a_longer_one(config):
    layer, x = made(config)
    whole = run(layer, x, None)[0]
    for length in (1, 2, 7):
        np.testing.assert_allclose(run(layer, x[:, :length], None)[0], whole[:, :length], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 11, 12, 13])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@kinds
def test_the_state_is_as_large_as_the_formula_says(config, dtype, size):
    cache = config.init_cache(2, size, KVCache.zeros, jnp.dtype(dtype))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) - cache.length.nbytes
    parts = config.cache_parts(size, dtype)
    assert held == 2 * config.cache_bytes(size, dtype) == 2 * sum(parts.values())
    rate = config.cache_bytes_per_token(dtype)
    assert parts["entries"] == size // getattr(config, "ratio", 1) * getattr(config, "ratio", 1) * rate


@kinds
def test_v4_storage_is_as_large_as_published_and_nearly_as_good(config):
    """Pieces of any size give the same, since each row is rounded on its own; it differs from float32 by rounding alone."""
    layer, x = made(config)
    empty = config.init_cache(2, 13, V4_CACHE, jnp.float32)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(empty)) - empty.length.nbytes
    assert held == 2 * config.cache_bytes(13, "v4")
    outs = {}
    for chunks in ((1,) * LENGTH, (5, 1, 6, 2)):
        outs[chunks], _ = decoded(layer, x, chunks, LENGTH, V4_CACHE)
    one, pieces = outs.values()
    np.testing.assert_allclose(one, pieces, rtol=1e-4, atol=1e-5)
    if config.kind != "compressed_sparse":  # where rounded keys may choose another entry
        whole = np.asarray(run(layer, x, None)[0])
        assert 1e-4 < np.abs(one - whole).max() / whole.std() < 0.15


def test_v4_rows_are_those_of_the_published_sizes():
    entries, keys = V4_CACHE.entry_rows(1, 3, 512, 64, jnp.bfloat16), V4_CACHE.index_rows(1, 3, 128, jnp.bfloat16)
    assert [sum(leaf.nbytes for leaf in jax.tree.leaves(rows)) / 3 for rows in (entries, keys)] == [584, 68]
    new = jnp.ones((1, 1, 128)).at[0, 0, 5].set(40.0)  # an outlier is spread before it is rounded
    back = keys.write(jnp.array([2]), new).read()
    np.testing.assert_array_equal(back[:, 2:], keys.kept(new))
    assert np.abs(np.asarray(back[0, 2, :5], np.float32) - 1).max() < 1.0


@kinds
def test_a_full_cache_is_an_error_and_nan_under_jit(config):
    layer, x = made(config, 7)
    _, cache = decoded(layer, x, (4,), 5)
    with pytest.raises(UserError, match="holds 4 of 5 tokens and cannot take 2 more"):
        layer(x[:, 4:6], cache)
    out, over = run(layer, x[:, 4:6], cache)
    assert np.isnan(out).all()
    assert np.isnan(run(layer, x[:, 6:], over)[0]).all()
    with pytest.raises(UserError, match="leave make out"):
        config.init_cache(1, 4, lambda *_: KVCache.zeros(1, 4, 1, 2), jnp.float32)


@kinds
def test_a_large_sink_takes_all_weight(config):
    layer, x = made(config)
    layer.sink[...] = jnp.full(4, 60.0)
    assert np.abs(run(layer, x, None)[0]).max() < 1e-6


@kinds
def test_without_a_sink_decoding_in_pieces_is_the_whole(config):
    layer, x = made(dataclasses.replace(config, sink=False))
    whole = run(layer, x, None)[0]
    for chunks in ((1,) * LENGTH, (5, 1, 6, 2)):
        np.testing.assert_allclose(decoded(layer, x, chunks, LENGTH)[0], whole, rtol=1e-4, atol=1e-5)


@kinds
def test_a_config_from_before_the_switch_has_sinks(config):
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name != "sink"}
    assert type(config)(**fields) == config
    assert config.sink is True


def test_published_sizes():
    """V4-Flash and V4-Pro: 3,514.25 and 5,031.44 bytes a token, 74,752 bytes a window, the weights of each part."""
    flash = {"num_heads": 64, "q_rank": 1024, "out_groups": 8}
    pro = {"num_heads": 128, "q_rank": 1536, "out_groups": 16}
    both = {"head_dim": 512, "rope_dim": 64, "window": 128, "out_rank": 1024}
    index = {"index_heads": 64, "index_dim": 128}
    bytes_a_token = {}
    for name, own, top_k, csa, hca in (("flash", flash, 512, 21, 20), ("pro", pro, 1024, 30, 31)):
        sparse = CompressedSparseConfig(**own, **both, **index, index_top_k=top_k)
        heavy = HeavilyCompressedConfig(**own, **both)
        bytes_a_token[name] = csa * sparse.cache_bytes_per_token("v4") + hca * heavy.cache_bytes_per_token("v4")
    assert bytes_a_token == {"flash": 3514.25, "pro": 5031.4375}
    sliding = SlidingWindowConfig(**flash, **both)
    assert sliding.cache_bytes(2**20, "v4") == 74_752
    d, w = 4096, 64 * 512
    matrices = d * 1024 + 1024 * w + d * 512 + w * 1024 + 8 * 1024 * d
    assert sliding.num_params(d) == matrices + 1024 + 512 + 64
    compressor = HeavilyCompressedConfig(**flash, **both).num_params(d) - sliding.num_params(d)
    assert compressor == 2 * d * 512 + 128 * 512 + 512
    sparse = CompressedSparseConfig(**flash, **both, **index, index_top_k=512)
    indexer = 2 * d * 256 + 1024 * 64 * 128 + 64 * d + 4 * 256 + 128
    assert sparse.num_params(d) - sliding.num_params(d) == 2 * d * 1024 + 4 * 1024 + 512 + indexer


@pytest.mark.parametrize(("ratio", "most"), [(1, None), (3, None), (4, 2), (1, 5), (3, 100)])
def test_mean_visible_is_a_mean_over_positions(ratio, most):
    for context in (1, 2, 7, 12, 23):
        each = [min((t + 1) // ratio, context if most is None else most) for t in range(context)]
        assert mean_visible(context, ratio, most) == pytest.approx(np.mean(each))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_groups": 3}, "num_heads=4 must be a multiple of out_groups=3"),
        ({"rope_dim": 12}, "rope_dim=12 must be even and at most head_dim=10"),
        ({"rope_dim": 3}, "rope_dim=3 must be even"),
        ({"index_dim": 4}, "rope_dim=6 must be even and at most index_dim=4"),
        ({"window": 0}, "window=0 must be a whole number of at least 1"),
        ({"yarn": YarnConfig(4, 40, mscale=1)}, "leave mscale out"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIGS["compressed_sparse"], **changes)


def small_model():
    sliding, heavy, sparse = CONFIGS.values()
    pattern = tuple(LayerConfig(attention) for attention in (sparse, heavy))
    return ModelConfig(19, D, 3, sliding, d_ff=10, first_layers=(LayerConfig(),), pattern=pattern, context_length=16)


def test_a_model_of_all_three_kinds():
    """It comes back from plain values, counts its weights and its cache, trains a step and generates as it scores."""
    config = small_model()
    assert ModelConfig.from_dict(config.to_dict()) == config
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == count_params(config).total
    assert kv_bytes_per_token(config) == 4 * (10 / 4 + 18 / 3)
    with pytest.raises(
        UserError, match=r"attention of kind 'sliding' keeps neither; ask minimoe.cost.kv_bytes_per_token"
    ):
        cache_bytes_per_token(config, "fp8")
    assert forward_flops_per_token(config, 16) > 2 * count_params(config).attention

    tokens = jnp.asarray(np.random.default_rng(0).integers(19, size=(2, 5)), jnp.int32)
    text = minimoe.generate(model, tokens, 8, temperature=0.0)
    logits = jax.jit(lambda model, text: model(text)[0])(model, text)
    np.testing.assert_array_equal(text[:, 5:], jnp.argmax(logits, axis=-1)[:, 4:-1])

    recipe = Recipe(steps=2, warmup_steps=0)
    optimizer = nnx.Optimizer(model, make_optimizer(recipe), wrt=nnx.Param)
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    rows = (text[:, :-1], text[:, 1:], jnp.ones((2, 12), bool))
    assert bool(train_step(model, optimizer, *rows, jax.random.key(0), recipe=recipe).ok)
    still = [
        ".".join(map(str, path))
        for (path, new), (_, old) in zip(
            nnx.to_flat_state(nnx.state(model, nnx.Param)), nnx.to_flat_state(before), strict=True
        )
        if np.array_equal(new[...], old[...])
    ]
    assert all("indexer" in name for name in still), still


@pytest.mark.parametrize("sparse", [0, 1000], ids=["each gathers its own", "the others are masked"])
def test_the_indexer_learns_from_attention_and_teaches_nothing_else(sparse, monkeypatch):
    monkeypatch.setattr("minimoe.attention.csa.SPARSE", sparse)
    plain = CONFIGS["compressed_sparse"]
    layer, x = made(dataclasses.replace(plain, index_loss=2.0))
    share = jax.random.normal(jax.random.key(5), x.shape)

    @jax.jit
    def slopes(layer, x):
        graphdef, params = nnx.split(layer, nnx.Param)
        loss = lambda params, x: jnp.vdot(nnx.merge(graphdef, params)(x)[0], share)  # noqa: E731
        grads, of_x = jax.grad(loss, argnums=(0, 1))(params, x)
        return {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(grads)} | {"x": of_x}

    taught = slopes(layer, x)
    layer.config = plain
    untaught = slopes(layer, x)
    for name, value in taught.items():
        if name.startswith("indexer."):
            assert not np.abs(untaught[name]).any(), name
            assert np.abs(value).max() > 1e-6, name
        else:
            np.testing.assert_allclose(value, untaught[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_both_forms_of_sparse_attention_teach_the_same():
    """Outputs, what the indexer lost, and every gradient."""
    layer, x = made(dataclasses.replace(CONFIGS["compressed_sparse"], index_loss=2.0), length=40)

    def found(layer, x):
        out, lost = layer(x)
        return jnp.sin(out).sum(), (out, lost.value)

    results = []
    for sparse in (0, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("minimoe.attention.csa.SPARSE", sparse)
            grads, aux = jax.jit(lambda layer, x: nnx.grad(found, argnums=(0, 1), has_aux=True)(layer, x))(layer, x)
        results.append(jax.tree.leaves((grads, aux)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()) + 1e-7)


def test_a_layer_says_what_its_indexer_lost():
    """By the weights of the heads and the scores; with a cache, or where nothing is taught, there is nothing to say."""
    plain = CONFIGS["compressed_sparse"]
    layer, x = made(dataclasses.replace(plain, index_loss=2.0))
    seen = {}

    def spied(scores, weights, chosen):
        seen["loss"] = index_loss(scores, weights, chosen)
        return seen["loss"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minimoe.attention.csa.index_loss", spied)
        said = layer(x)[1]
    assert float(said.value) == float(seen["loss"]) > 0
    layer.config = plain
    assert layer(x)[1] is None


def test_a_step_reports_what_the_indexers_lost(tiny_config):
    """The mean over the layers that teach one, in the model's output, in the metrics of a step and in its record."""
    sparse = dataclasses.replace(CONFIGS["compressed_sparse"], index_loss=0.5)
    config = tiny_config.replace(attention=sparse, moe=None, d_ff=4, num_layers=2)
    tokens, found = jnp.arange(18, dtype=jnp.int32)[None] % 7, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minimoe.attention.csa.index_loss", lambda *a: found.append(index_loss(*a)) or found[-1])
        output = MoETransformer(config, rngs=nnx.Rngs(0)).forward(tokens)
    assert len(found) == 2
    np.testing.assert_allclose(output.index_loss, np.mean(found), rtol=1e-6)
    recipe = Recipe(steps=3)
    step = functools.partial(inspect.unwrap(train_step), recipe=recipe)
    batch = (tokens, tokens, jnp.ones(tokens.shape, bool), jax.random.key(0))

    def fresh_step():
        fresh = MoETransformer(config, rngs=nnx.Rngs(0))
        return step(fresh, optimizer_for(fresh, recipe), *batch).index

    assert nnx.eval_shape(fresh_step).shape == ()
    zero = jnp.zeros(())
    without = StepMetrics(zero, zero, zero, zero, jnp.array(True), jnp.zeros((0, 0)), jnp.zeros(0))
    reported = dataclasses.replace(without, index=jnp.float32(0.25))
    assert step_record(reported, recipe, 1, 1, 1.0, 1.0)["index_loss"] == 0.25
    assert "index_loss" not in step_record(without, recipe, 1, 1, 1.0, 1.0)


def test_the_loss_of_the_indexer_is_a_divergence_over_the_chosen_entries():
    rng = np.random.default_rng(0)
    scores, weights = rng.normal(size=(2, 3, 5)), rng.uniform(size=(2, 3, 4, 5))
    chosen = rng.uniform(size=(2, 3, 5)) < 0.5
    chosen[0, 0], chosen[0, 1] = False, [True, False, False, False, False]
    found = []
    for b, t in np.ndindex(2, 3):
        here = chosen[b, t]
        if here.any():
            p = weights[b, t].sum(axis=0)[here]
            p, q = p / p.sum(), np.exp(scores[b, t][here])
            found.append((p * np.log(p / (q / q.sum()))).sum())
    as_arrays = [jnp.asarray(a, jnp.float32) for a in (scores, weights)]
    np.testing.assert_allclose(index_loss(*as_arrays, jnp.asarray(chosen)), np.mean(found), rtol=1e-5)
    agreeing = jnp.log(as_arrays[1].sum(axis=2))
    np.testing.assert_allclose(index_loss(agreeing, as_arrays[1], jnp.asarray(chosen)), 0.0, atol=1e-6)
