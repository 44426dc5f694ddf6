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
    global_balance_loss,
    global_max_violation,
    importance_loss,
    load_balance_loss,
    load_cv,
    load_entropy,
    max_violation,
    select_topk,
    sequence_balance_loss,
    straggler_factor,
    z_loss,
)

E = 6


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, E)).astype(np.float32)


WHERE = np.arange(12) % 3 != 0
SEGMENTS = jnp.asarray(np.repeat([0, 1, 2], [5, 3, 4]), jnp.int32)
LAST_IS_PADDING = np.arange(12) < 8  # the third sequence has no real token


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


def every_loss(logits, experts, where):
    """Of the sigmoid affinities; the load of the global one is given."""
    probs = jax.nn.sigmoid(logits)
    weights = combine_weights(probs, experts)
    return {
        "balance": load_balance_loss(probs, experts, where=where),
        "sequence": sequence_balance_loss(probs, experts, SEGMENTS, 3, where=where),
        "global": global_balance_loss(probs, jnp.array([9.0, 1.0, 5.0, 5.0, 0.0, 4.0]), where=where),
        "importance": importance_loss(weights, experts, E, where=where),
        "z": z_loss(logits, where=where),
    }


LOSSES = ["balance", "sequence", "global", "importance", "z"]


@jax.jit
def slopes(logits, experts, where):
    """Value and gradient of every loss; one program."""
    return {
        name: jax.value_and_grad(lambda x, name=name: every_loss(x, experts, where)[name])(logits) for name in LOSSES
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_but_padding_costs_nothing(loss, logits):
    value, slope = slopes(jnp.asarray(logits), jnp.zeros((12, 2), jnp.int32), jnp.zeros(12, bool))[loss]
    assert float(value) == 0.0
    assert (np.asarray(slope) == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_neither_counts_nor_pulls(loss, logits):
    """Other words in the padding, other experts for it: the same loss, and no gradient for it."""
    experts = np.asarray(select_topk(jax.nn.sigmoid(jnp.asarray(logits)), jnp.zeros(E), 2))
    padding, where = ~WHERE[:, None], jnp.asarray(WHERE)
    value, pull = slopes(jnp.asarray(logits), jnp.asarray(experts), where)[loss]
    others = np.where(padding, np.float32(3), logits), np.where(padding, np.array([[0, 1]], np.int32), experts)
    other, other_pull = slopes(*map(jnp.asarray, others), where)[loss]
    np.testing.assert_allclose(other, value, rtol=1e-6)
    np.testing.assert_allclose(other_pull, pull, rtol=1e-5, atol=1e-7)
    assert (np.asarray(pull)[~WHERE] == 0).all()
    assert (np.abs(np.asarray(pull)[WHERE]).max(axis=1) > 0).all()


def test_masked_is_the_same_as_left_out(logits):
    probs, where = jax.nn.sigmoid(jnp.asarray(logits)), jnp.asarray(WHERE)
    experts = select_topk(probs, jnp.zeros(E), 2)
    masked = load_balance_loss(probs, experts, where=where)
    np.testing.assert_allclose(masked, load_balance_loss(probs[WHERE], experts[WHERE]), rtol=1e-6)
    masked = sequence_balance_loss(probs, experts, SEGMENTS, 3, where=where)
    np.testing.assert_allclose(
        masked, sequence_balance_loss(probs[WHERE], experts[WHERE], SEGMENTS[WHERE], 3), rtol=1e-6
    )
    masked = importance_loss(combine_weights(probs, experts), experts, E, where=where)
    kept = importance_loss(combine_weights(probs, experts)[WHERE], experts[WHERE], E)
    np.testing.assert_allclose(masked, kept, rtol=1e-6)
    masked = z_loss(jnp.asarray(logits), where=where)
    np.testing.assert_allclose(masked, z_loss(jnp.asarray(logits)[WHERE]), rtol=1e-6)


# Within sequences, and over many batches


@pytest.mark.parametrize("where", [None, WHERE, LAST_IS_PADDING], ids=["all", "some", "empty_sequence"])
@pytest.mark.parametrize("score", AFFINITIES)
def test_sequence_loss_matches_the_loops(score, where, logits):
    probs = AFFINITIES[score](jnp.asarray(logits))
    experts = select_topk(probs, jnp.zeros(E), 2)
    want = oracles.sequence_balance_loss(oracles.affinities(logits, score), experts, SEGMENTS, where)
    mask = None if where is None else jnp.asarray(where)
    np.testing.assert_allclose(sequence_balance_loss(probs, experts, SEGMENTS, 3, where=mask), want, rtol=1e-5)


def test_sequence_loss_sees_what_the_batch_hides():
    """Two texts, each on half of the experts: balanced as a batch, twice as bad as it should be within each."""
    ids = np.array([[0, 1], [2, 0], [1, 2], [3, 4], [5, 3], [4, 5]], np.int32)
    segments = jnp.array([0, 0, 0, 1, 1, 1])
    experts = jnp.asarray(ids)
    probs = jnp.asarray(np.repeat([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], 3, axis=0) / 3, jnp.float32)
    np.testing.assert_allclose(load_balance_loss(probs, experts), 1.0, rtol=1e-6)
    np.testing.assert_allclose(sequence_balance_loss(probs, experts, segments, 2), 2.0, rtol=1e-6)
    even = jnp.full((6, E), 0.7)
    np.testing.assert_allclose(sequence_balance_loss(even, experts, segments, 2), 1.0, rtol=1e-6)


def test_one_sequence_is_the_batch(logits):
    probs = jax.nn.sigmoid(jnp.asarray(logits))
    experts = select_topk(probs, jnp.zeros(E), 2)
    one = sequence_balance_loss(probs, experts, jnp.zeros(12, jnp.int32), 1)
    np.testing.assert_allclose(one, load_balance_loss(probs, experts), rtol=1e-6)


def test_global_loss_over_micro_batches_is_the_loss_of_the_batch(logits):
    """Value and gradient: the mean over four micro-batches of three tokens, with the load of all twelve."""

    def whole(x, experts):
        return load_balance_loss(jax.nn.sigmoid(x), experts)

    def in_parts(x, experts):
        load = expert_load(experts, E)
        return jnp.stack([global_balance_loss(jax.nn.sigmoid(x[i : i + 3]), load) for i in range(0, 12, 3)]).mean()

    experts = select_topk(jax.nn.sigmoid(jnp.asarray(logits)), jnp.zeros(E), 2)
    (a, slope_a), (b, slope_b) = (jax.value_and_grad(f)(jnp.asarray(logits), experts) for f in (whole, in_parts))
    np.testing.assert_allclose(b, a, rtol=1e-6)
    np.testing.assert_allclose(slope_b, slope_a, rtol=1e-4, atol=1e-7)
    local = np.mean([load_balance_loss(jax.nn.sigmoid(logits[i : i + 3]), experts[i : i + 3]) for i in range(0, 12, 3)])
    assert float(local) > float(a) * 1.02, "the local loss blames micro-batches for being small"


def test_global_loss_takes_no_gradient_through_the_counts(logits):
    probs = jax.nn.softmax(jnp.asarray(logits))
    slope = jax.grad(lambda load: global_balance_loss(probs, load))(jnp.arange(1.0, E + 1))
    assert (np.asarray(slope) == 0).all()


def test_importance_loss_matches_the_loops(logits):
    probs = jax.nn.softmax(jnp.asarray(logits))
    experts = select_topk(probs, jnp.zeros(E), 2)
    weights = combine_weights(probs, experts)
    want = oracles.importance_loss(weights, experts, E)
    np.testing.assert_allclose(importance_loss(weights, experts, E), want, rtol=1e-5)
    even = jnp.asarray(np.arange(12).reshape(6, 2) % E, jnp.int32)
    np.testing.assert_allclose(importance_loss(jnp.full((6, 2), 0.5), even, E), 0.0, atol=1e-7)


def test_importance_is_not_load():
    """Three light tokens weigh as much as one heavy one: no importance loss, a load that is three to one."""
    experts, weights = jnp.array([[0], [0], [0], [1]]), jnp.array([[1 / 3], [1 / 3], [1 / 3], [1.0]])
    assert float(importance_loss(weights, experts, 2)) < 1e-12
    np.testing.assert_array_equal(expert_load(experts, 2), [3, 1])


def test_z_loss_does_not_balance():
    """It asks every logit of a token to be smaller by its softmax, whoever is overloaded."""
    logits = jnp.tile(jnp.array([[3.0, 0.0, 0.0]]), (4, 1))
    slope = jax.grad(z_loss)(logits)
    pull = 2 * np.log(np.exp(3) + 2) * np.asarray(jax.nn.softmax(logits)) / 4
    np.testing.assert_allclose(slope, pull, rtol=1e-5)
    assert float(z_loss(jnp.array([[0.0, 0.0, 0.0]]))) > float(z_loss(jnp.array([[0.9, -40.0, -40.0]]))), (
        "one expert for everything can be the cheaper way"
    )


# Our convention and those of others


@pytest.fixture(scope="module")
def two_layers(logits):
    """Softmax affinities and the two experts of each token, for two layers that lean opposite ways."""
    lean = np.linspace(-1, 1, E)
    layers = [np.stack([oracles.softmax(row) for row in logits + sign * lean]) for sign in (1, -1)]
    return [(p, np.argsort(-p, axis=1)[:, :2].astype(np.int32)) for p in layers]


def ours(p, experts) -> float:
    return float(load_balance_loss(jnp.asarray(p, jnp.float32), jnp.asarray(experts)))


def test_switch_is_ours_with_one_expert(two_layers):
    p, experts = two_layers[0]
    np.testing.assert_allclose(oracles.switch_loss(p, experts), ours(p, experts[:, :1]), rtol=1e-5)


def test_transformers_is_k_times_ours_of_pooled_layers(two_layers):
    pooled = [np.concatenate(parts) for parts in zip(*two_layers, strict=True)]
    np.testing.assert_allclose(oracles.transformers_loss(two_layers), 2 * ours(*pooled), rtol=1e-5)
    mean_over_layers = np.mean([ours(*layer) for layer in two_layers])
    assert ours(*pooled) < 0.95 * mean_over_layers, "opposite imbalances cancel in the pool"


def test_gshard_is_ours_of_first_choices_over_e_squared(two_layers):
    p, experts = two_layers[0]
    np.testing.assert_allclose(oracles.gshard_loss(p, experts), ours(p, experts[:, :1]) / E**2, rtol=1e-5)


@pytest.mark.parametrize(("version", "score"), [("V2", "softmax"), ("V3", "sigmoid"), ("V3", "sqrtsoftplus")])
def test_deepseek_is_ours_by_sequence(version, score, logits):
    scores = oracles.affinities(logits, score)
    experts = np.argsort(-scores, axis=1)[:, :2].astype(np.int32)
    found = sequence_balance_loss(jnp.asarray(scores, jnp.float32), jnp.asarray(experts), SEGMENTS, 3)
    parts = [np.asarray(SEGMENTS) == s for s in range(3)]
    want = np.mean([oracles.deepseek_loss(scores[here], experts[here], normalize=version == "V3") for here in parts])
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_megablocks_is_the_mean_of_ours_over_layers(two_layers):
    want = np.mean([ours(*layer) for layer in two_layers])
    np.testing.assert_allclose(oracles.megablocks_loss(two_layers), want, rtol=1e-5)


def test_the_balanced_values_of_the_table():
    p = np.full((E, E), 1 / E)
    experts = ((np.arange(E)[:, None] + np.arange(2)) % E).astype(np.int32)
    found = {
        "ours": ours(p, experts),
        "switch": oracles.switch_loss(p, experts),
        "transformers": oracles.transformers_loss([(p, experts)] * 2),
        "gshard": oracles.gshard_loss(p, experts),
        "deepseek": oracles.deepseek_loss(p, experts, normalize=True),
        "megablocks": oracles.megablocks_loss([(p, experts)] * 2),
    }
    want = {"ours": 1, "switch": 1, "transformers": 2, "gshard": 1 / E**2, "deepseek": 1, "megablocks": 1}
    assert found == pytest.approx(want, rel=1e-5)


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


def test_a_device_waits_for_the_busiest():
    load = jnp.array([[6.0, 0.0, 3.0, 3.0], [4.0, 4.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(straggler_factor(load, 2), [1.0, 8 / 6, 1.0], rtol=1e-6)
    np.testing.assert_allclose(straggler_factor(load, 4), max_violation(load) + 1, rtol=1e-6)
    np.testing.assert_allclose(straggler_factor(load, 1), 1.0)
    for wrong in (3, 0):
        with pytest.raises(ValueError, match=f"num_devices={wrong} must divide the 4 experts"):
            straggler_factor(load, wrong)


def test_batches_that_lean_different_ways_cancel():
    loads = np.random.default_rng(0).multinomial(60, [0.1, 0.1, 0.2, 0.2, 0.2, 0.2], size=8).astype(np.float32)
    found = global_max_violation(jnp.asarray(loads))
    np.testing.assert_allclose(found, oracles.max_violation(loads.sum(axis=0)), rtol=1e-6)
    assert float(found) < float(max_violation(jnp.asarray(loads)).mean())


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


@pytest.mark.parametrize("rate", [0.001, 0.3])
def test_the_bias_moves_by_signs_and_keeps_a_zero_mean(rate):
    """A little too much or ten times too much: the same step."""
    bias = jnp.array([0.1, -0.1, 0.2, -0.2])
    near, far = (bias_update(bias, jnp.array(counts), rate) for counts in ([5.0, 4, 4, 3], [13.0, 1, 1, 1]))
    np.testing.assert_allclose(near.mean(), 0.0, atol=1e-7)
    np.testing.assert_allclose(far.mean(), 0.0, atol=1e-7)
    np.testing.assert_allclose(near, bias + rate * jnp.array([-1.0, 0, 0, 1]), atol=1e-6)
    np.testing.assert_allclose(far, bias + rate * jnp.array([-1.5, 0.5, 0.5, 0.5]), atol=1e-6)


# In a model


def test_the_bias_counts_the_whole_batch_and_only_training_moves_it(tiny_config):
    """Evaluation leaves every bit; a step moves the bias by the load over all sequences."""
    from flax import nnx

    from minimoe import MoETransformer
    from minimoe.training import Recipe, make_optimizer, train_step
    from minimoe.training.evaluate import eval_step

    recipe = Recipe(steps=3, router_bias_rate=0.01, sequence_balance_weight=0.5)
    model = MoETransformer(tiny_config.replace(num_layers=1).replace_moe(dispatch="dense"), rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (3, 5), 0, 19, jnp.int32)
    where = jnp.ones((3, 5), bool)

    def biases():
        return [np.array(layer.ffn.router.bias[...]) for layer in model.layers]

    eval_step(model, tokens, tokens, where)
    assert all((bias == 0).all() for bias in biases())
    optimizer = nnx.Optimizer(model, make_optimizer(recipe), wrt=nnx.Param)
    metrics = train_step(model, optimizer, tokens, tokens, where, jax.random.key(1), recipe=recipe)
    assert [float(load.sum()) for load in metrics.load] == [3 * 5 * 2]
    for bias, load in zip(biases(), np.asarray(metrics.load), strict=True):
        rate = 0.01 * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi / 3)))  # the schedule after one of three steps
        np.testing.assert_allclose(bias, oracles.bias_update(np.zeros(4), load.tolist(), rate), atol=1e-7)


def test_the_sequence_loss_of_a_step_is_by_row(logits):
    from minimoe.moe import Routing
    from minimoe.training.step import sequence_loss

    where = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    records, wanted = [], []
    for shift in (0.0, 1.0):
        x = logits + shift * np.linspace(0, 1, E, dtype=np.float32)
        probs = jax.nn.sigmoid(jnp.asarray(x))
        experts = select_topk(probs, jnp.zeros(E), 2)
        rest = {"weights": combine_weights(probs, experts), "logits": jnp.asarray(x), "load": jnp.zeros(E)}
        used = jnp.ones(experts.shape, bool)
        records.append(Routing(experts=experts, used=used, probs=probs, dropped=jnp.zeros(()), **rest))
        rows = np.repeat([0, 1, 2], 4)
        wanted.append(oracles.sequence_balance_loss(np.asarray(probs), experts, rows, where.reshape(-1)))
    np.testing.assert_allclose(sequence_loss(tuple(records), jnp.asarray(where)), np.mean(wanted), rtol=1e-5)
    assert float(sequence_loss((), jnp.asarray(where))) == 0.0
