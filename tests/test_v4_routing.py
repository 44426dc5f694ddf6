"""DeepSeek-V4's routing: hash-routed first layers, square-root-softplus affinities, a bias that only selects."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe import LayerConfig, MoEConfig, MoETransformer
from minimoe.inference.generate import generate
from minimoe.moe.routing import Router
from minimoe.training import Recipe, make_optimizer, train_step

CONFIG = MoEConfig(8, 6, 5, 3, score="sqrtsoftplus", routed_scaling_factor=1.5)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(19, size=24), jnp.int32)
X = jnp.asarray(np.random.default_rng(1).normal(size=(24, 8)), jnp.float32)


def routed(select):
    """What the router says, and what it computed from; its bias is large and uneven."""
    config = dataclasses.replace(CONFIG, select=select, hash_vocab_size=19)
    router = Router(config, kernel_init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(0))
    router.bias[...] = jnp.array([3.0, 0.0, -1.0, 0.5, 0.0])
    affinities = np.sqrt(np.log1p(np.exp(np.asarray(X, np.float64) @ np.asarray(router.kernel[...], np.float64))))
    return router(X, tokens=TOKENS), affinities, router


def check_weights(weights, experts, affinities):
    """``1.5 * s_i / sum of the chosen s``, from affinities without the bias."""
    for row, chosen, s in zip(np.asarray(weights), np.asarray(experts), affinities, strict=True):
        np.testing.assert_allclose(row, [1.5 * s[e] / sum(s[i] for i in chosen) for e in chosen], rtol=1e-4)


def test_a_hash_layer_looks_experts_up_and_weighs_them_by_the_learned_router():
    routing, affinities, router = routed("hash")
    np.testing.assert_array_equal(routing.experts, np.asarray(router.table[...])[np.asarray(TOKENS)])
    check_weights(routing.weights, routing.experts, affinities)


def test_top_k_is_chosen_with_the_bias_and_weighed_without():
    routing, affinities, router = routed("topk")
    order = np.argsort(-(affinities + np.asarray(router.bias[...])), axis=1)[:, :3]
    np.testing.assert_array_equal(routing.experts, order)
    check_weights(routing.weights, routing.experts, affinities)


@pytest.mark.parametrize("select", ["hash", "topk"])
def test_uniform_weights_and_a_bias_in_them_are_refused(select):
    routing, affinities, router = routed(select)
    chosen = np.take_along_axis(affinities + np.asarray(router.bias[...]), np.asarray(routing.experts), axis=1)
    with_bias = 1.5 * chosen / chosen.sum(axis=1, keepdims=True)
    for wrong in (np.full(routing.weights.shape, 1.5 / 3), with_bias, routing.weights / 1.5):
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            check_weights(wrong, routing.experts, affinities)


@pytest.fixture(scope="module")
def v4_like(tiny_config):
    """One hash-routed layer, then two that choose by affinity and bias."""
    moe = dataclasses.replace(tiny_config.moe, score="sqrtsoftplus", routed_scaling_factor=1.5, swiglu_limit=10.0)
    hashed = dataclasses.replace(moe, select="hash", hash_vocab_size=19)
    return tiny_config.replace(num_layers=3, moe=moe, first_layers=(LayerConfig(moe=hashed),))


def test_a_model_with_hash_routed_first_layers_trains_and_generates(v4_like):
    model = MoETransformer(v4_like, rngs=nnx.Rngs(0))
    kernel, table = (np.array(getattr(model.layers[0].ffn.router, name)[...]) for name in ("kernel", "table"))
    recipe = Recipe(steps=10, warmup_steps=0, learning_rate=0.01, router_bias_rate=0.1)
    optimizer = nnx.Optimizer(model, make_optimizer(recipe), wrt=nnx.Param)
    batch = TOKENS.reshape(2, 12), jnp.roll(TOKENS, -1).reshape(2, 12), jnp.ones((2, 12), bool)
    metrics = [train_step(model, optimizer, *batch, jax.random.key(0), recipe=recipe) for _ in range(10)]
    losses = [float(m.loss) for m in metrics]
    assert losses[-1] < losses[0] - 0.15
    router = model.layers[0].ffn.router
    assert np.abs(np.asarray(router.kernel[...]) - kernel).max() > 1e-3  # the weights are learned, the choice is not
    np.testing.assert_array_equal(router.table[...], table)
    np.testing.assert_array_equal(router.bias[...], 0)  # no bias where none is read
    assert min(float(jnp.abs(layer.ffn.router.bias[...]).max()) for layer in (*model.layers,)[1:]) > 0

    prompt = TOKENS[:7].reshape(1, 7)
    found = generate(model, prompt, 6, temperature=0)
    text = jnp.concatenate([prompt, found[:, -6:]], axis=1)
    logits = jax.jit(lambda model: model(text)[0])(model)
    np.testing.assert_array_equal(text[0, 7:], logits[0, 6:12].argmax(axis=-1))
