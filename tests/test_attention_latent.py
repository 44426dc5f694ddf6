"""Latent attention: against NumPy, absorbed against expanded, and by what its cache holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe import ModelConfig, MoETransformer
from minimoe.attention import Cache, KVCache, LatentCache, MultiHeadLatentConfig
from minimoe.cost import count_params
from minimoe.errors import UserError

# No two sizes alike, so that a swapped axis cannot go unseen.
SIZES = {"num_heads": 3, "kv_rank": 7, "nope_dim": 5, "rope_dim": 4, "v_dim": 6, "rope_theta": 50.0}
FULL, RANKED = MultiHeadLatentConfig(**SIZES), MultiHeadLatentConfig(**SIZES, q_rank=8)
V3 = MultiHeadLatentConfig(128, kv_rank=512, q_rank=1536, nope_dim=128, rope_dim=64, v_dim=128)
D, LENGTH = 9, 11
run = jax.jit(lambda layer, x, cache: layer(x, cache))


def made(config: MultiHeadLatentConfig):
    layer = config.build(D, out_scale=1.0, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(0))
    for norm in (layer.kv_norm, *([layer.q_norm] if config.q_rank else [])):
        norm.scale[...] = jnp.linspace(0.5, 1.5, norm.scale[...].shape[0])
    return layer, jax.random.normal(jax.random.key(1), (2, LENGTH, D))


def turned(x, theta):
    """Pairs ``(i, i + P/2)`` as complex numbers, turned by the place of the token on the first axis."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    pair = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([pair.real, pair.imag], axis=-1)


def oracle(weights, config, x):
    """Equations 9 to 19, a head, a query and a sequence at a time, in float64."""

    def norm(y, name):
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + config.norm_eps)
        return y * weights[name]["scale"]

    kernel = {name: entry["kernel"] for name, entry in weights.items() if "kernel" in entry}
    c, r, u = config.nope_dim, config.kv_rank, config.v_dim
    out = np.zeros(x.shape)
    for b, h in enumerate(x):
        q = (
            h @ kernel["q_proj"]
            if config.q_rank is None
            else norm(h @ kernel["q_a_proj"], "q_norm") @ kernel["q_b_proj"]
        )
        both = h @ kernel["kv_a_proj"]
        up, shared = norm(both[:, :r], "kv_norm") @ kernel["kv_b_proj"], turned(both[:, r:], config.rope_theta)
        heads = []
        for n in range(config.num_heads):
            mine = q[:, n * config.head_dim : (n + 1) * config.head_dim]
            mine = np.concatenate([mine[:, :c], turned(mine[:, c:], config.rope_theta)], axis=-1)
            key, value = np.split(up[:, n * (c + u) : (n + 1) * (c + u)], [c], axis=-1)
            key = np.concatenate([key, shared], axis=-1)
            rows = []
            for t in range(len(h)):
                score = np.exp(key[: t + 1] @ mine[t] / np.sqrt(config.head_dim))
                rows.append(score @ value[: t + 1] / score.sum())
            heads.append(np.array(rows))
        out[b] = np.concatenate(heads, axis=-1) @ kernel["o_proj"]
    return out


@pytest.mark.parametrize("config", [FULL, RANKED], ids=["full queries", "queries of a latent"])
def test_value_and_gradients_are_those_of_the_equations(config):
    layer, x = made(config)
    graphdef, state = nnx.split(layer)
    cotangent = np.random.default_rng(2).normal(size=x.shape)
    loss = lambda state, x: jnp.vdot(nnx.merge(graphdef, state)(x)[0], cotangent.astype(np.float32))  # noqa: E731
    grads, grad_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, x)
    pure = jax.tree.map(lambda a: np.asarray(a, np.float64), nnx.to_pure_dict(state))
    inputs = np.asarray(x, np.float64)
    np.testing.assert_allclose(run(layer, x, None)[0], oracle(pure, config, inputs), rtol=1e-4, atol=1e-5)

    def slope(along, along_x):
        step = 1e-5
        ends = []
        for s in (step, -step):
            weights = {
                name: {part: value + s * along[name].get(part, 0.0) for part, value in entry.items()}
                for name, entry in pure.items()
            }
            ends.append(np.vdot(oracle(weights, config, inputs + s * along_x), cotangent))
        return (ends[0] - ends[1]) / (2 * step)

    rng = np.random.default_rng(3)
    still: dict = {name: {} for name in pure}
    flat = nnx.to_pure_dict(grads)
    for name, entry in pure.items():  # one random direction a parameter
        for part, value in entry.items():
            way = rng.normal(size=value.shape)
            wanted = slope(still | {name: {part: way}}, np.zeros_like(inputs))
            np.testing.assert_allclose(np.vdot(flat[name][part], way), wanted, rtol=1e-3, atol=1e-3, err_msg=name)
    way = rng.normal(size=inputs.shape)
    np.testing.assert_allclose(np.vdot(grad_x, way), slope(still, way), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("chunks", [(1,) * LENGTH, (4, 1, 5, 1), (LENGTH,)], ids=["one by one", "irregular", "at once"])
@pytest.mark.parametrize("config", [FULL, RANKED], ids=["full", "ranked"])
def test_absorbed_decoding_is_the_expanded_forward(config, chunks):
    layer, x = made(config)
    whole, none = run(layer, x, None)
    assert none is None
    cache = config.init_cache(2, LENGTH + 3, KVCache.zeros, jnp.float32)
    outs, at = [], 0
    for count in chunks:
        out, cache = run(layer, x[:, at : at + count], cache)
        outs.append(out)
        at += count
    np.testing.assert_allclose(jnp.concatenate(outs, axis=1), whole, rtol=1e-4, atol=1e-5)
    assert int(cache.length) == LENGTH
    assert isinstance(cache, LatentCache)
    assert isinstance(cache, Cache)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_is_as_large_as_the_formula_says(dtype):
    cache = FULL.init_cache(2, 13, KVCache.zeros, jnp.dtype(dtype))
    held = cache.latent.nbytes + cache.rotary.nbytes
    assert held == 2 * FULL.cache_bytes(13, dtype) == 2 * 13 * FULL.cache_bytes_per_token(dtype)


def test_published_sizes():
    """V3 keeps 576 numbers a token and layer, 70,272 bytes a token in all; its attention has 187,107,328 weights a layer."""
    assert V3.cache_bytes_per_token("bfloat16") == 2 * 576
    assert 61 * V3.cache_bytes_per_token("bfloat16") == 70_272
    queries = 7168 * 1536 + 1536 + 1536 * 128 * 192
    assert V3.num_params(7168) == queries + 7168 * 576 + 512 + 512 * 128 * 256 + 128 * 128 * 7168


def test_the_past_does_not_see_the_future():
    layer, x = made(RANKED)
    before = np.asarray(run(layer, x, None)[0])
    for t in (1, 6, LENGTH - 1):
        after = np.asarray(run(layer, x.at[:, t].add(1.0), None)[0])
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.abs(after[:, t:] - before[:, t:]).max() > 1e-3


def test_a_full_cache_is_an_error_and_nan_under_jit():
    layer, x = made(FULL)
    _, cache = run(layer, x[:, :4], FULL.init_cache(2, 5, KVCache.zeros, jnp.float32))
    with pytest.raises(UserError, match="holds 4 of 5 tokens and cannot take 2 more"):
        layer(x[:, 4:6], cache)
    out, _ = run(layer, x[:, 4:6], cache)
    assert np.isnan(out).all()
    with pytest.raises(UserError, match="holds 2 sequences, but 1"):
        layer(x[:1, :1], cache)
    with pytest.raises(UserError, match="its cache holds latents"):
        FULL.init_cache(1, 4, lambda *_: KVCache.zeros(1, 4, 1, 2), jnp.float32)


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="rope_dim=3 must be even"):
        MultiHeadLatentConfig(**(SIZES | {"rope_dim": 3}))
    with pytest.raises(UserError, match="q_rank=0"):
        MultiHeadLatentConfig(**SIZES, q_rank=0)


def test_a_model_counts_its_weights_and_comes_back_from_plain_values():
    config = ModelConfig(19, D, 2, RANKED, d_ff=10, context_length=12)
    assert ModelConfig.from_dict(config.to_dict()) == config
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == count_params(config).total
