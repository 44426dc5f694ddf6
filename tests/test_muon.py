"""Muon: singular values of 1, steps of one size, every matrix alone, and AdamW for what is no matrix."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from minimoe import MoETransformer
from minimoe.layers import HyperConnectionConfig
from minimoe.training import Recipe, optimizer_for, train_step
from minimoe.training.muon import (
    NEWTON_SCHULZ,
    muon,
    muon_labels,
    orthogonalize,
    scale_by_orthogonal_steps,
)

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def of_singular_values(values, n, m):
    left, _ = np.linalg.qr(RNG.normal(size=(n, n)))
    right, _ = np.linalg.qr(RNG.normal(size=(m, m)))
    return jnp.asarray(left[:, : len(values)] * values @ right[:, : len(values)].T, jnp.float32)


@pytest.mark.parametrize(("n", "m"), [(12, 12), (12, 20), (20, 12)])
def test_singular_values_end_within_a_thousandth_of_one(n, m):
    """From 3e-4 of the norm upwards, whatever the norm."""
    values = np.geomspace(3.46e-4, 1, 12)
    assert 3e-4 < values.min() / np.linalg.norm(values) < 3.1e-4
    found = jax.jit(orthogonalize)(7 * of_singular_values(values, n, m))
    np.testing.assert_allclose(np.linalg.svd(np.asarray(found), compute_uv=False), 1, atol=1e-3)


def test_eight_steps_alone_are_refused(monkeypatch):
    matrix = of_singular_values(np.geomspace(1e-3, 1, 12), 12, 12)
    monkeypatch.setattr("minimoe.training.muon.NEWTON_SCHULZ", NEWTON_SCHULZ[:8])
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(np.linalg.svd(np.asarray(orthogonalize(matrix)), compute_uv=False), 1, atol=1e-3)


def test_it_is_the_iteration_of_optax():
    """Without momentum `scale_by_muon` is that iteration and nothing else."""
    stack = normal(3, 6, 10)
    sizes = MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    own = scale_by_muon(NEWTON_SCHULZ, len(NEWTON_SCHULZ), beta=0.0, nesterov=False, weight_dimension_numbers=sizes)
    with jax.numpy_dtype_promotion("standard"):
        want, _ = own.update(stack, own.init(stack))
    np.testing.assert_allclose(orthogonalize(stack), want, atol=1e-5)


def steps_of(tree):
    return scale_by_orthogonal_steps().update(tree, optax.EmptyState())[0]


def test_steps_have_a_root_mean_square_of_18_hundredths():
    tree = {"router": normal(8, 4), "down_proj": normal(3, 5, 8), "gate_up_proj": normal(3, 8, 10)}
    for step in jax.tree.leaves(steps_of(tree)):
        np.testing.assert_allclose(jnp.sqrt(jnp.square(step).mean()), 0.18, rtol=2e-3)


def test_every_matrix_of_a_stack_is_treated_alone():
    """Experts commute with a permutation; gate and up do not see each other."""
    stack, order = normal(4, 8, 10), jnp.array([2, 0, 3, 1])
    steps = steps_of({"gate_up_proj": stack})["gate_up_proj"]
    np.testing.assert_allclose(steps_of({"gate_up_proj": stack[order]})["gate_up_proj"], steps[order], atol=1e-6)
    other = steps_of({"gate_up_proj": stack.at[0, :, 5:].multiply(-3.0).at[1].multiply(100.0)})["gate_up_proj"]
    np.testing.assert_allclose(other[0, :, :5], steps[0, :, :5], atol=1e-5)
    np.testing.assert_allclose(other[0, :, 5:], -steps[0, :, 5:], atol=1e-5)
    np.testing.assert_allclose(other[1:], steps[1:], atol=1e-5)
    alone = steps_of({"kernel": stack[0, :, :5]})["kernel"]
    np.testing.assert_allclose(steps[0, :, :5], alone, atol=1e-6)


def test_which_parameters_go_where(tiny_config):
    config = tiny_config.replace(tie_embeddings=False, residual=HyperConnectionConfig())
    model = nnx.eval_shape(lambda: MoETransformer(config, rngs=nnx.Rngs(0)))
    found = muon_labels(nnx.state(model, nnx.Param))
    adamw = {name for name, label in found.items() if label == "adamw"}
    vectors = {name for name in found if name.endswith((".scale", ".base"))}
    assert adamw == vectors | {"embed.embedding", "head.kernel"}
    assert {name.split(".", 2)[2] for name in found if name not in adamw and name.startswith("layers.0.")} == {
        *(f"attention.{p}_proj.kernel" for p in "qkvo"),
        *(f"{branch}_residual.kernel" for branch in ("attention", "ffn")),
        *("ffn.router.kernel", "ffn.experts.gate_up_proj", "ffn.experts.down_proj"),
        *("ffn.shared.gate_up_proj.kernel", "ffn.shared.down_proj.kernel"),
    }


def test_momentum_and_decay_are_those_of_the_report():
    """Three steps by hand: ``M = 0.95 M + G``, Nesterov, and ``W (1 - rate * decay)``."""
    rate, decay = 0.1, 0.5
    weight = {"kernel": normal(5, 7)}
    optimizer = muon(lambda count: rate, decay, optax.sgd(rate))
    state, momentum, want = optimizer.init(weight), np.zeros((5, 7)), np.asarray(weight["kernel"])
    for _ in range(3):
        gradient = {"kernel": normal(5, 7)}
        momentum = 0.95 * momentum + np.asarray(gradient["kernel"])
        u, _, v = np.linalg.svd(0.95 * momentum + np.asarray(gradient["kernel"]), full_matrices=False)
        want = want * (1 - rate * decay) - rate * 0.18 * np.sqrt(7) * u @ v
        updates, state = optimizer.update(gradient, state, weight)
        weight = optax.apply_updates(weight, updates)
        np.testing.assert_allclose(weight["kernel"], want, atol=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_trains_with_it(tiny_config, dtype):
    """With float32 masters where parameters are stored in bfloat16. A gradient that is not finite changes nothing."""
    config = tiny_config.replace(param_dtype=dtype, moe=dataclasses.replace(tiny_config.moe, param_dtype=dtype))
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    recipe = Recipe(steps=20, warmup_steps=0, learning_rate=0.02, optimizer="muon")
    optimizer = optimizer_for(model, recipe)
    tokens = jnp.asarray(RNG.integers(19, size=(2, 12)), jnp.int32)
    batch = tokens, jnp.roll(tokens, -1, axis=1), jnp.ones((2, 12), bool)
    losses = [float(train_step(model, optimizer, *batch, jax.random.key(0), recipe=recipe).loss) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.3
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(model.layers[0].ffn.experts))} == {dtype}


def test_recipes_from_before_it_are_read():
    old = Recipe().to_dict()
    assert old.pop("optimizer") == "adamw"
    assert Recipe.from_dict(old) == Recipe()
    assert Recipe.preset("nano", optimizer="muon").to_dict()["optimizer"] == "muon"
