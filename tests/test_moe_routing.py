"""Affinities, selection, combine weights and load."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from minimoe.moe import AFFINITIES, SELECTORS, combine_weights, expert_load, load_balance_loss, select_topk
from minimoe.moe.routing import sqrtsoftplus_affinity

EXTREMES = np.array([[-1e4, -88.0, -87.0, -80.0, -20.0, -4.0, 0.0, 4.0, 80.0, 88.0, 1e4]], np.float32)


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)


@pytest.mark.parametrize("score", AFFINITIES)
def test_affinities_match_the_definition(score, logits):
    np.testing.assert_allclose(AFFINITIES[score](jnp.asarray(logits)), oracles.affinities(logits, score), rtol=1e-5)


@pytest.mark.parametrize("score", AFFINITIES)
def test_affinities_and_their_slopes_stay_finite(score):
    value = AFFINITIES[score](jnp.asarray(EXTREMES))
    weight = jnp.linspace(0.0, 1.0, EXTREMES.size)[None]  # softmax: a plain sum would have slope 0
    slope = jax.grad(lambda x: (AFFINITIES[score](x) * weight).sum())(jnp.asarray(EXTREMES))
    assert bool(jnp.isfinite(value).all())
    assert bool(jnp.isfinite(slope).all())
    assert bool((value >= 0).all())
    if score != "softmax":
        assert bool((jnp.diff(value) >= 0).all())
        assert bool((slope >= 0).all())


def test_sqrtsoftplus_at_known_points():
    """sqrt(log(1 + exp(x))), by hand: sqrt(log 2) at 0."""
    found = sqrtsoftplus_affinity(jnp.array([[-4.0, 0.0, 4.0]]))
    np.testing.assert_allclose(found, [[0.135, 0.8326, 2.005]], atol=5e-4)
    np.testing.assert_allclose(found[0, 1], np.sqrt(np.log(2)), rtol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("score", AFFINITIES)
@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_routing_matches_the_loop(score, normalize, top_k, logits):
    bias = np.array([0.3, -0.2, 0.0, 0.1, -0.2], np.float32)
    experts, weights, probs = oracles.route(logits, bias, top_k, score=score, normalize=normalize, scale=2.5)
    ours = AFFINITIES[score](jnp.asarray(logits))
    chosen = SELECTORS["topk"](ours, jnp.asarray(bias), top_k)
    np.testing.assert_allclose(ours, probs, rtol=1e-5)
    np.testing.assert_array_equal(chosen, experts)
    assert chosen.dtype == jnp.int32
    np.testing.assert_allclose(combine_weights(ours, chosen, normalize=normalize, scale=2.5), weights, rtol=1e-5)


def test_ties_go_to_the_lower_id():
    probs = jnp.array([[0.2, 0.5, 0.2, 0.5, 0.2], [0.5, 0.5, 0.5, 0.5, 0.5]])
    np.testing.assert_array_equal(select_topk(probs, jnp.zeros(5), 3), [[1, 3, 0], [0, 1, 2]])


def test_softmax_then_topk_is_softmax_of_the_chosen(logits):
    """Renormalised, the order of softmax and top-k does not matter."""
    probs = AFFINITIES["softmax"](jnp.asarray(logits))
    experts = select_topk(probs, jnp.zeros(5), 3)
    chosen = np.take_along_axis(logits, np.asarray(experts), axis=1)
    np.testing.assert_allclose(combine_weights(probs, experts), [oracles.softmax(row) for row in chosen], rtol=1e-5)


def test_uniform_shift_of_the_bias_changes_nothing(logits):
    probs = AFFINITIES["sigmoid"](jnp.asarray(logits))
    bias = jnp.array([0.3, -0.2, 0.0, 0.1, -0.2])
    np.testing.assert_array_equal(select_topk(probs, bias, 2), select_topk(probs, bias + 0.5, 2))


def test_bias_moves_choices_and_never_weights(logits):
    """Weights are a function of the affinities and the chosen ids: the bias enters through the ids alone."""
    probs = AFFINITIES["sigmoid"](jnp.asarray(logits))
    bias = jnp.array([9.0, 8.0, 0.0, 0.0, 0.0])
    forced = select_topk(probs, bias, 2)
    np.testing.assert_array_equal(forced, np.tile([[0, 1]], (23, 1)))
    pair = oracles.affinities(logits, "sigmoid")[:, :2]
    np.testing.assert_allclose(combine_weights(probs, forced), pair / pair.sum(axis=1, keepdims=True), rtol=1e-5)


def test_selection_passes_no_gradient(logits):
    probs = AFFINITIES["sigmoid"](jnp.asarray(logits))

    def total(bias):
        return combine_weights(probs, select_topk(probs, bias, 2), normalize=False).sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.zeros(5)), np.zeros(5))


@pytest.mark.parametrize(
    "score",
    ["softmax", "sqrtsoftplus", "sigmoid"],
)
def test_weights_have_finite_gradients_where_affinities_vanish(score):
    """All logits of a token far below zero (or above): rows of 0 must not become NaN in the backward pass."""
    rows = jnp.asarray(np.repeat([[-1e4], [-88.0], [-60.0], [0.0], [60.0], [1e4]], 4, axis=1), jnp.float32)
    rows = rows + jnp.array([[0.0, 0.5, 1.0, 1.5]])

    def total(logits):
        probs = AFFINITIES[score](logits)
        experts = select_topk(probs, jnp.zeros(4), 2)
        weights = combine_weights(probs, experts)
        return (weights * jnp.array([[1.0, 2.0]])).sum() + load_balance_loss(probs, experts)

    value, slope = jax.value_and_grad(total)(rows)
    assert bool(jnp.isfinite(value))
    assert bool(jnp.isfinite(slope).all()), slope


def test_load_counts_real_tokens():
    experts = jnp.array([[0, 1], [1, 2], [1, 3]])
    where = np.array([True, False, True])
    np.testing.assert_array_equal(expert_load(experts, 5), oracles.load(experts, 5))
    np.testing.assert_array_equal(expert_load(experts, 5, jnp.asarray(where)), oracles.load(experts, 5, where))
    assert float(expert_load(experts, 5).sum()) == experts.size
