"""The formulas count what the built model holds and what its matmuls do."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe import ModelConfig, MoETransformer
from minimoe.config import MTPConfig
from minimoe.cost import (
    count_params,
    forward_flops_per_token,
    kv_bytes_per_token,
    moe_layer_flops,
    mtp_flops_per_token,
    training_flops_per_token,
)
from minimoe.layers import HyperConnectionConfig
from minimoe.moe import RouterBias

NANO = ModelConfig.preset("nano")
CONFIGS = {
    "nano": NANO,
    "small": ModelConfig.preset("small"),
    "dense": NANO.dense_equivalent(),
    "untied": NANO.replace(tie_embeddings=False),
    "no shared expert": NANO.replace_moe(num_shared_experts=0),
    "two shared experts": NANO.replace_moe(num_shared_experts=2),
    "noisy": NANO.replace_moe(select="noisy_topk"),
    "hash": NANO.replace_moe(select="hash", hash_vocab_size=NANO.vocab_size),
}


def built(config: ModelConfig, kind: type[nnx.Variable]) -> dict[str, int]:
    """Sizes of the model's variables, without allocating them."""
    model = nnx.eval_shape(lambda: MoETransformer(config, rngs=nnx.Rngs(0)))
    leaves = nnx.to_flat_state(nnx.state(model, kind))
    return {"/".join(map(str, path)): math.prod(variable.shape) for path, variable in leaves}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_built_model(name):
    params = built(CONFIGS[name], nnx.Param)
    count = count_params(CONFIGS[name])
    assert count.total == sum(params.values())
    marks = {"embedding": "embed/", "head": "head/", "router": "router/", "routed": "experts/", "norms": "norm/"}
    for part, mark in (marks | {"attention": "attention/"}).items():
        assert getattr(count, part) == sum(size for path, size in params.items() if mark in path), part


def test_the_selection_bias_is_not_counted():
    assert not built(NANO, RouterBias).keys() & built(NANO, nnx.Param).keys()
    assert sum(built(NANO, RouterBias).values()) == NANO.num_layers * NANO.moe.num_experts


def test_active_parameters_leave_out_idle_experts():
    sparse, all_on = count_params(NANO), count_params(NANO.replace_moe(top_k=8))
    assert all_on.active == all_on.total
    expert = 3 * NANO.d_model * NANO.moe.d_expert
    assert sparse.total - sparse.active == NANO.num_layers * (8 - 2) * expert
    untied = count_params(NANO.replace(tie_embeddings=False))
    assert untied.total - sparse.total == NANO.vocab_size * NANO.d_model
    assert untied.active == sparse.active


def matmul_flops(jaxpr) -> int:
    """2 * (rows * columns * contracted) of every dot_general, those of inner programs included."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shared = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * shared * math.prod(eqn.outvars[0].aval.shape)
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            total += matmul_flops(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize("kind", ["dense", "every expert on", "untied"])
def test_flops_are_those_of_the_traced_matmuls(kind, tiny_config):
    """Short enough for one block of queries, which multiplies the whole square of L * L scores: that is added back."""
    length = 8
    changes = {
        "dense": {"moe": None, "d_ff": 10},
        "every expert on": {"moe": dataclasses.replace(tiny_config.moe, top_k=4, dispatch="loop")},
        "untied": {"moe": None, "d_ff": 10, "tie_embeddings": False},
    }
    config = dataclasses.replace(tiny_config, **changes[kind])
    graphdef, state = nnx.split(MoETransformer(config, rngs=nnx.Rngs(0)))
    traced = jax.make_jaxpr(lambda s, t: nnx.merge(graphdef, s)(t)[0])(state, jnp.zeros((1, length), jnp.int32))
    per_score = 4 * config.num_layers * config.attention.num_heads * config.attention.head_dim
    masked = per_score * (length**2 - length * (length + 1) // 2)
    assert matmul_flops(traced.jaxpr) == forward_flops_per_token(config, length) * length + masked


@pytest.mark.parametrize("streams", [1, 3])
def test_flops_of_the_head_for_multi_token_prediction_are_those_of_the_traced_matmuls(tiny_config, streams):
    length = 8
    config = dataclasses.replace(tiny_config, moe=None, d_ff=10, mtp=MTPConfig())
    if streams > 1:
        config = config.replace(residual=HyperConnectionConfig(streams=streams))
    graphdef, state = nnx.split(MoETransformer(config, rngs=nnx.Rngs(0)))

    def ahead(state, stream, tokens):
        return nnx.merge(graphdef, state).look_ahead(stream, tokens)[0]

    tokens = jnp.zeros((1, length), jnp.int32)
    stream = config.residual.enter(jnp.zeros((1, length, config.d_model)))
    masked = 4 * config.attention.num_heads * config.attention.head_dim * (length**2 - length * (length + 1) // 2)
    found = matmul_flops(jax.make_jaxpr(ahead)(state, stream, tokens).jaxpr)
    if streams > 1:
        # Equations 1 and 2 are sums and no matmuls: into each of two branches, from stream to stream, and back; at last one
        # stream is made of all.
        sums = 2 * (streams + streams**2 + streams) + streams
        found += length * 2 * sums * config.d_model
    assert found == pytest.approx(mtp_flops_per_token(config, length) * length + masked, rel=1e-12)
    assert mtp_flops_per_token(config.replace(mtp=None)) == 0


def test_dense_equivalent_costs_the_same_but_for_the_router():
    router = 2 * NANO.num_layers * NANO.d_model * NANO.moe.num_experts
    assert forward_flops_per_token(NANO) == forward_flops_per_token(NANO.dense_equivalent()) + router
    assert NANO.dense_equivalent().dense_equivalent() == NANO.dense_equivalent()


def test_training_costs_three_forwards():
    assert training_flops_per_token(NANO, 64) == 3 * forward_flops_per_token(NANO, 64)


def test_layer_flops_are_linear_in_tokens_and_active_experts(moe_config):
    one = moe_layer_flops(moe_config, 1)
    assert one == 2 * 8 * 4 + 3 * (2 * 8 * 6 * 3)  # router; two routed and one shared expert of three matrices
    np.testing.assert_allclose(moe_layer_flops(moe_config, 100), 100 * one)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cache_bytes_are_those_of_the_arrays(tiny_config, dtype):
    config = tiny_config.replace(dtype=dtype)
    cache = MoETransformer(config, rngs=nnx.Rngs(0)).init_cache(3, 5)
    held = sum(array.nbytes for layer in cache for array in (layer.k, layer.v))
    assert kv_bytes_per_token(config) * 3 * 5 == held
    assert kv_bytes_per_token(config, "bfloat16") * 3 * 5 == held // jnp.dtype(dtype).itemsize * 2
