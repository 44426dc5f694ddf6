"""The limit of SwiGLU's gate and up: the same in every dispatch, in every quantized form, and through a file."""

from __future__ import annotations

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe import ModelConfig, MoEConfig, MoELayer, MoETransformer, UserError
from minimoe.hub.folder import load, save
from minimoe.layers.feed_forward import SwiGLU, swiglu
from minimoe.moe import DISPATCHERS, Experts
from minimoe.moe.dropless import dropless_experts
from minimoe.quant import quantize_model
from minimoe.quant.calibrate import RecordingExperts
from minimoe.quant.fp8_training import Fp8Experts
from minimoe.quant.layers import QuantExperts
from minimoe.quant.specs import INT8_CHANNEL, INT8_TOKEN
from minimoe.quant.tensor import quantize

LIMIT = 0.4  # of numbers of size 1: most tokens meet it
T, E, K, D, F = 100, 3, 2, 6, 5


@pytest.fixture(scope="module")
def problem():
    """Expert 1 in every row: dropless has an overflow to loop over."""
    rng = np.random.default_rng(0)
    experts = np.stack([np.ones(T), rng.choice([0, 2], size=T)], axis=1)
    arrays = {
        "x": rng.normal(size=(T, D)),
        "weights": rng.uniform(0.1, 1, size=(T, K)),
        "gate_up": rng.normal(size=(E, D, 2 * F)),
        "down": rng.normal(size=(E, F, D)),
    }
    found = {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}
    return found | {"experts": jnp.asarray(experts, jnp.int32)}


def value_and_gradients(dispatch, problem):
    def of(x, weights, gate_up, down):
        return dispatch(x, problem["experts"], weights, gate_up, down)

    y, pull = jax.vjp(of, *(problem[name] for name in ("x", "weights", "gate_up", "down")))
    return y, pull(jnp.cos(y) + problem["x"])


@jax.jit
def everywhere(problem):
    ways = {name: functools.partial(dispatch, limit=LIMIT) for name, dispatch in DISPATCHERS.items()}
    return {name: value_and_gradients(dispatch, problem) for name, dispatch in ways.items()}


def check_value(y, problem):
    want = oracles.moe_forward(*(np.asarray(problem[n]) for n in ("x", "experts", "weights", "gate_up", "down")), LIMIT)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_every_dispatch_has_the_limit_in_value_and_gradient(problem):
    found = everywhere(problem)
    for y, gradients in found.values():
        check_value(y, problem)
        for a, b in zip(gradients, found["loop"][1], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    few = {name: array[:4] if len(array) == T else array for name, array in problem.items()}
    y, gradients = value_and_gradients(functools.partial(DISPATCHERS["dropless"], limit=LIMIT), few)
    want, wanted = value_and_gradients(lambda *args: dropless_experts(*args, LIMIT), few)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_gate_held_on_both_sides_is_refused(problem, monkeypatch):
    file = importlib.import_module("minimoe.layers.feed_forward")
    monkeypatch.setattr(file, "clamp_gate_up", lambda gate_up, limit: jnp.clip(gate_up, -limit, limit))
    with pytest.raises(AssertionError, match="Mismatched"):
        check_value(jax.jit(functools.partial(DISPATCHERS["dense"], limit=LIMIT))(**_args(problem)), problem)


def _args(problem):
    return {name: problem[name] for name in ("x", "experts", "weights", "gate_up", "down")}


def test_the_gradient_is_that_of_a_difference():
    rng = np.random.default_rng(1)
    point, direction = rng.normal(size=(2, 40)), rng.normal(size=(2, 40))
    ends = [oracle_swiglu(point + step * direction).sum() for step in (1e-6, -1e-6)]
    found = jax.grad(lambda a: swiglu(a, LIMIT).sum())(jnp.asarray(point, jnp.float32))
    np.testing.assert_allclose(np.vdot(found, direction), (ends[0] - ends[1]) / 2e-6, rtol=1e-3)


def oracle_swiglu(rows):
    return np.stack([oracles.swiglu_ffn(row, np.eye(row.size), np.eye(row.size // 2), LIMIT) for row in rows])


def test_routed_shared_and_dense_layers_have_it(problem):
    config = MoEConfig(D, F, E, K, num_shared_experts=1, swiglu_limit=LIMIT)
    layer = MoELayer(config, rngs=nnx.Rngs(0))
    x = 5 * problem["x"]
    y, routing = layer(x)
    stacks = (np.asarray(layer.experts.gate_up_proj[...]), np.asarray(layer.experts.down_proj[...]))
    shared = (np.asarray(layer.shared.gate_up_proj.kernel[...]), np.asarray(layer.shared.down_proj.kernel[...]))
    want = oracles.moe_forward(np.asarray(x), np.asarray(routing.experts), np.asarray(routing.weights), *stacks, LIMIT)
    want += np.stack([oracles.swiglu_ffn(row, *shared, LIMIT) for row in np.asarray(x)])
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    dense = SwiGLU(D, F, limit=LIMIT, rngs=nnx.Rngs(0))
    assert float(jnp.abs(dense(x) - SwiGLU(D, F, rngs=nnx.Rngs(0))(x)).max()) > 0.1


@pytest.mark.parametrize("activations", [None, INT8_TOKEN])
@pytest.mark.parametrize("rows", [3, T])
def test_quantized_experts_have_it(problem, activations, rows):
    """Within the error of eight bits; without the limit they are far from it."""
    stacks = (quantize(jnp.swapaxes(problem[n], 1, 2), INT8_CHANNEL) for n in ("gate_up", "down"))
    quantized = QuantExperts(*stacks, activations=activations, limit=LIMIT)
    args = [problem[name][:rows] for name in ("x", "experts", "weights")]
    want = DISPATCHERS["dense"](*args, problem["gate_up"], problem["down"], limit=LIMIT)
    run = nnx.jit(lambda module: module(*args, dispatch="dropless"))
    np.testing.assert_allclose(run(quantized), want, atol=0.05)
    quantized.limit = None
    assert float(jnp.abs(run(quantized) - want).max()) > 0.5


def test_experts_that_record_or_multiply_in_eight_bits_have_it(problem):
    config = MoEConfig(D, F, E, K, swiglu_limit=LIMIT)
    experts = Experts(config, rngs=nnx.Rngs(0))
    args = [20 * problem["x"][:8], problem["experts"][:8], problem["weights"][:8]]
    want = experts(*args, dispatch="dense")
    recording = RecordingExperts(experts)
    np.testing.assert_allclose(recording(*args, dispatch="dense"), want, rtol=1e-5)
    bound = LIMIT * LIMIT / (1 + np.exp(-LIMIT)) + 1e-6
    assert float(recording.down_pooled.absmax[...].max()) <= max(bound, 0.28 * LIMIT)  # silu is at least -0.28
    eight = Fp8Experts(experts.gate_up_proj, experts.down_proj, limit=LIMIT, quantizer=lambda tile, *_: tile)
    np.testing.assert_allclose(eight(*args, dispatch="dense"), want, rtol=1e-4, atol=1e-5)


def test_a_quantized_model_keeps_it_through_a_folder(tiny_config, tmp_path):
    """Where experts stand, and where they are built anew for the codes in a file."""
    config = tiny_config.replace_moe(swiglu_limit=0.01)
    model = quantize_model(MoETransformer(config, rngs=nnx.Rngs(0)), "int8")
    save(model, tmp_path / "saved")
    for found in (model, load(tmp_path / "saved")[0]):
        experts = [module for _, module in nnx.iter_modules(found) if isinstance(module, QuantExperts | SwiGLU)]
        assert {module.limit for module in experts} == {0.01}


def test_configs_with_and_without_it():
    config = MoEConfig(8, 6, 4, 2, swiglu_limit=10)
    assert config.swiglu_limit == 10.0
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(UserError, match=r"swiglu_limit=.*10 is usual, None is no limit"):
            dataclasses.replace(config, swiglu_limit=wrong)
    preset = ModelConfig.preset("nano").replace_moe(swiglu_limit=10.0)
    assert ModelConfig.from_dict(preset.to_dict()) == preset
    assert preset.dense_equivalent().swiglu_limit == 10.0
    old = ModelConfig.preset("nano").to_dict()
    del old["swiglu_limit"], old["moe"]["swiglu_limit"]
    assert ModelConfig.from_dict(old) == ModelConfig.preset("nano")
