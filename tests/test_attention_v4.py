"""The three kinds of attention of DeepSeek-V4 against the loops of `v4_oracle`: values, gradients, what a query sees."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import v4_oracle
from flax import nnx

from minimoe.attention import (
    CompressedSparseConfig,
    HeavilyCompressedConfig,
    SlidingWindowConfig,
    YarnConfig,
    csa,
    indexer,
    rotary,
    window,
    yarn,
)

D, L = 7, 14  # no ratio below divides 14 but one, and 13 comes before it
SIZES = {
    "num_heads": 4, "head_dim": 10, "rope_dim": 6, "q_rank": 5, "window": 3, "out_groups": 2, "out_rank": 3,
    "rope_theta": 300.0, "yarn": YarnConfig(factor=4.0, original_length=40, beta_fast=4.0, beta_slow=0.5),
}  # fmt: skip
CONFIGS = {
    config.kind: config
    for config in (
        SlidingWindowConfig(**SIZES),
        HeavilyCompressedConfig(**SIZES, ratio=4),
        CompressedSparseConfig(**SIZES, ratio=3, index_heads=8, index_dim=9, index_top_k=2),
    )
}
RNG = np.random.default_rng(0)
ROWS_AT = csa.rows_at
X = RNG.normal(size=(2, L, D)).astype(np.float32)
kinds = pytest.mark.parametrize("kind", CONFIGS)


@functools.cache
def module(kind):
    """Read only. Every weight is random, norms, biases and sinks too."""
    found = CONFIGS[kind].build(D, out_scale=1.0, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(0))
    state, rng = nnx.state(found, nnx.Param), np.random.default_rng(1)

    def noise(path, value):
        if "norm" in path:
            return 1 + 0.3 * rng.normal(size=value.shape)
        return rng.normal(size=value.shape) * (1.2 * value.shape[-2] ** -0.5 if "kernel" in path else 1)

    flat = {path: jnp.asarray(noise(path, value), jnp.float32) for path, value in nnx.to_flat_state(state)}
    nnx.update(found, nnx.from_flat_state({path: nnx.Param(value) for path, value in flat.items()}))
    return found


def leaves(found):
    """Every weight by its path."""
    state = nnx.to_flat_state(nnx.state(found, nnx.Param))
    return {".".join(map(str, path)): np.asarray(value[...], np.float64) for path, value in state}


def published(weights):
    """The same weights by the names of the published checkpoints, matrices ``[out, in]``."""
    names = {
        "q_a_proj": "wq_a", "q_b_proj": "wq_b", "kv_proj": "wkv", "gate_proj": "wgate", "o_b_proj": "wo_b",
        "indexer.q_proj": "indexer.wq_b",
    }  # fmt: skip
    found = {}
    for path, value in weights.items():
        name = path.removesuffix(".kernel").removesuffix(".scale")
        for ours, theirs in names.items():
            name = name.removesuffix(ours) + theirs if name.endswith(ours) else name
        if path == "o_a_proj.kernel":
            found["wo_a.weight"] = np.concatenate(np.swapaxes(value, 1, 2))  # [g, i, r] -> [g*r, i]
        elif path == "sink":
            found["attn_sink"] = value
        elif path.endswith("place_bias"):
            found[name.replace("place_bias", "ape")] = value
        else:
            found[f"{name}.weight"] = value.T
    return found


def settings(config):
    """config.json."""
    yarn = dataclasses.asdict(config.yarn)
    rope = {"rope_type": "yarn", "rope_theta": config.rope_theta, "attention_factor": 1.0, "factor": yarn["factor"]}
    rope |= {"original_max_position_embeddings": yarn["original_length"]}
    rope |= {name: yarn[name] for name in ("beta_fast", "beta_slow")}
    found = {
        "rms_norm_eps": config.norm_eps, "num_attention_heads": config.num_heads, "head_dim": config.head_dim,
        "qk_rope_head_dim": config.rope_dim, "sliding_window": config.window, "o_groups": config.out_groups,
        "o_lora_rank": config.out_rank, "rope_parameters": {"main": rope, "compress": rope},
        "compress_rates": {f"{config.kind}_attention": getattr(config, "ratio", 0)},
    }  # fmt: skip
    index = {"index_n_heads": "index_heads", "index_head_dim": "index_dim", "index_topk": "index_top_k"}
    return found | {theirs: getattr(config, ours, None) for theirs, ours in index.items()}


def loops(kind, weights, x):
    config = CONFIGS[kind]
    return np.stack([v4_oracle.attention(row, published(weights), settings(config), kind) for row in x])


def check(kind, x=X):
    found = jax.jit(lambda attention, x: attention(x)[0])(module(kind), jnp.asarray(x))
    expected = loops(kind, leaves(module(kind)), x)
    np.testing.assert_allclose(found, expected, atol=2e-5 * expected.std(), rtol=0)


@kinds
@pytest.mark.parametrize("length", [1, 2, L - 1, L])
def test_values_are_those_of_the_loops(kind, length):
    check(kind, X[:, :length])


@kinds
def test_gradients_are_those_of_the_loops(kind):
    """Along a random direction of the input and of every weight, against a central difference in float64."""
    graphdef, params = nnx.split(module(kind), nnx.Param)
    weights, share = leaves(module(kind)), RNG.normal(size=X.shape)
    direction = {name: RNG.normal(size=value.shape) for name, value in (weights | {"x": X}).items()}

    def moved(step):
        own = {name: value + step * direction[name] for name, value in weights.items()}
        return (share * loops(kind, own, X + step * direction["x"])).sum()

    def total(params, x):
        return (share.astype(np.float32) * nnx.merge(graphdef, params)(x)[0]).sum()

    gradient, of_x = jax.jit(jax.grad(total, argnums=(0, 1)))(params, jnp.asarray(X))
    found = np.vdot(of_x, direction["x"])
    for path, value in nnx.to_flat_state(gradient):
        found += np.vdot(value[...], direction[".".join(map(str, path))])
    np.testing.assert_allclose(found, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-3)


@pytest.fixture(params=[0, 1000], ids=["each gathers its own", "the others are masked"])
def form(request, monkeypatch):
    """Both ways to read the chosen entries, whatever the sizes say."""
    monkeypatch.setattr(csa, "SPARSE", request.param)


@pytest.mark.usefixtures("form")
def test_both_forms_of_sparse_attention_are_the_loops():
    check("compressed_sparse")
    test_gradients_are_those_of_the_loops("compressed_sparse")
    test_a_query_sees_its_window_and_complete_entries_and_no_other_token("compressed_sparse")


def test_the_size_decides_the_form(monkeypatch):
    """From eight entries for each that is read."""
    gathered = []
    monkeypatch.setattr(csa, "rows_at", lambda rows, index: gathered.append(rows.shape) or ROWS_AT(rows, index))
    attention = module("compressed_sparse")
    for length, sparse in ((47, False), (48, True)):  # 15 and 16 entries, of which 2 are read
        jax.eval_shape(lambda x: attention(x)[0], jnp.zeros((1, length, D)))
        assert bool(gathered) == sparse


def seen(config):
    """``[L, L]``: whether the output at t may depend on the token at s; all entries are read."""
    found = np.zeros((L, L), bool)
    for t in range(L):
        found[t, [*v4_oracle.window(t, config.window)]] = True
        ratio = getattr(config, "ratio", L + 1)
        for entry in range(v4_oracle.complete(t, ratio)):
            first = entry - 1 if config.kind == "compressed_sparse" else entry  # its tokens, and those before them
            found[t, max(0, first * ratio) : (entry + 1) * ratio] = True
    return found


@kinds
def test_a_query_sees_its_window_and_complete_entries_and_no_other_token(kind):
    """Every pair of tokens: each edge of the window and of each entry is among them."""
    attention = nnx.clone(module(kind))
    attention.config = dataclasses.replace(CONFIGS[kind], **({"index_top_k": L} if "sparse" in kind else {}))
    share = jnp.asarray(RNG.normal(size=D), jnp.float32)
    jacobian = jax.jit(jax.jacrev(lambda x: attention(x[None])[0][0] @ share))(jnp.asarray(X[0]))  # [L, L, D]
    np.testing.assert_array_equal(jnp.abs(jacobian).max(axis=-1) > 1e-7, seen(attention.config))


def test_equal_scores_go_to_the_lower_entry():
    scores = jnp.array([[[1.0, 0.0, 0.0, 0.0, 5.0]]])
    index, real = indexer.choose(scores, jnp.array([[True, True, True, True, False]]), 3)
    np.testing.assert_array_equal(index[0, 0], [0, 1, 2])
    assert real.all()


def test_a_zero_of_either_sign_is_the_same_score():
    """Shut ReLUs and negative weights add up to -0, which `jax.lax.top_k` puts after 0."""
    scores = jnp.array([[[-0.0, 0.0, -1.0, -0.0, 0.0]]])
    index, _ = jax.jit(indexer.choose, static_argnums=2)(scores, jnp.ones((1, 5), bool), 3)
    np.testing.assert_array_equal(index[0, 0], [0, 1, 3])


@kinds
def test_without_a_sink_the_loops_have_one_of_minus_infinity(kind):
    config = dataclasses.replace(CONFIGS[kind], sink=False)
    bare = config.build(D, out_scale=1.0, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(0))
    params = nnx.to_flat_state(nnx.state(module(kind), nnx.Param))
    nnx.update(bare, nnx.from_flat_state({path: value for path, value in params if path != ("sink",)}))
    assert bare.sink is None
    assert sum(value.size for value in leaves(bare).values()) == config.num_params(D)
    assert config.num_params(D) == CONFIGS[kind].num_params(D) - config.num_heads
    found = jax.jit(lambda attention, x: attention(x)[0])(bare, jnp.asarray(X))
    expected = loops(kind, leaves(module(kind)) | {"sink": np.full(config.num_heads, -np.inf)}, X)
    np.testing.assert_allclose(found, expected, atol=2e-5 * expected.std(), rtol=0)
    with_sink = loops(kind, leaves(module(kind)), X)
    assert np.abs(expected - with_sink).max() > 0.01 * with_sink.std()


IN_WINDOW, VISIBLE = window.in_window, window.visible_entries
TURN, FREQUENCIES, SOFTMAX = rotary.turn_last, yarn.rotary_frequencies, window.sink_softmax
COMPRESSED, SPARSE = ["heavily_compressed", "compressed_sparse"], ["compressed_sparse"]


def without_sink(close, far, sink):
    return SOFTMAX(close, far, None)


def without_turning_back():
    """Of the three turns of a layer, the last is that of the output."""
    calls = itertools.count()
    return lambda x, cos, sin: x if next(calls) % 3 == 2 else TURN(x, cos, sin)


def best_of_all(scores, visible, top_k):
    """The future takes places among the best, and then is left out."""
    index = jax.lax.top_k(scores, min(top_k, scores.shape[2]))[1]
    return index, jnp.take_along_axis(jnp.broadcast_to(visible[None], scores.shape), index, axis=2)


def scores_without_relu(q, keys, weights):
    return jnp.einsum("blnd,bed,bln->ble", q, keys, weights) * (q.shape[2] * q.shape[3]) ** -0.5


def early(positions, entries, ratio):
    return VISIBLE(positions + 1, entries, ratio)


BROKEN = {
    "no sink": (CONFIGS, {"window.sink_softmax": without_sink}),
    "window one too wide": (CONFIGS, {"window.in_window": lambda query, key, w: IN_WINDOW(query, key, w + 1)}),
    "window one too narrow": (CONFIGS, {"window.in_window": lambda query, key, w: IN_WINDOW(query, key, w - 1)}),
    "an entry is seen one token early": (COMPRESSED, {f"{file}.visible_entries": early for file in ("hca", "csa")}),
    "the output is not turned back": (CONFIGS, {"shared_kv.turn_last": without_turning_back}),
    "YaRN left out": (
        CONFIGS,
        {"shared_kv_config.rotary_frequencies": lambda dims, theta, yarn: FREQUENCIES(dims, theta)},
    ),
    "queries not normed": (CONFIGS, {"shared_kv.unit": lambda q, eps: q}),
    "indexer without ReLU": (SPARSE, {"indexer.index_scores": scores_without_relu}),
    "top-k over entries of the future": (SPARSE, {"csa.choose": best_of_all}),
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, (kinds, _) in BROKEN.items() for kind in kinds])
def test_a_broken_variant_is_refused(name, kind, monkeypatch):
    for place, broken in BROKEN[name][1].items():
        file, function = place.split(".")
        broken = broken() if broken is without_turning_back else broken
        monkeypatch.setattr(importlib.import_module(f"minimoe.attention.{file}"), function, broken)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(kind)
