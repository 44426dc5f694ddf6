"""Rotary positions, SwiGLU and initial weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe.layers import SwiGLU, apply_rope, fan_in, rope_angles, swiglu

THETA = 100.0


@jax.jit
def turned(x, positions):
    return apply_rope(x, *rope_angles(positions, x.shape[-1], THETA))


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 9, 3, 6)).astype(np.float32)


def test_rope_is_a_complex_rotation(vectors):
    found = turned(vectors, jnp.arange(9, dtype=jnp.int32))
    for b in range(2):
        for n in range(3):
            np.testing.assert_allclose(found[b, :, n], oracles.rope(vectors[b, :, n], THETA), atol=1e-5)


def test_rope_keeps_norms_and_the_first_position(vectors):
    found = turned(vectors, jnp.arange(9, dtype=jnp.int32))
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=-1), np.linalg.norm(vectors, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(found[:, 0], vectors[:, 0], rtol=1e-6)


def test_rope_scores_depend_on_distance_only(vectors):
    """Shifting query and key together changes no dot product; shifting one alone does."""
    here, there = (turned(vectors, jnp.arange(9, dtype=jnp.int32) + shift) for shift in (0, 1000))
    scores = [np.einsum("blnh,bsnh->bnls", q, k) for q, k in ((here, here), (there, there), (here, there))]
    np.testing.assert_allclose(scores[0], scores[1], atol=2e-3)
    assert np.abs(scores[0] - scores[2]).max() > 0.1


def test_swiglu_matches_the_loop():
    layer = SwiGLU(8, 6, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    gate_up, down = np.asarray(layer.gate_up_proj.kernel[...]), np.asarray(layer.down_proj.kernel[...])
    want = [[oracles.swiglu_ffn(row, gate_up, down) for row in rows] for rows in x]
    np.testing.assert_allclose(layer(jnp.asarray(x)), want, rtol=1e-4, atol=1e-6)


def test_swiglu_gates_with_the_first_half():
    """A gate far below zero closes, one far above opens: silu(20) * 3 = 60."""
    np.testing.assert_allclose(swiglu(jnp.array([-50.0, 20.0, 3.0, 3.0])), [0.0, 60.0], atol=1e-5)


@pytest.mark.parametrize(("shape", "scale"), [((64, 256), 1.0), ((8, 64, 256), 1.0), ((8, 64, 256), 0.5)])
def test_fan_in_ignores_the_expert_axis(shape, scale):
    weights = fan_in(scale)(jax.random.key(0), shape, jnp.float32)
    assert weights.shape == shape
    np.testing.assert_allclose(weights.std(), scale / 8, rtol=0.03)
    np.testing.assert_allclose(weights.mean(), 0, atol=0.003)
