"""8-bit matmuls: the three products against NumPy, the model against itself when nothing is rounded."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from minimoe import MoETransformer
from minimoe.quant.fp8_training import Fp8Experts, Fp8Linear, fp8_matmul, with_fp8_training
from minimoe.training import Recipe, lm_loss, make_optimizer, train_step

T, I, O = 130, 132, 6  # more than one tile of tokens and inputs, the last one short
RNG = np.random.default_rng(0)
X, W, DY = (RNG.normal(size=shape).astype(np.float32) for shape in ((T, I), (I, O), (T, O)))
X[3] = 0
X[:, 5] *= 300  # a channel of outliers
TOKENS = jnp.asarray(RNG.integers(19, size=(2, 7)), jnp.int32)


def identity(x, spec):
    return x


def tiles(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """e4m3 in tiles of this shape, tile by tile."""
    out = np.zeros_like(x)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            tile = x[i : i + rows, j : j + columns]
            if np.abs(tile).max() > 0:
                scale = np.float32(np.abs(tile).max() / 448)
                codes = (tile / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
                out[i : i + rows, j : j + columns] = codes * scale
    return out


@pytest.fixture(scope="module")
def products():
    """y, dx, dw of ours."""
    y, pull = jax.vjp(fp8_matmul, jnp.asarray(X), jnp.asarray(W))
    return {name: np.asarray(value) for name, value in zip(("y", "dx", "dw"), (y, *pull(jnp.asarray(DY))), strict=True)}


@pytest.mark.parametrize("name", ["y", "dx", "dw"])
def test_each_product_takes_e4m3_values_tiled_along_its_sum(name, products):
    x8, w8 = tiles(X, 1, 128), tiles(W, 128, 128)
    want = {
        "y": x8.astype(np.float64) @ w8,
        "dx": tiles(DY, 1, 128).astype(np.float64) @ w8.T,
        "dw": tiles(x8, 128, 1).T.astype(np.float64) @ tiles(DY, 128, 1),
    }[name]
    exact = {"y": X @ W, "dx": DY @ W.T, "dw": X.T @ DY}[name]
    np.testing.assert_allclose(products[name], want, rtol=1e-4, atol=1e-3 * np.abs(want).mean())
    error = np.abs(products[name] - exact).mean() / np.abs(exact).mean()
    assert 1e-3 < error < 0.1, "rounded, but not by much"


@nnx.jit
def loss_and_gradient(model, tokens):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(params):
        logits, _ = nnx.merge(graphdef, params, rest)(tokens)
        return lm_loss(logits[:, :-1], tokens[:, 1:], jnp.ones(tokens[:, 1:].shape, bool))

    return jax.value_and_grad(loss_fn)(params)


def arrays(state) -> dict[str, np.ndarray]:
    return {"/".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(state)}


@pytest.fixture(scope="module")
def plain(tiny_model):
    return loss_and_gradient(tiny_model, TOKENS)


def test_without_rounding_the_model_is_the_float_model(tiny_model, plain):
    loss, gradient = loss_and_gradient(with_fp8_training(tiny_model, identity), TOKENS)
    assert float(loss) == pytest.approx(float(plain[0]), rel=1e-5)
    found, want = arrays(gradient), arrays(plain[1])
    assert found.keys() == want.keys()
    for name in want:  # embeddings of 0.02 pass through a norm: their gradient has 50 times the rounding errors
        tolerance = 2e-5 * np.abs(want[name]).max()
        np.testing.assert_allclose(found[name], want[name], rtol=2e-4, atol=tolerance, err_msg=name)


def test_what_is_replaced_and_what_is_not(tiny_model):
    before = arrays(nnx.state(tiny_model))
    twin = with_fp8_training(tiny_model)
    block = twin.layers[1]
    linears = [
        block.attention.q_proj,
        block.attention.o_proj,
        block.ffn.shared.gate_up_proj,
        block.ffn.shared.down_proj,
    ]
    assert all(isinstance(layer, Fp8Linear) for layer in linears)
    assert isinstance(block.ffn.experts, Fp8Experts)
    for name in ("embed", "norm"):
        assert type(getattr(twin, name)) is type(getattr(tiny_model, name))
    assert type(block.ffn.router) is type(tiny_model.layers[1].ffn.router)
    assert isinstance(tiny_model.layers[1].attention.q_proj, nnx.Linear)
    recipe = Recipe(steps=2, batch_size=2, learning_rate=1e-2, warmup_steps=1)
    optimizer = nnx.Optimizer(twin, make_optimizer(recipe), wrt=nnx.Param)
    where = jnp.ones(TOKENS.shape, bool)
    metrics = train_step(twin, optimizer, TOKENS, TOKENS, where, jax.random.key(0), recipe=recipe)
    assert bool(metrics.ok)
    after = arrays(nnx.state(twin))
    assert after.keys() == before.keys()
    assert all((after[name] != before[name]).any() for name in after if "kernel" in name or "proj" in name)
    assert all(after[name].dtype == np.float32 for name in after if "rng" not in name)
    for name, value in arrays(nnx.state(tiny_model)).items():  # the step gave away the twin's arrays, not these
        np.testing.assert_array_equal(value, before[name])


def test_rounding_moves_loss_and_gradient_a_little(tiny_config):
    """On a dense model: a router may change its mind, and then nothing is near anything."""
    model = MoETransformer(tiny_config.dense_equivalent(), rngs=nnx.Rngs(0))
    twin = with_fp8_training(model)
    assert isinstance(twin.layers[0].ffn.down_proj, Fp8Linear)
    (want_loss, want), (loss, found) = (loss_and_gradient(each, TOKENS) for each in (model, twin))
    assert float(loss) != float(want_loss)
    assert float(loss) == pytest.approx(float(want_loss), rel=0.01)
    found, want = arrays(found), arrays(want)
    for name in want:
        cosine = (found[name] * want[name]).sum() / np.sqrt((found[name] ** 2).sum() * (want[name] ** 2).sum())
        assert 0.9 < cosine < 1 - 1e-9, name


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_capacity_drops_what_the_float_layer_drops(factor, moe_config, key):
    from minimoe.moe import MoELayer

    config = dataclasses.replace(moe_config, dispatch="capacity", capacity_factor=factor)
    layer = MoELayer(config, rngs=nnx.Rngs(0))
    x = jax.random.normal(key, (12, 8))
    want, routing = layer(x)
    assert (float(routing.dropped) > 0) == (factor < 1)
    stacks = layer.experts.gate_up_proj, layer.experts.down_proj
    layer.experts = Fp8Experts(*stacks, quantizer=identity)
    np.testing.assert_allclose(layer(x)[0], want, rtol=1e-4, atol=1e-5)
