"""Affinities, selection, combine weights and load."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe import MoEConfig, UserError
from minimoe.moe import (
    AFFINITIES,
    DISPATCHERS,
    SELECTORS,
    HashTable,
    MoELayer,
    Router,
    RouterBias,
    combine_weights,
    depends_on_batch,
    expert_capacity,
    expert_load,
    load_balance_loss,
    make_hash_table,
    noisy_logits,
    one_hot_experts,
    select_expert_choice,
    select_group_limited,
    select_hash,
    select_topk,
    used_experts,
    weights_by_expert,
)
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
    chosen = select_topk(ours, jnp.asarray(bias), top_k)
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


# Group-limited


@pytest.mark.parametrize(
    ("groups", "kept", "top_k"), [(1, 1, 3), (2, 1, 2), (4, 2, 3), (4, 4, 5), (8, 3, 3), (8, 8, 8)]
)
@pytest.mark.parametrize("score", AFFINITIES)
def test_group_limited_matches_the_loops(score, groups, kept, top_k):
    rng = np.random.default_rng(0)
    probs = AFFINITIES[score](jnp.asarray(rng.normal(size=(23, 8)), jnp.float32))
    bias = jnp.asarray(rng.normal(size=8) - 0.7, jnp.float32)  # many biased scores are negative
    found = select_group_limited(probs, bias, top_k, num_groups=groups, top_k_groups=kept)
    np.testing.assert_array_equal(found, oracles.group_limited(probs, bias, top_k, groups, kept))
    assert found.dtype == jnp.int32
    assert max(len(set((row * groups // 8).tolist())) for row in np.asarray(found)) <= kept


def test_all_groups_kept_is_plain_topk(logits):
    probs, bias = AFFINITIES["sigmoid"](jnp.asarray(logits)), jnp.array([0.3, -0.2, 0.0, 0.1, -0.2])
    found = select_group_limited(probs, bias, 3, num_groups=5, top_k_groups=5)
    np.testing.assert_array_equal(found, select_topk(probs, bias, 3))


def test_masked_groups_lose_to_negative_scores():
    """Masked with 0, expert 2 or 3 would beat expert 1, whose biased score is below 0."""
    probs, bias = jnp.array([[0.5, 0.1, 0.2, 0.2]]), jnp.array([0.0, -0.3, -0.9, -0.9])
    np.testing.assert_array_equal(select_group_limited(probs, bias, 2, num_groups=2, top_k_groups=1), [[0, 1]])


def test_experts_banned_by_a_bias_of_minus_infinity():
    """A group of which one expert is banned goes before one of which both are; so no banned expert is chosen."""
    probs, bias = jnp.full((3, 8), 0.5), jnp.zeros(8).at[jnp.array([0, 1, 2, 5])].set(-jnp.inf)
    found = np.asarray(select_group_limited(probs, bias, 3, num_groups=4, top_k_groups=2))
    np.testing.assert_array_equal(found, [[3, 6, 7]] * 3)


def test_ties_between_groups_go_to_the_lower():
    found = select_group_limited(jnp.full((1, 6), 0.5), jnp.zeros(6), 2, num_groups=3, top_k_groups=2)
    np.testing.assert_array_equal(found, [[0, 1]])


# The router, by selector

D, E, K, V = 8, 6, 2, 19
CONFIG = MoEConfig(d_model=D, d_expert=4, num_experts=E, top_k=K, score="sigmoid", hash_vocab_size=V)
CHANGES = {
    "topk": {},
    "group_limited": {"num_groups": 3, "top_k_groups": 2},
    "noisy_topk": {},
    "hash": {},
    "expert_choice": {"score": "softmax", "capacity_factor": 1.0},
}
BIAS = jnp.array([0.3, -0.2, 0.0, 0.1, -0.2, 0.0])


def config_of(select: str, **changes) -> MoEConfig:
    return MoEConfig(**vars(CONFIG) | {"select": select} | CHANGES[select] | changes)


def router_of(select: str, seed: int = 0, **changes) -> Router:
    router = Router(config_of(select, **changes), rngs=nnx.Rngs(seed))
    router.kernel[...] = jax.random.normal(jax.random.key(1), router.kernel.shape)
    router.bias[...] = BIAS
    return router


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (12, D))


TOKENS = jnp.asarray(np.random.default_rng(3).integers(V, size=12), jnp.int32)
WHERE = np.arange(12) % 4 != 1


@pytest.mark.parametrize("where", [None, WHERE], ids=["all", "masked"])
@pytest.mark.parametrize("select", CHANGES)
def test_router_matches_the_loops(select, where, x):
    router = router_of(select)
    config, bias = router.config, np.asarray(BIAS)
    routing = router(x, tokens=TOKENS, where=None if where is None else jnp.asarray(where))
    probs = oracles.affinities(np.asarray(x) @ np.asarray(router.kernel[...]), config.score)
    if select == "expert_choice":
        used = oracles.expert_choice(probs, expert_capacity(12, config), where)
        experts, weights = np.tile(np.arange(E), (12, 1)), np.where(used, probs, 0.0)
    else:
        experts, _, _ = oracles.route(np.log(probs / (1 - probs)), bias, K, score="sigmoid")
        if select == "group_limited":
            experts = oracles.group_limited(probs, bias, K, 3, 2)
        if select == "hash":
            experts = np.asarray(router.table[...])[np.asarray(TOKENS)]
        used = np.ones((12, K), bool) if where is None else np.repeat(where[:, None], K, axis=1)
        chosen = np.take_along_axis(probs, experts, axis=1)
        weights = np.where(used, chosen / chosen.sum(axis=1, keepdims=True), 0.0)
    np.testing.assert_array_equal(routing.experts, experts)
    np.testing.assert_allclose(routing.weights, weights, rtol=1e-5)
    np.testing.assert_allclose(routing.probs, probs, rtol=1e-5)
    load = [np.sum(used & (experts == e)) for e in range(E)]
    np.testing.assert_array_equal(routing.load, load)
    assert (routing.experts.dtype, routing.load.dtype, routing.dropped.dtype) == (jnp.int32, jnp.float32, jnp.float32)


@pytest.mark.parametrize("select", CHANGES)
def test_no_selector_passes_gradient_to_the_bias_and_all_to_the_kernel(select, x):
    router = router_of(select)
    graphdef, params, bias, rest = nnx.split(router, nnx.Param, RouterBias, ...)
    factor = jax.random.normal(jax.random.key(4), (12, E if select == "expert_choice" else K))

    def total(params, bias):
        twin = nnx.merge(graphdef, params, bias, rest)
        return (twin(x, tokens=TOKENS, rngs=nnx.Rngs(5)).weights * factor).sum()

    slopes, bias_slope = jax.jit(jax.grad(total, argnums=(0, 1)))(params, bias)
    assert [float(jnp.abs(slope).max()) for slope in jax.tree.leaves(bias_slope)] == [0.0]
    flat = {path[-1]: np.abs(np.asarray(slope[...])).max() for path, slope in nnx.to_flat_state(slopes)}
    assert set(flat) == {"kernel"} | ({"noise_kernel"} if select == "noisy_topk" else set())
    assert min(flat.values()) > 0


# Noise


def test_noise_is_normal_times_softplus():
    logits, noise = jnp.zeros((4000, 2)), jnp.tile(jnp.array([[0.0, 3.0]]), (4000, 1))
    draws = np.asarray(noisy_logits(logits, noise, jax.random.key(0)))
    np.testing.assert_allclose(draws.std(axis=0), [np.log(2), np.log1p(np.exp(3))], rtol=0.05)
    np.testing.assert_allclose(draws.mean(axis=0), 0.0, atol=0.15)


def test_without_rngs_noisy_topk_is_topk(x):
    noisy, plain = router_of("noisy_topk")(x), router_of("topk")(x)
    for name, value in vars(plain).items():
        np.testing.assert_array_equal(getattr(noisy, name), value, err_msg=name)


def test_noise_moves_choices_and_weights_by_the_key(x):
    router = router_of("noisy_topk", normalize_weights=False)
    quiet, loud, again, other = (
        router(x, rngs=rngs) for rngs in (None, nnx.Rngs(routing=1), nnx.Rngs(routing=1), nnx.Rngs(routing=2))
    )
    np.testing.assert_array_equal(loud.logits, again.logits)
    assert not (np.asarray(loud.logits) == np.asarray(other.logits)).any()
    assert (np.asarray(loud.experts) != np.asarray(quiet.experts)).any()
    chosen = np.take_along_axis(oracles.sigmoid(np.asarray(loud.logits)), np.asarray(loud.experts), axis=1)
    np.testing.assert_allclose(loud.weights, chosen, rtol=1e-5)
    rngs = nnx.Rngs(0)
    assert not (np.asarray(router(x, rngs=rngs).logits) == np.asarray(router(x, rngs=rngs).logits)).any(), (
        "two layers that share rngs draw different noise"
    )


def test_noise_needs_a_stream(x):
    with pytest.raises(UserError, match=r"noisy_topk.*add routing=key"):
        router_of("noisy_topk")(x, rngs=nnx.Rngs(dropout=0))


# Hash


@pytest.mark.parametrize(
    ("vocab", "experts", "top_k"), [(19, 6, 2), (64, 8, 3), (257, 16, 6), (10, 5, 5), (7, 4, 1), (1, 9, 6), (30, 1, 1)]
)
def test_hash_rows_are_distinct_and_even(vocab, experts, top_k):
    table = np.asarray(make_hash_table(jax.random.key(0), vocab, experts, top_k))
    assert (table.shape, table.dtype) == ((vocab, top_k), np.int32)
    assert all(len(set(row)) == top_k for row in table.tolist())
    counts = np.bincount(table.reshape(-1), minlength=experts)
    assert counts.size == experts
    assert counts.max() - counts.min() <= 1


def test_hash_tables_come_from_the_seed():
    tables = [np.asarray(make_hash_table(jax.random.key(seed), 64, 8, 2)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(tables[0], tables[1])
    assert (tables[0] != tables[2]).any()
    pairs = {tuple(sorted(row)) for row in tables[0].tolist()}
    assert len(pairs) > 14, "of 28 pairs, many occur: neighbours in one permutation are not neighbours in the next"


def test_hash_looks_at_ids_and_at_nothing_else(x):
    router = router_of("hash")
    here, there = router(x, tokens=TOKENS), router(x[::-1], tokens=TOKENS)
    np.testing.assert_array_equal(here.experts, there.experts)
    assert (np.asarray(here.weights) != np.asarray(there.weights)).any(), "what an expert is worth is still learned"
    router.bias[...] = 100 * BIAS
    np.testing.assert_array_equal(router(x, tokens=TOKENS).experts, here.experts)
    with pytest.raises(UserError, match=r"token id, but tokens=None; pass"):
        router(x)


def test_ids_outside_the_table_are_refused_where_they_are_known():
    table = jnp.array([[0, 1], [2, 3], [4, 5]])
    with pytest.raises(UserError, match=r"tokens\[0\] is -5"):
        select_hash(table, jnp.array([-5, 0, 2, 99]))
    found = jax.jit(select_hash)(table, jnp.array([-5, 1, 2, 99]))  # the router makes the weights of 0 and 3 NaN
    np.testing.assert_array_equal(found, [[0, 1], [2, 3], [4, 5], [0, 1]])


def test_the_table_is_state_and_not_a_parameter():
    router = router_of("hash")
    assert isinstance(router.table, HashTable)
    assert [path[-1] for path, _ in nnx.to_flat_state(nnx.state(router, nnx.Param))] == ["kernel"]


# Expert choice


@pytest.mark.parametrize("capacity", [0, 1, 3, 12])
@pytest.mark.parametrize("where", [None, WHERE, np.zeros(12, bool)], ids=["all", "masked", "nobody"])
def test_experts_choose_as_in_the_loops(capacity, where):
    probs = jax.nn.softmax(jax.random.normal(jax.random.key(0), (12, E)))
    found = select_expert_choice(probs, capacity, where=None if where is None else jnp.asarray(where))
    np.testing.assert_array_equal(found, oracles.expert_choice(np.asarray(probs), capacity, where))
    real = 12 if where is None else int(where.sum())
    np.testing.assert_array_equal(np.asarray(found).sum(axis=0), min(capacity, real))


def test_experts_prefer_the_earlier_of_equal_tokens():
    found = select_expert_choice(jnp.full((4, 2), 0.5), 2)
    np.testing.assert_array_equal(found, [[True, True], [True, True], [False, False], [False, False]])


def test_expert_choice_balances_whatever_the_router_prefers(x):
    """The affinities all favour expert 0; every expert still gets T*K/E tokens, some tokens many and others none."""
    router = router_of("expert_choice")
    router.kernel[...] = router.kernel[...].at[:, 0].add(3.0)
    routing = router(jnp.abs(x))
    np.testing.assert_array_equal(routing.load, 12 * K / E)
    np.testing.assert_allclose(load_balance_loss(routing.probs, routing.experts), 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        np.asarray(routing.weights)[np.asarray(routing.weights) > 0],
        np.asarray(routing.probs)[np.asarray(routing.weights) > 0],
    )
    per_token = (np.asarray(routing.weights) > 0).sum(axis=1)
    assert (per_token.sum(), per_token.min() < K < per_token.max()) == (12 * K, True)


def test_one_token_alone_is_taken_by_all(x):
    """What decoding does to expert choice."""
    assert (np.asarray(router_of("expert_choice")(x[:1]).weights) > 0).all()


# What the rest of the package asks about a selector


@pytest.mark.parametrize("select", CHANGES)
def test_facts_about_selectors_are_true(select, x):
    """Each fact against what the router does."""
    facts = SELECTORS[select]
    quiet, loud = router_of(select), router_of(select)
    loud.bias[...] = 50 * BIAS
    before, after = (router(x, tokens=TOKENS) for router in (quiet, loud))
    assert facts.uses_bias == bool((before.experts != after.experts).any())
    other_ids = quiet(x, tokens=(TOKENS + 1) % V)
    assert facts.uses_token_ids == bool((before.experts != other_ids.experts).any())
    assert facts.uses_noise == bool((quiet(x, tokens=TOKENS, rngs=nnx.Rngs(5)).logits != before.logits).any())
    assert facts.lists_all_experts == (before.experts.shape[1] == E > K)
    alone = quiet(x[:1], tokens=TOKENS[:1])
    assert facts.counts_slots == bool((alone.weights != before.weights[:1]).any())


@pytest.mark.parametrize("dispatch", DISPATCHERS)
@pytest.mark.parametrize("select", CHANGES)
@pytest.mark.parametrize("factor", [1.0, E / K])
def test_depends_on_batch_is_seen_in_outputs(select, dispatch, factor, x):
    """The tokens of a batch that holds one of them over and over, against each of them alone."""
    config = config_of(select, dispatch=dispatch, capacity_factor=factor)
    layer = MoELayer(config, rngs=nnx.Rngs(0))
    layer.router.kernel[...] = jax.random.normal(jax.random.key(1), layer.router.kernel.shape)
    ids = TOKENS.at[1:].set(TOKENS[0])
    rows = x.at[1:].set(x[0])
    together, alone = layer(rows, tokens=ids)[0], layer(rows[:1], tokens=ids[:1])[0]
    same = bool(np.allclose(together, np.broadcast_to(alone, together.shape), rtol=1e-4, atol=1e-6))
    assert depends_on_batch(config) == (not same)


def test_pairs_against_loops():
    rng = np.random.default_rng(0)
    experts = np.stack([rng.permutation(5)[:3] for _ in range(7)]).astype(np.int32)
    weights, used = rng.normal(size=(7, 3)).astype(np.float32), rng.uniform(size=(7, 3)) < 0.5
    table, marks = np.zeros((7, 5), np.float32), np.zeros((7, 5), bool)
    for t, k in np.ndindex(7, 3):
        table[t, experts[t, k]] = weights[t, k]
        marks[t, experts[t, k]] = used[t, k]
    experts, weights = jnp.asarray(experts), jnp.asarray(weights)
    np.testing.assert_array_equal(weights_by_expert(experts, weights, 5), table)
    np.testing.assert_array_equal(used_experts(experts, 5, jnp.asarray(used)), marks)
    np.testing.assert_array_equal(used_experts(experts, 5), table != 0)
    np.testing.assert_array_equal(one_hot_experts(experts, 5).argmax(axis=-1), experts)
