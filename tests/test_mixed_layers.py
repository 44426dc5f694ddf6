"""A model whose layers differ, end to end: a hash-routed layer of two experts, a dense one, one of four experts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from flax import nnx

from minimoe import LayerConfig, MoETransformer
from minimoe.cost import count_params
from minimoe.training import Recipe, make_optimizer, train_step
from minimoe.training.evaluate import eval_step


def test_layers_that_differ_train_and_are_evaluated(tiny_config):
    hashed = dataclasses.replace(tiny_config.moe, num_experts=2, top_k=1, select="hash", hash_vocab_size=19)
    config = tiny_config.replace(num_layers=3, first_layers=(LayerConfig(moe=hashed), LayerConfig(d_ff=10)))
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    assert count_params(config).total == sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    tokens = jnp.asarray(np.random.default_rng(0).integers(19, size=(2, 8)), jnp.int32)
    output = jax.jit(lambda model: model.forward(tokens))(model)
    weights = {"/".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(nnx.state(model))}
    want = [oracles.transformer(weights, row, config) for row in tokens]
    np.testing.assert_allclose(output.logits, want, rtol=1e-3, atol=1e-5)
    assert output.hidden.shape == (2, 8, 8)

    where = jnp.ones((2, 8), bool)
    _, load = eval_step(model, tokens, tokens, where)
    assert load.shape == (2, 2, 4)
    np.testing.assert_array_equal(np.isnan(load), [[[False, False, True, True], [False] * 4]] * 2)
    np.testing.assert_array_equal(jnp.nansum(load, axis=-1), [[8, 16]] * 2)

    recipe = Recipe(steps=2, warmup_steps=0, router_bias_rate=0.1)
    optimizer = nnx.Optimizer(model, make_optimizer(recipe), wrt=nnx.Param)
    metrics = train_step(model, optimizer, tokens, tokens, where, jax.random.key(0), recipe=recipe)
    assert bool(metrics.ok)
    np.testing.assert_array_equal(jnp.nansum(metrics.load, axis=-1), [16, 32])
    assert float(jnp.abs(model.layers[2].ffn.router.bias[...]).max()) > 0
