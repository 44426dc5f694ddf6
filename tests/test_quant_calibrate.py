"""What calibration counts, against loops over tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe import GroupedQueryConfig, ModelConfig, MoETransformer, UserError
from minimoe.moe import Experts
from minimoe.quant.calibrate import RecordingExperts, RecordingLinear, collect, recording_twin

T, D, F, E, K = 9, 8, 6, 4, 2
BATCHES = [np.random.default_rng(seed).integers(0, 19, (2, 12)).astype(np.int32) for seed in (0, 1)]


@pytest.fixture(scope="module")
def model(tiny_config):
    return MoETransformer(tiny_config.replace(num_layers=1), rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def calibration(model):
    return collect(model, BATCHES)


def summed(rows, width):
    """Count, absmax and second moment of a list of rows, one row at a time."""
    absmax, moment = np.zeros(width), np.zeros((width, width))
    for row in rows:
        absmax = np.maximum(absmax, np.abs(row))
        moment = moment + np.outer(row, row)
    return len(rows), absmax, moment


def check(rows, absmax, moment, want):
    assert float(rows) == want[0]
    np.testing.assert_allclose(absmax, want[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moment, want[2], rtol=1e-4, atol=1e-5)


@nnx.jit
def run(model, tokens):
    return model(tokens)


@nnx.jit
def see(recorder, x, experts, weights, used):
    return recorder(x, experts, weights, dispatch="loop", used=used)


def test_experts_record_the_rows_routed_to_them(moe_config):
    inner = Experts(moe_config, rngs=nnx.Rngs(0))
    recorder = RecordingExperts(inner)
    x = jax.random.normal(jax.random.key(1), (2 * T, D))
    experts = np.argsort(np.random.default_rng(2).random((2 * T, E - 1)), axis=1)[:, :K].astype(np.int32)
    weights = np.where(np.arange(2 * T)[:, None] == 3, 0.0, np.linspace(0.1, 0.9, 2 * T * K).reshape(-1, K))
    weights = weights.astype(np.float32)  # token 3 is padding; nobody uses the last expert
    for half in (slice(0, T), slice(T, None)):
        used = jnp.asarray(weights[half] != 0)
        y = see(recorder, x[half], jnp.asarray(experts[half]), jnp.asarray(weights[half]), used)
        want = inner(x[half], jnp.asarray(experts[half]), jnp.asarray(weights[half]), dispatch="loop")
        np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-7)
    gate_up = np.asarray(inner.gate_up_proj[...])
    for e in range(E):
        routed = [np.asarray(x[t]) for t in range(2 * T) for k in range(K) if experts[t, k] == e and weights[t, k]]
        hidden = [oracles.swiglu_ffn(row, gate_up[e], np.eye(F)) for row in routed]
        everyones = [oracles.swiglu_ffn(row, gate_up[e], np.eye(F)) for row in np.asarray(x)]
        seen = [(recorder.gate_up, routed, D), (recorder.down, hidden, F), (recorder.down_pooled, everyones, F)]
        for accumulator, rows, width in seen:
            found = (accumulator.rows[e], accumulator.absmax[e], accumulator.moment[e])
            check(*map(np.asarray, found), summed(rows, width))
    pooled = recorder.gate_up_pooled
    check(pooled.rows[...], pooled.absmax[...], pooled.moment[...], summed(list(np.asarray(x)), D))


def test_linear_inputs_of_the_whole_model(model, calibration):
    norm = np.asarray(model.layers[0].attention_norm.scale[...])
    embedded = np.concatenate([np.asarray(model.embed.embedding[...])[batch] for batch in BATCHES]).reshape(-1, D)
    normed = oracles.rms_norm(embedded, norm, model.config.norm_eps)
    for name in ("q_proj", "k_proj", "v_proj"):
        found = calibration[f"layers.0.attention.{name}"]
        check(found.rows, found.absmax, found.moment, summed(list(normed), D))
        assert found.pooled_moment is None


def test_every_matrix_but_router_and_embedding_is_there(calibration):
    linear = ["attention.k_proj", "attention.o_proj", "attention.q_proj", "attention.v_proj"]
    sparse = ["experts.down_proj", "experts.gate_up_proj", "shared.down_proj", "shared.gate_up_proj"]
    assert list(calibration.matrices) == [f"layers.0.{name}" for name in [*linear, *(f"ffn.{n}" for n in sparse)]]
    assert calibration.tokens == sum(batch.size for batch in BATCHES)
    with pytest.raises(
        UserError, match=r"matrix 'embed' was not calibrated; recorded are layers\.0\.attention\.k_proj"
    ):
        calibration["embed"]


def test_laws(model, calibration):
    gate_up, shared, down = (
        calibration[f"layers.0.ffn.{name}"]
        for name in ("experts.gate_up_proj", "shared.gate_up_proj", "experts.down_proj")
    )
    loads = [run(model, jnp.asarray(batch))[1][0].load for batch in BATCHES]
    np.testing.assert_array_equal(gate_up.rows, loads[0] + loads[1])
    np.testing.assert_array_equal(gate_up.rows, down.rows)
    # Each token is in K experts' moments; the shared expert reads what the router reads.
    np.testing.assert_allclose(gate_up.moment.sum(axis=0), K * gate_up.pooled_moment, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shared.moment, gate_up.pooled_moment, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(shared.absmax, gate_up.absmax.max(axis=0))
    assert gate_up.pooled_rows == down.pooled_rows == calibration.tokens
    assert gate_up.pooled_moment.shape == (D, D)
    assert down.pooled_moment.shape == (E, F, F)
    slack = np.linalg.eigvalsh(down.pooled_moment - down.moment).min()
    assert slack > -1e-4, "the rows routed to an expert are among all rows"


def test_batches_add_up_and_the_model_is_not_changed(model, calibration):
    before = jax.tree.map(np.array, nnx.state(model))
    halves = [collect(model, [batch]) for batch in BATCHES]
    for path, whole in calibration.matrices.items():
        first, second = (half[path] for half in halves)
        np.testing.assert_array_equal(whole.rows, first.rows + second.rows)
        np.testing.assert_array_equal(whole.absmax, np.maximum(first.absmax, second.absmax))
        np.testing.assert_allclose(whole.moment, first.moment + second.moment, rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


def test_expert_choice_counts_the_pairs_it_uses(tiny_config):
    config = tiny_config.replace_moe(select="expert_choice", capacity_factor=1.0)
    model = MoETransformer(config.replace(num_layers=1), rngs=nnx.Rngs(0))
    rows = collect(model, BATCHES[:1])["layers.0.ffn.experts.down_proj"].rows
    np.testing.assert_array_equal(rows, np.full(E, BATCHES[0].size * K / E))


def test_a_dense_model_and_its_head_record_too():
    config = ModelConfig(19, 8, 1, GroupedQueryConfig(4, 2, 4), context_length=24, d_ff=10, tie_embeddings=False)
    twin = recording_twin(MoETransformer(config, rngs=nnx.Rngs(0)))
    assert isinstance(twin.head, RecordingLinear)
    assert isinstance(twin.layers[0].ffn.down_proj, RecordingLinear)


def test_no_batches_are_refused(model):
    with pytest.raises(UserError, match=r"collect got no batch; pass token ids \[B, L\]"):
        collect(model, [])
