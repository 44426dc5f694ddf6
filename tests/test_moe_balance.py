"""The balance loss, the z-loss, the loss-free bias and the measures of imbalance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from minimoe.moe import (
    AFFINITIES,
    bias_update,
    combine_weights,
    dead_experts,
    expert_load,
    load_balance_loss,
    load_cv,
    load_entropy,
    max_violation,
    select_topk,
    z_loss,
)

E = 6


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, E)).astype(np.float32)


WHERE = np.arange(12) % 3 != 0


@pytest.mark.parametrize("level", [1 / E, 0.5, 3.0], ids=["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_balance_loss_is_one_when_balanced_and_e_over_k_when_collapsed(top_k, level):
    """Whatever the sum of a row of affinities: rows are normalised."""
    experts = (np.arange(12)[:, None] * top_k + np.arange(top_k)) % E
    even = jnp.full((12, E), level)
    np.testing.assert_allclose(load_balance_loss(even, jnp.asarray(experts, jnp.int32)), 1.0, rtol=1e-6)
    taken = jnp.asarray(np.tile(np.arange(top_k), (12, 1)), jnp.int32)
    collapsed = jnp.where(jnp.arange(E) < top_k, level, 0.0)[None].repeat(12, axis=0)
    np.testing.assert_allclose(load_balance_loss(collapsed, taken), E / top_k, rtol=1e-6)


@pytest.mark.parametrize("where", [None, WHERE], ids=["all", "masked"])
@pytest.mark.parametrize("score", AFFINITIES)
def test_losses_match_the_loops(score, where, logits):
    probs = AFFINITIES[score](jnp.asarray(logits))
    experts = select_topk(probs, jnp.zeros(E), 2)
    mask = None if where is None else jnp.asarray(where)
    want = oracles.balance_loss(oracles.affinities(logits, score), experts, where)
    np.testing.assert_allclose(load_balance_loss(probs, experts, where=mask), want, rtol=1e-5)
    np.testing.assert_allclose(z_loss(jnp.asarray(logits), where=mask), oracles.z_loss(logits, where), rtol=1e-5)


@pytest.mark.parametrize("score", AFFINITIES)
def test_balance_gradient_is_the_slope_of_the_loop(score, logits):
    """Central differences of the float64 loop, with the choice held fixed: counting carries no gradient."""
    experts = select_topk(AFFINITIES[score](jnp.asarray(logits)), jnp.zeros(E), 2)
    slope = jax.grad(lambda x: load_balance_loss(AFFINITIES[score](x), experts, where=jnp.asarray(WHERE)))
    found, want, step = np.asarray(slope(jnp.asarray(logits))), np.zeros(logits.shape), 1e-5
    for t in range(12):
        for e in range(E):
            up, down = logits.astype(np.float64), logits.astype(np.float64)
            up[t, e], down[t, e] = up[t, e] + step, down[t, e] - step
            ends = [oracles.balance_loss(oracles.affinities(x, score), experts, WHERE) for x in (up, down)]
            want[t, e] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(found, want, atol=1e-6)
    assert np.abs(want).max() > 1e-3
    assert (found[~WHERE] == 0).all(), "padding pulls on nothing"


@pytest.mark.parametrize("loss", ["balance", "z"])
def test_nothing_but_padding_costs_nothing(loss, logits):
    nobody = jnp.zeros(12, bool)

    def cost(x):
        if loss == "z":
            return z_loss(x, where=nobody)
        return load_balance_loss(jax.nn.softmax(x), jnp.zeros((12, 2), jnp.int32), where=nobody)

    value, slope = jax.value_and_grad(cost)(jnp.asarray(logits))
    assert float(value) == 0.0
    assert (np.asarray(slope) == 0).all()


def test_masked_is_the_same_as_left_out(logits):
    probs = jax.nn.sigmoid(jnp.asarray(logits))
    experts = select_topk(probs, jnp.zeros(E), 2)
    masked = load_balance_loss(probs, experts, where=jnp.asarray(WHERE))
    np.testing.assert_allclose(masked, load_balance_loss(probs[WHERE], experts[WHERE]), rtol=1e-6)
    masked = z_loss(jnp.asarray(logits), where=jnp.asarray(WHERE))
    np.testing.assert_allclose(masked, z_loss(jnp.asarray(logits)[WHERE]), rtol=1e-6)


def test_balance_loss_refuses_rows_that_do_not_match():
    with pytest.raises(Exception, match=r"12 tokens but experts has 3|parameter 'experts'"):
        load_balance_loss(jnp.ones((12, E)), jnp.zeros((3, 2), jnp.int32))


def test_z_loss_of_zero_logits():
    np.testing.assert_allclose(z_loss(jnp.zeros((3, 8))), np.log(8) ** 2, rtol=1e-6)


@pytest.mark.parametrize("counts", [[9, 1, 5, 5, 0, 4], [4, 4, 4, 4, 4, 4], [24, 0, 0, 0, 0, 0]])
def test_measures_match_the_loops(counts):
    load = jnp.asarray(counts, jnp.float32)
    np.testing.assert_allclose(max_violation(load), oracles.max_violation(counts), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(load_cv(load), oracles.load_cv(counts), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(load_entropy(load), oracles.load_entropy(counts), rtol=1e-6, atol=1e-6)
    assert float(dead_experts(load)) == counts.count(0)
    bias = np.linspace(-0.1, 0.3, E).astype(np.float32)
    want = oracles.bias_update(bias, counts, 0.01)
    np.testing.assert_allclose(bias_update(jnp.asarray(bias), load, 0.01), want, atol=1e-7)


def test_measures_at_known_points():
    even, one, none = jnp.full(4, 3.0), jnp.array([12.0, 0, 0, 0]), jnp.zeros(4)
    assert [float(max_violation(x)) for x in (even, one, none)] == [0.0, 3.0, 0.0]
    assert [float(load_cv(x)) for x in (even, none)] == [0.0, 0.0]
    assert [float(load_entropy(x)) for x in (one, jnp.ones(1))] == [0.0, 1.0]
    assert [float(dead_experts(x)) for x in (even, one, none)] == [0.0, 3.0, 4.0]
    stacked = max_violation(jnp.stack([even, one]))  # leading axes are layers: no pooling, no cancelling
    np.testing.assert_array_equal(stacked, [0.0, 3.0])


def test_the_bias_balances_a_skewed_router():
    """Fixed preferences plus noise; the losing experts come up until every one has its share."""
    rng = np.random.default_rng(0)
    preference = np.array([2.0, 1.0, 0.0, 0.0, -1.0, -2.0], np.float32)
    batches = jnp.asarray(preference + rng.normal(size=(1000, E)), jnp.float32)
    probs = jax.nn.sigmoid(batches)

    @jax.jit
    def step(bias):
        load = expert_load(select_topk(probs, bias, 2), E)
        return bias_update(bias, load, 0.005), max_violation(load)

    bias = jnp.zeros(E)
    violations = []
    for _ in range(200):
        bias, violation = step(bias)
        violations.append(float(violation))
    assert violations[0] > 1.0
    assert max(violations[-10:]) < 0.1
    np.testing.assert_allclose(bias.mean(), 0.0, atol=1e-6)
    experts = select_topk(probs, bias, 2)
    plain = np.take_along_axis(np.asarray(probs), np.asarray(experts), axis=1)
    np.testing.assert_allclose(combine_weights(probs, experts, normalize=False), plain, rtol=1e-6)


def test_one_bias_step_moves_towards_balance():
    moved = bias_update(jnp.zeros(4), jnp.array([9.0, 1.0, 5.0, 5.0]), 0.5)
    np.testing.assert_array_equal(moved, [-0.5, 0.5, 0.0, 0.0])
