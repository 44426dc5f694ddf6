"""The layer as a whole: against loops, and by laws."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, MoETransformer
from minimoe.moe import AFFINITIES, DISPATCHERS, MoELayer, RouterBias, expert_capacity, with_dispatch

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
    layer = make(dataclasses.replace(CONFIG, capacity_factor=E / K))  # room for all
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
        "used": ((T, K), "bool"),
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


@pytest.mark.parametrize("dispatch", DISPATCHERS)
@pytest.mark.parametrize("tokens", [3, T])
def test_float16_value_and_gradients_are_within_its_rounding(dispatch, tokens, x):
    """2**-11 is half a step of float16; bfloat16 is eight times as coarse."""
    config = dataclasses.replace(CONFIG, dispatch=dispatch, capacity_factor=E)

    def found(dtype: str):
        graphdef, params, rest = nnx.split(make(dataclasses.replace(config, dtype=dtype)), nnx.Param, ...)

        def loss(params, x):
            y = nnx.merge(graphdef, params, rest)(x)[0]
            return (y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)).sum(), y

        (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x[:tokens])
        return jax.tree.leaves((y, gradients))

    for half, single in zip(found("float16"), found("float32"), strict=True):
        assert half.dtype == jnp.float32, "the dtype of the input and of the parameters"
        assert 0 < float(jnp.linalg.norm(half - single)) < 6 * 2**-11 * float(jnp.linalg.norm(single))


# What a token's output may depend on


def swapped(x, start: int):
    """The same tokens up to ``start``, others after."""
    return jnp.concatenate([x[:start], jax.random.normal(jax.random.key(9), (T - start, D))])


@pytest.mark.parametrize("dispatch", [name for name in DISPATCHERS if name != "capacity"])
def test_exact_dispatches_keep_sequences_apart(dispatch, x):
    """Two sequences in one batch: another second one leaves the first as it was."""
    layer = make(dataclasses.replace(CONFIG, dispatch=dispatch))
    here, there = run(layer, x, EVERYONE)[0], run(layer, swapped(x, 6), EVERYONE)[0]
    np.testing.assert_allclose(there[:6], here[:6], rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(there - here)[6:]).min(axis=1).max() > 1e-3


def test_capacity_lets_batch_mates_interfere(x):
    """And the later ones the earlier: a first choice over there takes the slot of a second choice here."""
    layer = make(dataclasses.replace(CONFIG, dispatch="capacity", capacity_factor=0.7, num_shared_experts=0))
    outputs = []
    for i in range(6):  # the second sequence is one token over and over
        y, routing = run(layer, jnp.concatenate([x[:6], jnp.repeat(x[i : i + 1], T - 6, axis=0)]), EVERYONE)
        assert float(routing.dropped) > 0.2
        outputs.append(np.asarray(y)[:6])
    assert np.ptp(outputs, axis=0).max() > 1e-3


@pytest.mark.parametrize("where", [EVERYONE, jnp.arange(T) % 3 != 0], ids=["all", "masked"])
def test_capacity_drops_as_in_the_loops(where, x):
    layer = make(dataclasses.replace(CONFIG, dispatch="capacity", capacity_factor=0.8, num_shared_experts=0))
    y, routing = run(layer, x, where)
    experts, used = np.asarray(routing.experts), np.repeat(np.asarray(where)[:, None], K, axis=1)
    kept = oracles.kept_by_capacity(experts, used, E, expert_capacity(T, layer.config))
    assert 0 < kept.sum() < used.sum()
    np.testing.assert_allclose(routing.dropped, 1 - kept.sum() / used.sum(), rtol=1e-5)
    np.testing.assert_array_equal(routing.load, oracles.load(experts, E, np.asarray(where)))
    stacked = np.asarray(layer.experts.gate_up_proj[...]), np.asarray(layer.experts.down_proj[...])
    want = oracles.moe_forward(np.asarray(x), experts, np.where(kept, routing.weights, 0.0), *stacked)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("select", "leaks"), [("topk", False), ("expert_choice", True)])
def test_expert_choice_reads_the_future(select, leaks, x):
    """Only the last token is another one. Top-k changes its output alone; expert choice changes earlier ones."""
    layer = make(dataclasses.replace(CONFIG, select=select, score="softmax", capacity_factor=1.0))
    here, there = run(layer, x, EVERYONE)[0], run(layer, x.at[-1].multiply(-1.0), EVERYONE)[0]
    changed = np.abs(np.asarray(there - here)).max(axis=1) > 1e-4
    assert changed[-1]
    assert changed[:-1].any() == leaks


@pytest.mark.parametrize("dispatch", DISPATCHERS)
def test_expert_choice_through_every_dispatch(dispatch, x):
    """Capacity included: its slots are exactly those that experts fill."""
    config = dataclasses.replace(CONFIG, select="expert_choice", score="softmax", num_shared_experts=0)
    layer = make(dataclasses.replace(config, dispatch=dispatch, capacity_factor=1))
    where = np.arange(T) % 5 != 0
    y, routing = run(layer, x, jnp.asarray(where))
    capacity = expert_capacity(T, layer.config)
    used = oracles.expert_choice(np.asarray(routing.probs), capacity, where)
    weights = np.where(used, np.asarray(routing.probs), 0.0)
    stacked = np.asarray(layer.experts.gate_up_proj[...]), np.asarray(layer.experts.down_proj[...])
    want = oracles.moe_forward(np.asarray(x), np.asarray(routing.experts), weights, *stacked)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    assert (routing.experts.shape, float(routing.dropped)) == ((T, E), 0.0)
    np.testing.assert_array_equal(routing.load, capacity)


# In a model: the other selectors train, are saved and restored, and decode

SELECT = {
    "hash": {"select": "hash", "hash_vocab_size": 19},
    "noisy_topk": {"select": "noisy_topk"},
    "group_limited": {"select": "group_limited", "num_groups": 2},
    "expert_choice": {"select": "expert_choice", "score": "softmax"},
}


def model_of(select: str) -> ModelConfig:
    moe = MoEConfig(d_model=D, d_expert=F, num_experts=E, top_k=K, score="sigmoid", dispatch="dense")
    return ModelConfig(
        19, D, 1, GroupedQueryConfig(2, 1, 4), context_length=16, moe=dataclasses.replace(moe, **SELECT[select])
    )


def trained(select: str):
    """Model, optimiser and losses after two steps."""
    from minimoe.training import Recipe, RunConfig, init_training, train_step

    run = RunConfig(model_of(select), Recipe(steps=2, warmup_steps=0), {}, "byte")
    model, optimizer = init_training(run)
    before = np.array(model.layers[0].ffn.router.table[...]) if select == "hash" else None
    tokens, where = jax.random.randint(jax.random.key(0), (2, 6), 0, 19, jnp.int32), jnp.ones((2, 6), bool)
    losses = []
    for step in range(2):
        metrics = train_step(model, optimizer, tokens, tokens, where, jax.random.key(step), recipe=run.recipe)
        assert bool(metrics.ok)
        losses.append(float(metrics.loss))
    if before is not None:
        np.testing.assert_array_equal(model.layers[0].ffn.router.table[...], before)
    return model, optimizer, losses


def train_and_restore(folder: str) -> list[float]:
    """Losses with a hash table, whose model then goes through a checkpoint into one with another table."""
    from minimoe.training.checkpoint import CheckpointFolder

    model, optimizer, losses = trained("hash")
    other = MoETransformer(model.config, rngs=nnx.Rngs(5))
    assert (other.layers[0].ffn.router.table[...] != model.layers[0].ffn.router.table[...]).any()
    checkpoints = CheckpointFolder(Path(folder))
    checkpoints.save(2, model, optimizer)
    checkpoints.restore(2, other)
    checkpoints.close()
    here, there = (jax.tree.leaves(nnx.state(node)) for node in (model, other))
    assert sum(a.dtype == jnp.int32 for a in here) == 1
    assert [a.dtype for a in here] == [b.dtype for b in there]
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(here, there, strict=True))
    return losses


def test_a_hash_table_trains_and_is_saved_in_both_nnx_modes(tmp_path):
    """An int Variable in the model: no gradient, no change, and the same bits after a checkpoint."""
    code = "import sys, conftest, test_moe_layer as t; print(t.train_and_restore(sys.argv[1]))"
    modes = {"NNX_GRAPH_MODE": "false", "NNX_GRAPH_UPDATES": "false", "JAX_PLATFORMS": "cpu"}
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    command = [sys.executable, "-W", "error::DeprecationWarning:flax", "-c", code, str(tmp_path / "tree")]
    done = subprocess.run(
        command, env=os.environ | modes | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == str(train_and_restore(str(tmp_path / "graph")))


def test_noise_learns_in_a_training_step():
    model, _, losses = trained("noisy_topk")
    assert float(jnp.abs(model.layers[0].ffn.router.noise_kernel[...]).max()) > 0
    assert losses == trained("noisy_topk")[2], "the same keys, the same noise"


@nnx.jit
def in_two_parts(model, tokens):
    """Logits of six tokens from a prefill of five and one decoding step, and of a plain forward pass."""
    logits, _, cache = model.extend(tokens[:, :5], model.init_cache(tokens.shape[0], 6))
    last, _, _ = model.extend(tokens[:, 5:], cache)
    return jnp.concatenate([logits, last], axis=1), model(tokens)[0]


@pytest.mark.parametrize("select", SELECT)
def test_decoding_is_the_forward_pass_except_for_expert_choice(select):
    model = MoETransformer(model_of(select), rngs=nnx.Rngs(0))
    nnx.update(model, jax.tree.map(lambda p: p * 3, nnx.state(model, nnx.Param)))
    parts, whole = in_two_parts(model, jax.random.randint(jax.random.key(1), (2, 6), 0, 19, jnp.int32))
    difference = float(jnp.abs(parts - whole).max())
    assert difference > 1e-2 if select == "expert_choice" else difference < 1e-4


def test_streams_of_a_training_step():
    from minimoe.training.step import noise_streams

    key = jax.random.key(3)
    quiet, noisy = model_of("hash"), model_of("noisy_topk")
    assert noise_streams(quiet, key) is None
    assert noise_streams(ModelConfig(19, D, 1, GroupedQueryConfig(2, 1, 4), d_ff=8), key) is None
    assert set(vars(noise_streams(noisy, key))) >= {"routing"}
    both, plain = (noise_streams(config.replace(dropout=0.1), key) for config in (noisy, quiet))
    draws = [jax.random.key_data(rngs.dropout()) for rngs in (both, plain, nnx.Rngs(dropout=key))]
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[1], draws[2])
    assert (jax.random.key_data(both.routing()) != draws[0]).any()
