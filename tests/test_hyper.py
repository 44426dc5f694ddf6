"""Hyper-connections: against plain loops, doubly stochastic, one plain residual at first, and in a whole model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe import MoETransformer, UserError
from minimoe.config import ModelConfig
from minimoe.cost import count_params, forward_flops_per_token
from minimoe.layers import HyperConnectionConfig, hyper

N, D = 3, 5
CONFIG = HyperConnectionConfig(streams=N, sinkhorn_iters=20)
RNG = np.random.default_rng(0)
STREAMS = jnp.asarray(RNG.normal(size=(2, 4, N, D)), jnp.float32)
OUTPUT = jnp.asarray(RNG.normal(size=(2, 4, D)), jnp.float32)


@pytest.fixture(scope="module")
def weights():
    """Large and without any symmetry: what starts near the identity hides a transposition."""
    sizes = {"kernel": (N * D, CONFIG.outputs), "base": (CONFIG.outputs,), "scale": (3,)}
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}


def run(weights, streams, output, config=CONFIG):
    """What the branch reads, and the streams after it."""
    module = config.build(D, rngs=nnx.Rngs(0))
    for name, value in weights.items():
        getattr(module, name)[...] = value
    x, kept = module.read(streams)
    return x, module.write(streams, output, kept)


def against_the_loop(found):
    """Whether ``found(weights, streams, output)`` is what the loops of the oracle give, for every token."""

    def check(weights):
        x, new = found(weights, STREAMS, OUTPUT)
        for place in np.ndindex(2, 4):
            want = oracles.hyper_connection(STREAMS[place], OUTPUT[place], weights, N, 20)
            np.testing.assert_allclose(x[place], want[0], rtol=2e-4, atol=2e-5)
            np.testing.assert_allclose(new[place], want[1], rtol=2e-4, atol=2e-5)

    return check


def test_a_branch_reads_and_writes_as_the_loops_do(weights):
    against_the_loop(jax.jit(run))(weights)


def test_a_transposed_b_and_a_single_normalisation_are_refused(weights, monkeypatch):
    once = HyperConnectionConfig(streams=N, sinkhorn_iters=1)
    with pytest.raises(AssertionError):
        against_the_loop(jax.jit(lambda *a: run(*a, config=once)))(weights)
    mix = hyper.mix_streams
    monkeypatch.setattr(hyper, "mix_streams", lambda comb, streams: mix(jnp.swapaxes(comb, -1, -2), streams))
    with pytest.raises(AssertionError):
        against_the_loop(jax.jit(lambda *a: run(*a)))(weights)  # a function of its own: traced with what is patched


def test_its_gradient_is_that_of_the_loops(weights):
    """Along a random direction of every weight and input, against a central difference in float64."""
    leaves = weights | {"streams": STREAMS, "output": OUTPUT}
    direction = {name: RNG.normal(size=value.shape).astype(np.float32) for name, value in leaves.items()}
    shares = [RNG.normal(size=shape).astype(np.float32) for shape in (OUTPUT.shape, STREAMS.shape)]

    def total(leaves):
        own = {name: leaves[name] for name in weights}
        return sum(
            (share * found).sum()
            for share, found in zip(shares, run(own, leaves["streams"], leaves["output"]), strict=True)
        )

    def loops(step):
        moved = {name: np.float64(value) + step * direction[name] for name, value in leaves.items()}
        tokens = [
            oracles.hyper_connection(moved["streams"][place], moved["output"][place], moved, N, 20)
            for place in np.ndindex(2, 4)
        ]
        parts = zip(shares, map(np.stack, zip(*tokens, strict=True)), strict=True)
        return sum((share.reshape(found.shape) * found).sum() for share, found in parts)

    gradient = jax.jit(jax.grad(total))(leaves)
    found = sum(np.vdot(gradient[name], direction[name]) for name in leaves)
    np.testing.assert_allclose(found, (loops(1e-5) - loops(-1e-5)) / 2e-5, rtol=1e-3)


def test_b_is_doubly_stochastic():
    """Columns, normalised last, to rounding and eps; rows to 1e-4 where logits are small."""
    logits = jnp.asarray(np.random.default_rng(1).normal(scale=0.5, size=(2000, 4, 4)), jnp.float32)
    found = np.asarray(hyper.sinkhorn(logits, 20))
    assert found.min() > 0
    np.testing.assert_allclose(found.sum(axis=-2), 1, atol=3e-6)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-4)
    assert np.abs(np.asarray(hyper.sinkhorn(logits, 1)).sum(axis=-1) - 1).max() > 0.1


def test_streams_begin_as_one_plain_residual(tiny_config):
    """The same blocks with and without streams: at first A is 1/n, C is 1, and the streams are equal."""
    plain = MoETransformer(tiny_config, rngs=nnx.Rngs(0))
    streams = MoETransformer(tiny_config.replace(residual=HyperConnectionConfig()), rngs=nnx.Rngs(1))
    nnx.update(streams, nnx.state(plain))
    tokens = jnp.asarray(RNG.integers(19, size=(2, 8)), jnp.int32)
    want, found = (jax.jit(lambda model: model(tokens)[0])(model) for model in (plain, streams))
    np.testing.assert_allclose(found, want, atol=0.03 * float(want.std()))
    assert float(jnp.abs(found - want).max()) > 1e-6


def test_the_end_is_a_weighted_sum_of_the_streams():
    end = CONFIG.build_leave(D, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(end(STREAMS), STREAMS.mean(axis=2), atol=0.02)
    end.base[...] = jnp.array([50.0, -50.0, -50.0])
    np.testing.assert_allclose(end(STREAMS), STREAMS[:, :, 0], rtol=1e-4, atol=1e-4)
    end.base[...], end.scale[...] = jnp.zeros(3), jnp.ones(1)
    flat = np.asarray(STREAMS).reshape(2, 4, -1)
    raw = flat / np.sqrt((flat**2).mean(axis=-1, keepdims=True)) @ np.asarray(end.kernel[...])
    np.testing.assert_allclose(
        end(STREAMS), np.einsum("bln,blnd->bld", 1 / (1 + np.exp(-raw)), STREAMS), rtol=1e-3, atol=1e-4
    )


def test_counts_are_those_of_the_model_and_of_the_published_ones(tiny_config):
    config = tiny_config.replace(residual=HyperConnectionConfig(streams=3))
    model = nnx.eval_shape(lambda: MoETransformer(config, rngs=nnx.Rngs(0)))
    assert count_params(config).total == sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    v4 = HyperConnectionConfig(streams=4)
    for layers, width, billions in ((43, 4096, 0.034), (61, 7168, 0.084)):
        assert v4.num_params(width) == 24 * 4 * width + 24 + 3
        assert round((2 * layers * v4.num_params(width) + v4.leave_params(width)) / 1e9, 3) == billions
    more = forward_flops_per_token(config) - forward_flops_per_token(tiny_config)
    a_branch = 2 * 3 * 8 * 15 + 2 * 3 * 8 + 2 * 3 * 3 * 8 + 2 * 3 * 8  # generator, equation 1, B X, C y
    assert more == 2 * config.num_layers * a_branch + 2 * 3 * 8 * 3 + 2 * 3 * 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_with_streams_decodes_as_it_reads(tiny_config, dtype):
    config = tiny_config.replace(residual=HyperConnectionConfig(), dtype=dtype, param_dtype=dtype)
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    assert {model.layers[0].ffn_residual.kernel.dtype, model.leave.base.dtype} == {jnp.dtype("float32")}
    tokens = jnp.asarray(RNG.integers(19, size=(1, 6)), jnp.int32)
    want = jax.jit(lambda model, tokens: model(tokens)[0])(model, tokens)
    extend = jax.jit(lambda model, tokens, cache: model.extend(tokens, cache)[::2])
    first, cache = extend(model, tokens[:, :3], model.init_cache(1, 6))
    rest, _ = extend(model, tokens[:, 3:], cache)
    tolerance = {"float32": 1e-5, "bfloat16": 0.02}[dtype]
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), want, atol=tolerance)


def test_a_config_with_streams_goes_through_a_file(tiny_config):
    config = tiny_config.replace(residual=HyperConnectionConfig(streams=2, sinkhorn_iters=5))
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["residual"]["kind"] == "hyper"
    for values, said in (
        ({"streams": 1}, "nothing to mix"),
        ({"sinkhorn_iters": 0}, "sinkhorn_iters"),
        ({"eps": 2.0}, "eps"),
    ):
        with pytest.raises(UserError, match=said):
            HyperConnectionConfig(**values)
