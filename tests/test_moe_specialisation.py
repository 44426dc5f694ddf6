"""Mutual information of domain and expert."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest


def loop(load):
    """The definition, pair by pair, in float64."""
    rows = [np.asarray(row, np.float64) / np.sum(row) for row in np.asarray(load) if np.sum(row) > 0]
    marginal = sum(rows) / len(rows)
    bits = 0.0
    for row in rows:
        for given, share in zip(row, marginal, strict=True):
            if given > 0:
                bits += given / len(rows) * math.log2(given / share)
    return bits


@pytest.mark.parametrize("shape", [(2, 2), (6, 8), (3, 1), (1, 5), (6, 64)])
def test_equals_the_definition(shape):
    from minimoe.moe import mutual_information

    load = np.random.default_rng(sum(shape)).integers(0, 50, shape).astype(np.float32)
    load[0, 0] = 0
    assert float(mutual_information(jnp.asarray(load))) == pytest.approx(loop(load), abs=2e-6)


def test_known_values():
    from minimoe.moe import mutual_information

    apart = jnp.eye(4) * jnp.array([[1.0], [10.0], [100.0], [7.0]])  # domains of any size, one expert each
    assert float(mutual_information(apart)) == pytest.approx(2.0)
    alike = jnp.array([[1.0, 3.0], [10.0, 30.0]])
    assert float(mutual_information(alike)) == pytest.approx(0.0, abs=1e-6)
    assert float(mutual_information(jnp.zeros((3, 4)))) == 0.0


def test_empty_domain_is_left_out():
    from minimoe.moe import mutual_information

    load = jnp.array([[4.0, 1.0], [1.0, 4.0]])
    with_empty = jnp.concatenate([load, jnp.zeros((1, 2))])
    assert float(mutual_information(with_empty)) == pytest.approx(float(mutual_information(load)), abs=1e-6)


def test_layers_are_not_pooled():
    from minimoe.moe import mutual_information

    layers = jnp.stack([jnp.eye(3), jnp.ones((3, 3))])
    np.testing.assert_allclose(mutual_information(layers), [math.log2(3), 0.0], atol=1e-6)


def test_permuting_experts_changes_nothing():
    from minimoe.moe import mutual_information

    load = jnp.asarray(np.random.default_rng(0).integers(1, 9, (6, 8)).astype(np.float32))
    assert float(mutual_information(load)) == pytest.approx(float(mutual_information(load[:, ::-1])), abs=1e-6)
