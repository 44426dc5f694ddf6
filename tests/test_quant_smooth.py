"""SmoothQuant: the same function, easier to round."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe import ModelConfig, MoETransformer, UserError
from minimoe.attention import MultiHeadLatentConfig, SlidingWindowConfig
from minimoe.quant import INT8_CHANNEL, INT8_TOKEN, quantize
from minimoe.quant.calibrate import Calibration, collect
from minimoe.quant.fp8_training import with_fp8_training
from minimoe.quant.smooth import _fold, smooth, smoothing_factors

BATCH = np.random.default_rng(0).integers(0, 19, (2, 12)).astype(np.int32)
TOKENS = jnp.asarray(BATCH)


@nnx.jit
def run(model, rngs=None):
    return model(TOKENS, rngs=rngs)


def with_outliers(config: ModelConfig) -> MoETransformer:
    """Two channels forty times as loud as the rest after every norm, their weights as much smaller."""
    model = MoETransformer(config, rngs=nnx.Rngs(3))
    loud = jnp.where(jnp.arange(config.d_model) % 4 == 1, 40.0, 1.0)
    for block in model.layers:
        block.attention_norm.scale[...] = block.attention_norm.scale[...] * loud
        block.ffn_norm.scale[...] = block.ffn_norm.scale[...] * loud
    return model


@pytest.fixture(scope="module")
def model(tiny_config):
    """Its router reads the same channels twice, once for the noise."""
    model = with_outliers(tiny_config.replace(num_layers=1).replace_moe(select="noisy_topk"))
    for block in model.layers:
        block.ffn.router.noise_kernel[...] = jnp.ones_like(block.ffn.router.noise_kernel[...])
    return model


@pytest.fixture(scope="module")
def calibration(model):
    return collect(model, [BATCH])


def test_the_formula():
    x, w = np.array([8.0, 0.5, 0.0, 3.0]), np.array([2.0, 4.0, 1.0, 0.0])
    np.testing.assert_allclose(
        smoothing_factors(x, w, 0.75, power_of_two=False), [8**0.75 / 2**0.25, 0.5**0.75 / 4**0.25, 1, 1], rtol=1e-6
    )
    np.testing.assert_array_equal(smoothing_factors(x, w, 0.5), [2.0, 0.25, 1.0, 1.0])  # 2, 0.354 -> 2**-1.5 -> 2**-2
    rng = np.random.default_rng(0)
    many, other = np.exp(3 * rng.normal(size=(2, 500)))
    ratio = smoothing_factors(many, other) / smoothing_factors(many, other, power_of_two=False)
    assert (np.frexp(smoothing_factors(many, other))[0] == 0.5).all()
    assert ratio.max() < 2**0.5 + 1e-5
    assert ratio.min() > 2**-0.5 - 1e-5
    with pytest.raises(UserError, match=r"1 channels of the activations and 0 of the weights reach NaN or infinity"):
        smoothing_factors(np.array([1.0, np.nan]), np.ones(2))
    with pytest.raises(UserError, match=r"alpha=1.5 must be in \[0, 1\]"):
        smoothing_factors(many, other, 1.5)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_powers_of_two_change_no_bit_of_the_function(model, calibration, alpha):
    smoothed = smooth(model, calibration, alpha)
    want, found = (jax.tree.leaves(run(m, nnx.Rngs(0))) for m in (model, smoothed))
    for before, after in zip(want, found, strict=True):  # logits, and every field of every layer's routing
        np.testing.assert_array_equal(after, before)
    kernels = [np.asarray(m.layers[0].ffn.experts.gate_up_proj[...]) for m in (model, smoothed)]
    assert not np.array_equal(*kernels), "something moved"


def test_the_papers_factors_change_nothing_but_rounding(model, calibration):
    found = run(smooth(model, calibration, power_of_two=False), nnx.Rngs(0))[0]
    np.testing.assert_allclose(found, run(model, nnx.Rngs(0))[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "no shared expert"])
def test_other_models(tiny_config, kind):
    config = tiny_config.replace(num_layers=1)
    config = config.replace(moe=None, d_ff=12) if kind == "dense" else config.replace_moe(num_shared_experts=0)
    model = with_outliers(config)
    smoothed = smooth(model, collect(model, [BATCH]))
    np.testing.assert_array_equal(run(smoothed)[0], run(model)[0])
    assert float(smoothed.layers[0].ffn_norm.scale[...].max()) < 40


def test_bfloat16_weights_lose_no_bit():
    """What is multiplied by a power of two can be divided by it again."""
    norm = nnx.RMSNorm(3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    before = jnp.array([[0.1, -3.0], [1.7, 1e-5], [5.0, 0.3]], jnp.bfloat16)
    kernel, factors = nnx.Param(before), np.array([0.25, 8.0, 1.0], np.float32)
    _fold(norm, [kernel], factors)
    np.testing.assert_array_equal(norm.scale[...], (1 / factors).astype(jnp.bfloat16))
    assert kernel[...].dtype == norm.scale[...].dtype == jnp.bfloat16
    np.testing.assert_array_equal(kernel[...] * norm.scale[...][:, None], before)


def test_int8_sees_smoother_rows(model, calibration):
    """One matrix in int8 with int8 activations: the error of the product drops."""
    smoothed = smooth(model, calibration)
    x = np.random.default_rng(0).normal(size=(64, model.config.d_model))
    errors = []
    for m in (model, smoothed):
        block = m.layers[0]
        rows = oracles.rms_norm(x, np.asarray(block.ffn_norm.scale[...]), 0).astype(np.float32)
        kernel = np.asarray(block.ffn.shared.gate_up_proj.kernel[...]).T
        x8, w8 = quantize(jnp.asarray(rows), INT8_TOKEN), quantize(jnp.asarray(kernel), INT8_CHANNEL)
        error = np.asarray(x8.dequantize()) @ np.asarray(w8.dequantize()).T - rows @ kernel.T
        errors.append(np.linalg.norm(error) / np.linalg.norm(rows @ kernel.T))
    assert errors[1] < 0.7 * errors[0]


def test_statistics_after_smoothing_are_flatter(model, calibration):
    after = collect(smooth(model, calibration), [BATCH])["layers.0.attention.q_proj"].absmax
    before = calibration["layers.0.attention.q_proj"].absmax
    assert after.max() / after.min() < 0.5 * before.max() / before.min()


def other_attentions(config: ModelConfig) -> dict[str, ModelConfig]:
    """Models whose attention has other matrices, and the word that an error should say."""
    import dataclasses

    from minimoe.config import LayerConfig, MTPConfig

    latent = MultiHeadLatentConfig(num_heads=2, kv_rank=4, nope_dim=4, rope_dim=2, v_dim=4)
    window = SlidingWindowConfig(num_heads=2, head_dim=4, rope_dim=2, q_rank=4, window=3, out_groups=1, out_rank=4)
    changed = {"MultiHeadLatentConfig": latent, "SlidingWindowConfig": window}
    models = {name: config.replace(num_layers=1, attention=attention) for name, attention in changed.items()}
    head = config.replace(num_layers=1, mtp=MTPConfig(LayerConfig(attention=window, moe=config.moe)))
    biased = config.replace(num_layers=1, attention=dataclasses.replace(config.attention, bias=True))
    return models | {"mtp.block has SlidingWindowConfig": head, "biases of layers.0": biased}


def test_attentions_of_other_kinds_are_refused_by_name(tiny_config):
    """No matrix is left out in silence, no bias is lost."""
    for said, config in other_attentions(tiny_config).items():
        other = MoETransformer(config, rngs=nnx.Rngs(0))
        with pytest.raises(UserError, match=f"with_fp8_training .*{said}"):
            with_fp8_training(other)
        if "biases" not in said:
            with pytest.raises(UserError, match=f"smooth .*{said}.*; use it on a model with GroupedQueryConfig"):
                smooth(other, Calibration(0, {}))
