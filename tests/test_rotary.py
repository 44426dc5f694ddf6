"""Rotary frequencies and YaRN: against loops over the published formulas, and in latent attention."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe import ModelConfig
from minimoe.attention import KVCache, MultiHeadLatentConfig, YarnConfig
from minimoe.attention.rotary import rotary_angles, turn_last
from minimoe.attention.yarn import rotary_frequencies
from minimoe.errors import UserError

YARN = YarnConfig(factor=16, original_length=65_536)


def by_hand(rope_dim, theta, yarn):
    """A pair at a time, by how many turns it makes within the original length."""
    corner = [
        rope_dim * math.log(yarn.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (yarn.beta_fast, yarn.beta_slow)
    ]
    low, high = max(0, math.floor(corner[0])), min(rope_dim - 1, math.ceil(corner[1]))
    found = []
    for pair in range(rope_dim // 2):
        f = 1 / theta ** (2 * pair / rope_dim)
        if pair <= low:
            found.append(f)
        elif pair >= high:
            found.append(f / yarn.factor)
        else:
            g = (pair - low) / (high - low)
            found.append((1 - g) * f + g * f / yarn.factor)
    return found


@pytest.mark.parametrize(("rope_dim", "theta"), [(64, 160_000.0), (16, 10_000.0), (6, 50.0)])
def test_fast_pairs_stay_and_slow_pairs_are_divided(rope_dim, theta):
    yarn = dataclasses.replace(YARN, original_length=700 if rope_dim == 6 else 65_536)
    plain, long = rotary_frequencies(rope_dim, theta), rotary_frequencies(rope_dim, theta, yarn)
    np.testing.assert_allclose(long, by_hand(rope_dim, theta, yarn), rtol=1e-6)
    assert long[0] == plain[0] == 1.0
    assert long[-1] < plain[-1]
    np.testing.assert_array_equal(rotary_frequencies(rope_dim, theta, dataclasses.replace(yarn, factor=1)), plain)


def test_published_scales():
    """V3 multiplies its scores by (0.1 ln 40 + 1)^2 and leaves cosine and sine; V4 scales neither; mscale alone the waves."""
    size = 0.1 * math.log(40) + 1
    v3 = YarnConfig(40, 4096, mscale=1, mscale_all_dim=1)
    assert (v3.wave_scale, v3.score_scale) == (1.0, pytest.approx(size**2))
    assert (YARN.wave_scale, YARN.score_scale) == (1.0, 1.0)
    waves = YarnConfig(40, 4096, mscale=1)
    assert (waves.wave_scale, waves.score_scale) == (pytest.approx(size), 1.0)


def test_neighbours_turn_and_the_first_dims_stay():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    frequencies = rotary_frequencies(4, 50.0)
    cos, sin = rotary_angles(jnp.arange(5) + 7, frequencies)
    got = np.asarray(turn_last(jnp.asarray(x), cos, sin))
    np.testing.assert_array_equal(got[..., :4], x[..., :4])
    wave = np.exp(1j * (np.arange(5) + 7)[:, None, None] * frequencies)
    pairs = (x[..., 4::2] + 1j * x[..., 5::2]) * wave
    np.testing.assert_allclose(got[..., 4::2], pairs.real, atol=1e-6)
    np.testing.assert_allclose(got[..., 5::2], pairs.imag, atol=1e-6)
    np.testing.assert_allclose(turn_last(jnp.asarray(got), cos, -sin), x, atol=1e-6)


def test_latent_attention_with_yarn_is_its_own_arithmetic():
    """The scale of scores goes into the queries: a layer with it equals one whose query matrix is that much larger."""
    sizes = {"num_heads": 3, "kv_rank": 7, "nope_dim": 5, "rope_dim": 4, "v_dim": 6, "rope_theta": 50.0}
    made = {}
    for name, yarn in {
        "none": None,
        "frequencies": YarnConfig(4, 60),
        "v3": YarnConfig(4, 60, mscale=1, mscale_all_dim=1),
        "waves": YarnConfig(4, 60, mscale=1),
    }.items():
        config = MultiHeadLatentConfig(**sizes, yarn=yarn)
        made[name] = config.build(9, out_scale=1.0, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 11, 9))
    run = jax.jit(lambda layer, x, cache: layer(x, cache))
    out = {name: run(layer, x, None)[0] for name, layer in made.items()}
    for name in ("frequencies", "v3", "waves"):
        assert np.abs(out[name] - out["none"]).max() > 1e-3, name
    scaled = made["frequencies"]
    scaled.q_proj.kernel[...] *= made["v3"].config.yarn.score_scale
    np.testing.assert_allclose(run(scaled, x, None)[0], out["v3"], rtol=1e-5, atol=1e-6)
    for name in ("v3", "waves"):
        cache, outs = made[name].config.init_cache(2, 11, KVCache.zeros, jnp.float32), []
        for start, end in ((0, 4), (4, 5), (5, 11)):
            part, cache = run(made[name], x[:, start:end], cache)
            outs.append(part)
        np.testing.assert_allclose(jnp.concatenate(outs, axis=1), out[name], rtol=1e-4, atol=1e-5)


def test_yarn_comes_back_from_plain_values_and_is_checked():
    latent = MultiHeadLatentConfig(num_heads=2, kv_rank=4, nope_dim=4, rope_dim=4, v_dim=4, yarn=YARN)
    config = ModelConfig(19, 8, 1, latent, d_ff=8)
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match=r"beta_fast=1.0 must be above beta_slow=2.0; exchange them"):
        YarnConfig(4, 60, beta_fast=1, beta_slow=2)
    with pytest.raises(UserError, match=r"factor=0.5 must be a number in \[1"):
        YarnConfig(0.5, 60)
