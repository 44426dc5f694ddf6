"""Values and gradients at the edge: affinities that vanish, nobody counted, infinite logits, weights of exactly 0."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe import MoEConfig
from minimoe.moe import (
    AFFINITIES,
    DISPATCHERS,
    MoELayer,
    Router,
    combine_weights,
    dead_experts,
    global_balance_loss,
    global_max_violation,
    importance_loss,
    load_balance_loss,
    load_cv,
    load_entropy,
    max_violation,
    mutual_information,
    normalized_weights,
    row_shares,
    sequence_balance_loss,
    straggler_factor,
    z_loss,
)
from minimoe.moe.capacity import drop_rate

GAPS = [0.0, 20.0, 46.0, 88.0, 200.0, 1e4]
FACTOR = np.array([1.0, 2.0, -0.5])


def log_affinity(logits, score):
    """The logarithm of the affinity up to a constant, and its slope; float64."""
    logits = np.asarray(logits, np.float64)
    if score == "softmax":
        return logits, np.ones_like(logits)
    if score == "sigmoid":
        return -np.logaddexp(0, -logits), 1 / (1 + np.exp(np.minimum(logits, 700)))
    low = logits < -30  # softplus(x) = exp(x)
    near = np.where(low, 0, logits)
    softplus = np.logaddexp(0, near)
    return np.where(low, logits, np.log(softplus)) / 2, np.where(low, 1, oracles.sigmoid(near) / softplus) / 2


def weights_and_slope(row, chosen, score):
    """Weights of one token, and the gradient of ``weights @ FACTOR`` by its logits."""
    logs, slopes = log_affinity(row, score)
    logs, slopes = logs[chosen], slopes[chosen]
    weights = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
    slope = np.zeros(len(row))
    slope[chosen] = weights * (FACTOR - weights @ FACTOR) * slopes
    return weights, slope


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("score", AFFINITIES)
def test_normalised_weights_and_gradients_at_any_gap(score, gap):
    """A bias overrules the affinities: the chosen experts lie ``gap`` below the best one, and near each other."""
    row = np.array([0.0, -gap, -gap - 1.0, -gap + 0.5], np.float32)
    chosen = np.array([1, 2, 3])
    want, want_slope = weights_and_slope(row, chosen, score)

    def total(row):
        weights = normalized_weights(row[None], jnp.asarray(chosen[None], jnp.int32), score)
        return weights[0] @ jnp.asarray(FACTOR, jnp.float32), weights[0]

    (_, found), slope = jax.value_and_grad(total, has_aux=True)(jnp.asarray(row))
    np.testing.assert_allclose(found, want, rtol=1e-5)
    np.testing.assert_allclose(slope, want_slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("score", AFFINITIES)
def test_combine_weights_from_affinities_are_right_while_float32_holds_them(score, gap):
    row = jnp.array([[0.0, -gap, -gap - 1.0, -gap + 0.5]])
    chosen = jnp.array([[1, 2, 3]])

    def total(row):
        weights = combine_weights(AFFINITIES[score](row), chosen)
        return weights[0] @ jnp.asarray(FACTOR, jnp.float32), weights[0]

    (_, found), slope = jax.value_and_grad(total, has_aux=True)(row)
    assert bool(jnp.isfinite(slope).all())
    if gap < 60:
        want, want_slope = weights_and_slope(np.asarray(row[0]), np.asarray(chosen[0]), score)
        np.testing.assert_allclose(found, want, rtol=1e-5)
        np.testing.assert_allclose(slope[0], want_slope, rtol=1e-4, atol=1e-6)
    else:
        assert bool(((found >= 0) & (found <= 1)).all())


def test_a_divisor_of_1e_20_more_is_within_rounding():
    """What Transformers and DeepSeek compute, for affinities as they occur."""
    probs = np.random.default_rng(0).uniform(1e-6, 1, (200, 8)).astype(np.float32)
    np.testing.assert_allclose(
        row_shares(jnp.asarray(probs)), probs / (probs.sum(axis=1, keepdims=True) + 1e-20), rtol=3e-7
    )


@pytest.mark.parametrize("score", AFFINITIES)
@pytest.mark.parametrize("select", ["topk", "hash"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_router_has_finite_gradients_at_large_logits(score, select, top_k):
    """K = 1 has a weight of 1 and no gradient; K = E normalises over all; the widest gap is some thousands."""
    config = MoEConfig(8, 4, 4, top_k, score=score, select=select, hash_vocab_size=5)
    router = Router(config, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (6, 8))
    tokens = jnp.arange(6, dtype=jnp.int32) % 5

    graphdef, params, rest = nnx.split(router, nnx.Param, ...)

    def total(params):
        routing = nnx.merge(graphdef, params, rest)(x, tokens=tokens)
        factor = jnp.arange(6 * top_k, dtype=jnp.float32).reshape(6, top_k)
        losses = load_balance_loss(routing.probs, routing.experts) + 1e-9 * z_loss(routing.logits)
        return (routing.weights * factor).sum() + (losses if top_k > 1 else 0.0), routing.weights

    for size in (1.0, 40.0, 1e3):
        params["kernel"][...] = size * jax.random.normal(jax.random.key(2), (8, 4))
        (_, weights), slopes = jax.value_and_grad(total, has_aux=True)(params)
        slope = slopes["kernel"][...]
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)
        assert bool(jnp.isfinite(slope).all())
        if top_k == 1:
            np.testing.assert_array_equal(weights, 1.0)
            np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize("score", AFFINITIES)
@pytest.mark.parametrize("infinite", [[np.inf, 0, 0, 0], [-np.inf] * 4, [np.inf] * 4, [np.inf, -np.inf, 0, 1]], ids=str)
def test_infinite_logits_give_numbers(score, infinite):
    row = jnp.asarray([infinite], jnp.float32)

    def total(row):
        probs = AFFINITIES[score](row)
        weights = normalized_weights(row, jnp.array([[0, 1]]), score)
        raw = combine_weights(jnp.minimum(probs, 9.0), jnp.array([[0, 1]]))
        return (weights * jnp.array([[1.0, 2.0]])).sum() + raw[0, 0] + load_balance_loss(probs / 9, jnp.array([[0, 1]]))

    value, slope = jax.value_and_grad(total)(row)
    assert np.isfinite(value)
    assert bool(jnp.isfinite(slope).all())


# Nobody counts


def losses_of(logits, where):
    """Every loss on the same routing, weighted so that none cancels."""
    probs, experts = jax.nn.softmax(logits), jnp.tile(jnp.array([[0, 2]]), (6, 1))
    segments = jnp.repeat(jnp.arange(3, dtype=jnp.int32), 2)
    load = jnp.where(where, 1.0, 0.0).sum() * jnp.array([1.0, 0.0, 1.0, 0.0])
    return jnp.stack([
        load_balance_loss(probs, experts, where=where),
        sequence_balance_loss(probs, experts, segments, 3, where=where),
        global_balance_loss(probs, load, where=where),
        importance_loss(combine_weights(probs, experts), experts, 4, where=where),
        z_loss(logits, where=where),
    ])  # fmt: skip


@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf, 1e30], ids=str)
@pytest.mark.parametrize("real", [0, 1, 4])
def test_padding_reaches_no_loss_and_no_gradient(real, garbage):
    """Whatever stands in masked rows, all rows masked included: values and slopes are those of the real rows."""
    logits = jax.random.normal(jax.random.key(0), (6, 4))
    where = jnp.arange(6) < real
    spoilt = jnp.where(where[:, None], logits, garbage)
    slopes = jax.jacobian(losses_of)
    np.testing.assert_allclose(losses_of(spoilt, where), losses_of(logits, where), rtol=1e-6)
    np.testing.assert_allclose(slopes(spoilt, where)[:, :real], slopes(logits, where)[:, :real], rtol=1e-5, atol=1e-7)
    rest = np.asarray(jax.jacobian(functools.partial(row_losses, where=where))(spoilt))[:, real:]
    np.testing.assert_array_equal(rest, 0.0)
    if not real:
        np.testing.assert_array_equal(losses_of(spoilt, where), 0.0)


def row_losses(values, where):
    """As functions of what they are given, without the softmax before."""
    experts = jnp.tile(jnp.array([[0, 2]]), (6, 1))
    segments = jnp.repeat(jnp.arange(3, dtype=jnp.int32), 2)
    return jnp.stack([
        load_balance_loss(values, experts, where=where),
        sequence_balance_loss(values, experts, segments, 3, where=where),
        global_balance_loss(values, jnp.ones(4), where=where),
        importance_loss(values[:, :2], experts, 4, where=where),
        z_loss(values, where=where),
    ])  # fmt: skip


@pytest.mark.parametrize("load", [[0.0] * 4, [4.0] * 4, [9.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.0, 0.0]], ids=str)
def test_measures_have_finite_values_and_slopes_at_any_load(load):
    load = jnp.array(load)
    measures = [max_violation, load_cv, load_entropy, dead_experts, functools.partial(straggler_factor, num_devices=2)]
    measures += [lambda a: global_max_violation(a[None]), lambda a: mutual_information(a.reshape(2, 2))]
    measures += [functools.partial(drop_rate, capacity=1)]
    for measure in measures:
        value, slope = jax.value_and_grad(measure)(load)
        assert np.isfinite(value)
        assert bool(jnp.isfinite(slope).all()), measure
    if not load.any():
        values = [float(measure(load)) for measure in (max_violation, load_cv, load_entropy)]
        assert values == [0.0, 0.0, 0.0]
        assert not np.signbit(values).any()


# Which pairs count is not a matter of their weight


@pytest.mark.parametrize("dispatch", DISPATCHERS)
def test_a_weight_of_exactly_0_gets_its_gradient(dispatch):
    rng = np.random.default_rng(0)
    shapes = ((20, 8), (4, 8, 12), (4, 6, 8), (20, 8))
    x, gate_up, down, cotangent = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    experts = jnp.asarray(np.stack([rng.permutation(4)[:2] for _ in range(20)]), jnp.int32)
    weights = jnp.asarray(rng.uniform(size=(20, 2)), jnp.float32).at[::2, 0].set(0.0)
    used = jnp.asarray(rng.uniform(size=(20, 2)) < 0.7)
    weights = jnp.where(used, weights, 0.0)

    def total(weights, dispatch):
        weights = jnp.where(used, weights, 0.0)
        return (DISPATCHERS[dispatch](x, experts, weights, gate_up, down, used=used) * cotangent).sum()

    found, want = (jax.grad(total)(weights, name) for name in (dispatch, "loop"))
    zero = np.asarray(weights == 0) & np.asarray(used)
    assert zero.sum() > 3
    assert (np.abs(np.asarray(want)[zero]) > 0).all()
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_a_weight_of_0_takes_a_slot_and_padding_does_not():
    """Two slots. The first two tokens are used with a weight of 0, or they are padding."""
    x, experts, weights = jnp.ones((4, 2)), jnp.zeros((4, 1), jnp.int32), jnp.array([[0.0], [0.0], [1.0], [1.0]])
    run = functools.partial(DISPATCHERS["capacity"], x, experts, weights, jnp.ones((1, 2, 4)), jnp.ones((1, 2, 2)))
    everyone, padded = run(capacity=2), run(capacity=2, used=jnp.array([[False], [False], [True], [True]]))
    np.testing.assert_array_equal(everyone, 0.0)
    assert (np.asarray(padded)[2:] > 1).all()


@pytest.mark.parametrize("select", ["topk", "expert_choice"])
def test_the_routing_says_which_pairs_count(select):
    config = MoEConfig(8, 4, 4, 2, score="sigmoid", select=select, capacity_factor=1.0, dispatch="capacity")
    layer = MoELayer(config, rngs=nnx.Rngs(0))
    where = jnp.arange(10) < 7
    _, routing = layer(jax.random.normal(jax.random.key(0), (10, 8)), where=where)
    np.testing.assert_array_equal(routing.used, np.asarray(routing.weights) != 0)
    np.testing.assert_array_equal(routing.load.sum(), routing.used.sum())
    exact = MoELayer(dataclasses.replace(config, dispatch="loop"), rngs=nnx.Rngs(0))
    everyone = exact(jnp.ones((3, 8)))[1]
    assert bool(everyone.used.all()) == (select == "topk")
