"""The layer as a whole: against loops, and by laws."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe import MoEConfig
from minimoe.moe import AFFINITIES, DISPATCHERS, MoELayer, RouterBias, with_dispatch

T, D, F, E, K = 13, 8, 6, 4, 2
CONFIG = MoEConfig(d_model=D, d_expert=F, num_experts=E, top_k=K, num_shared_experts=2, score="sigmoid")
BIAS = jnp.array([0.2, -0.1, 0.05, -0.15])


@nnx.jit
def run(layer, x, where):
    return layer(x, where=where)


def make(config: MoEConfig = CONFIG) -> MoELayer:
    """With a router wide awake, so that no choice hangs on rounding."""
    layer = MoELayer(config, rngs=nnx.Rngs(0))
    layer.router.kernel[...] = jax.random.normal(jax.random.key(1), layer.router.kernel.shape)
    layer.router.bias[...] = BIAS[: config.num_experts]
    return layer


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (T, D))


EVERYONE = jnp.ones(T, bool)


def by_loops(layer: MoELayer, x) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    config, x = layer.config, np.asarray(x)
    kwargs = {"score": config.score, "normalize": config.normalize_weights, "scale": config.routed_scaling_factor}
    logits = x @ np.asarray(layer.router.kernel[...])
    experts, weights, _ = oracles.route(logits, np.asarray(layer.router.bias[...]), config.top_k, **kwargs)
    stacked = np.asarray(layer.experts.gate_up_proj[...]), np.asarray(layer.experts.down_proj[...])
    y = oracles.moe_forward(x, experts, weights, *stacked)
    if layer.shared is not None:
        shared = np.asarray(layer.shared.gate_up_proj.kernel[...]), np.asarray(layer.shared.down_proj.kernel[...])
        y = y + np.stack([oracles.swiglu_ffn(row, *shared) for row in x])
    return y, experts, weights


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"score": "softmax", "num_shared_experts": 0},
        {"score": "sqrtsoftplus", "routed_scaling_factor": 2.5},
        {"normalize_weights": False, "top_k": 4},
        {"num_experts": 1, "top_k": 1},
    ],
    ids=str,
)
def test_layer_matches_the_loops(changes, x):
    layer = make(dataclasses.replace(CONFIG, **changes))
    y, routing = run(layer, x, EVERYONE)
    want, experts, weights = by_loops(layer, x)
    np.testing.assert_array_equal(routing.experts, experts)
    np.testing.assert_allclose(routing.weights, weights, rtol=1e-5)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(routing.load, oracles.load(experts, layer.config.num_experts))
    assert float(routing.dropped) == 0.0


@pytest.mark.parametrize("dispatch", DISPATCHERS)
def test_with_dispatch_changes_no_answer(dispatch, x):
    layer = make()
    twin = with_dispatch(layer, dispatch)
    assert (twin.config.dispatch, layer.config.dispatch) == (dispatch, "dropless")
    np.testing.assert_allclose(run(twin, x, EVERYONE)[0], run(layer, x, EVERYONE)[0], rtol=1e-4, atol=1e-6)


def test_records_are_shaped_and_typed_as_documented(x):
    y, routing = run(make(), x, EVERYONE)
    shapes = {name: (a.shape, a.dtype.name) for name, a in vars(routing).items()}
    assert y.shape == (T, D)
    assert shapes == {
        "experts": ((T, K), "int32"),
        "weights": ((T, K), "float32"),
        "probs": ((T, E), "float32"),
        "logits": ((T, E), "float32"),
        "load": ((E,), "float32"),
        "dropped": ((), "float32"),
    }


def test_masked_tokens_neither_count_nor_get_routed_output(x):
    layer, where = make(), np.arange(T) % 3 != 0
    y, routing = run(layer, x, jnp.asarray(where))
    full, full_routing = run(layer, x, EVERYONE)
    np.testing.assert_array_equal(routing.load, oracles.load(full_routing.experts, E, where))
    np.testing.assert_array_equal(np.asarray(routing.weights)[~where], 0.0)
    np.testing.assert_allclose(y[where], full[where], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[~where], layer.shared(x)[~where], rtol=1e-5, atol=1e-6)


def test_masked_tokens_get_no_gradient_through_the_experts(x):
    layer, where = make(dataclasses.replace(CONFIG, num_shared_experts=0)), np.arange(T) % 3 != 0
    slope = jax.jit(jax.grad(lambda x: (layer(x, where=jnp.asarray(where))[0] ** 2).sum()))(x)
    assert (np.asarray(slope)[~where] == 0).all()
    assert (np.abs(np.asarray(slope)[where]).sum(axis=1) > 0).all()


def test_permuting_tokens_permutes_outputs(x):
    layer, order = make(), np.random.default_rng(0).permutation(T)
    y, routing = run(layer, x, EVERYONE)
    moved, moved_routing = run(layer, x[order], EVERYONE)
    np.testing.assert_allclose(moved, y[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(moved_routing.experts, routing.experts[order])


def test_names_of_experts_do_not_matter(x):
    layer, order = make(), np.array([2, 0, 3, 1])
    relabelled = make()
    relabelled.router.kernel[...] = layer.router.kernel[...][:, order]
    relabelled.router.bias[...] = layer.router.bias[...][order]
    relabelled.experts.gate_up_proj[...] = layer.experts.gate_up_proj[...][order]
    relabelled.experts.down_proj[...] = layer.experts.down_proj[...][order]
    y, routing = run(layer, x, EVERYONE)
    renamed, renamed_routing = run(relabelled, x, EVERYONE)
    np.testing.assert_allclose(renamed, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(order[np.asarray(renamed_routing.experts)], routing.experts)
    np.testing.assert_array_equal(renamed_routing.load, routing.load[order])


def test_uniform_shift_of_the_bias_changes_nothing(x):
    layer, shifted = make(), make()
    shifted.router.bias[...] = layer.router.bias[...] + 0.5
    for a, b in zip(*(jax.tree.leaves(run(m, x, EVERYONE)) for m in (layer, shifted)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("score", AFFINITIES)
def test_identical_experts_are_one_dense_layer(score, x):
    """Weights that sum to 1 over copies of one expert: the router cannot matter."""
    layer = make(dataclasses.replace(CONFIG, score=score, num_shared_experts=0))
    for param in (layer.experts.gate_up_proj, layer.experts.down_proj):
        param[...] = jnp.broadcast_to(param[...][:1], param.shape)
    one = np.asarray(layer.experts.gate_up_proj[...][0]), np.asarray(layer.experts.down_proj[...][0])
    want = [oracles.swiglu_ffn(row, *one) for row in np.asarray(x)]
    np.testing.assert_allclose(run(layer, x, EVERYONE)[0], want, rtol=1e-4, atol=1e-5)


def test_scaling_scales_the_routed_experts_only(x):
    layer, scaled = make(), make(dataclasses.replace(CONFIG, routed_scaling_factor=2.0))
    shared = np.asarray(layer.shared(x))
    y, doubled = (np.asarray(run(m, x, EVERYONE)[0]) for m in (layer, scaled))
    np.testing.assert_allclose(doubled - shared, 2 * (y - shared), rtol=1e-4, atol=1e-5)


def test_the_bias_is_state_and_not_a_parameter():
    layer = make()
    params = [path for path, _ in nnx.to_flat_state(nnx.state(layer, nnx.Param))]
    biases = [path for path, _ in nnx.to_flat_state(nnx.state(layer, RouterBias))]
    assert biases == [("router", "bias")]
    assert ("router", "bias") not in params
    assert ("router", "kernel") in params


def test_the_router_learns_through_the_combine_weights(x):
    layer = make()
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    def loss(params):
        return (nnx.merge(graphdef, params, rest)(x)[0] ** 2).mean()

    grads = dict(nnx.to_flat_state(jax.jit(jax.grad(loss))(params)))
    for path, grad in grads.items():
        assert float(jnp.abs(grad[...]).max()) > 0, path
    assert ("router", "bias") not in grads


def test_bfloat16_experts_keep_a_float32_router(x):
    layer = make(dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype="bfloat16"))
    y, routing = run(layer, x, EVERYONE)
    assert y.dtype == jnp.float32, "the dtype that came in"
    assert layer.experts.down_proj.dtype == jnp.bfloat16
    assert layer.router.kernel.dtype == routing.logits.dtype == routing.weights.dtype == jnp.float32
