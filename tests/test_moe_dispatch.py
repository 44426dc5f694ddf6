"""Every dispatch computes the same function and the same gradients, whatever the load."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from minimoe import MoEConfig, UserError
from minimoe.config import DISPATCHES
from minimoe.moe import DISPATCHERS, capacity_dispatch, dispatch_flops, drop_rate, expert_capacity
from minimoe.moe.capacity import make_capacity_plan
from minimoe.moe.dropless import (
    BLOCK_ROWS,
    FEW_ASSIGNMENTS,
    dropless_dispatch,
    dropless_experts,
    make_plan,
    overflow_block,
    slots_per_expert,
)
from minimoe.moe.indices import sort_by_expert

# name: (T, E, K, D, F, load)
CASES = {
    "balanced": (48, 4, 2, 8, 6, "round"),
    "one_expert_takes_everything": (300, 4, 1, 8, 6, "one"),
    "one_expert_in_every_token": (150, 4, 2, 8, 6, "one"),
    "odd_sizes": (37, 5, 3, 12, 7, "random"),
    "single_expert": (20, 1, 1, 8, 6, "random"),
    "all_experts": (10, 3, 3, 8, 6, "random"),
    "few_tokens": (8, 4, 2, 8, 6, "random"),
    "just_above_few": (17, 4, 1, 8, 6, "one"),
}


def choose(tokens: int, num_experts: int, top_k: int, load: str) -> np.ndarray:
    """``[T, K]`` distinct ids a token: round robin, random, or expert 1 always first."""
    rng = np.random.default_rng(0)
    if load == "round":
        return ((np.arange(tokens)[:, None] * top_k + np.arange(top_k)) % num_experts).astype(np.int32)
    picks = np.stack([rng.permutation(num_experts)[:top_k] for _ in range(tokens)])
    if load == "one":
        rest = [rng.permutation([e for e in range(num_experts) if e != 1])[: top_k - 1] for _ in range(tokens)]
        picks = np.concatenate([np.ones((tokens, 1)), np.stack(rest)], axis=1)
    return picks.astype(np.int32)


@functools.cache
def problem(name: str):
    """``(x, experts, weights, gate_up, down)`` and a cotangent for y."""
    tokens, num_experts, top_k, width, hidden, load = CASES[name]
    rng = np.random.default_rng(1)
    x = rng.normal(size=(tokens, width))
    weights = rng.uniform(0.1, 1.0, size=(tokens, top_k))
    gate_up = rng.normal(size=(num_experts, width, 2 * hidden)) * width**-0.5
    down = rng.normal(size=(num_experts, hidden, width)) * hidden**-0.5
    cotangent = rng.normal(size=(tokens, width))
    x, weights, gate_up, down, cotangent = (jnp.asarray(a, jnp.float32) for a in (x, weights, gate_up, down, cotangent))
    return (x, jnp.asarray(choose(tokens, num_experts, top_k, load)), weights, gate_up, down), cotangent


def value_and_gradients(dispatch, args, cotangent):
    """``y`` and the gradients of x, weights, gate_up and down."""
    x, experts, weights, gate_up, down = args
    y, pull = jax.vjp(lambda x, w, g, d: dispatch(x, experts, w, g, d), x, weights, gate_up, down)
    return y, pull(cotangent)


@jax.jit
def all_dispatchers(args, cotangent):
    """By name; one program a case, since compiling is what takes time."""
    return {name: value_and_gradients(dispatch, args, cotangent) for name, dispatch in DISPATCHERS.items()}


@functools.cache
def results(name: str):
    return all_dispatchers(*problem(name))


@functools.cache
def by_definition(name: str) -> np.ndarray:
    return oracles.moe_forward(*(np.asarray(a) for a in problem(name)[0]))


def assert_gradients_match(found, wanted):
    for label, a, b in zip(("x", "weights", "gate_up", "down"), found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5, err_msg=f"gradient of {label}")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dispatch", DISPATCHERS)
def test_value_is_the_definition(dispatch, case):
    np.testing.assert_allclose(results(case)[dispatch][0], by_definition(case), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dispatch", [name for name in DISPATCHERS if name != "loop"])
def test_gradients_are_those_of_the_loop(dispatch, case):
    assert_gradients_match(results(case)[dispatch][1], results(case)["loop"][1])


@pytest.mark.parametrize("dispatch", ["dense", "dropless"])
def test_without_jit(dispatch):
    """The case whose overflow loop turns: a loop under jit, and eagerly too."""
    case = "one_expert_in_every_token"
    y, grads = value_and_gradients(DISPATCHERS[dispatch], *problem(case))
    np.testing.assert_allclose(y, by_definition(case), rtol=1e-4, atol=1e-5)
    assert_gradients_match(grads, results(case)["loop"][1])


planned = jax.jit(make_plan, static_argnums=1)


def num_blocks(name: str) -> int:
    return int(planned(problem(name)[0][1], CASES[name][1]).block_end[-1])


def test_overflow_runs_only_when_load_is_uneven():
    """The paths that the cases above mean to take are the ones they take."""
    assert num_blocks("one_expert_takes_everything") == -(-(300 - slots_per_expert(300, 4)) // BLOCK_ROWS) >= 3
    assert num_blocks("one_expert_in_every_token") >= 1
    assert [num_blocks(name) for name in ("balanced", "single_expert", "all_experts")] == [0, 0, 0]


@pytest.mark.parametrize(("case", "few"), [("few_tokens", True), ("just_above_few", False)])
def test_the_choice_of_path_depends_on_shapes(case, few):
    (x, experts, *rest), _ = problem(case)
    assert (experts.size <= FEW_ASSIGNMENTS) == few
    loops = str(jax.make_jaxpr(dropless_dispatch)(x, experts, *rest)).count("while")
    assert (loops == 0) == few


def test_both_paths_agree_on_the_same_tokens():
    many = jax.jit(functools.partial(value_and_gradients, dropless_experts))(*problem("few_tokens"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), results("few_tokens")["dropless"], many
    )


def test_any_load_gives_the_same_answer():
    """Thirty loads from even to collapsed, through one compiled program."""
    (x, _, _, gate_up, down), _ = problem("one_expert_takes_everything")
    rng, run = np.random.default_rng(0), jax.jit(dropless_experts)
    by_expert = np.stack([[oracles.swiglu_ffn(row, gate_up[e], down[e]) for row in np.asarray(x)] for e in range(4)])
    seen = set()
    for sharpness in [0, *np.geomspace(0.005, 5, 29)]:
        experts = np.arange(300, dtype=np.int32)[:, None] % 4
        if sharpness:
            experts = rng.choice(4, size=(300, 1), p=rng.dirichlet(np.ones(4) / sharpness)).astype(np.int32)
        weights = rng.uniform(size=(300, 1)).astype(np.float32)
        want = weights * by_expert[experts[:, 0], np.arange(300)]
        np.testing.assert_allclose(run(x, experts, weights, gate_up, down), want, rtol=1e-4, atol=1e-5)
        seen.add(int(planned(jnp.asarray(experts), 4).block_end[-1]))
    assert 0 in seen
    assert max(seen) >= 3


def test_every_assignment_has_exactly_one_place():
    """Slots and overflow blocks together hold each assignment once, at its own expert."""
    block = jax.jit(overflow_block, static_argnums=2)
    for name in ("one_expert_takes_everything", "one_expert_in_every_token", "odd_sizes", "balanced"):
        num_experts = CASES[name][1]
        experts = problem(name)[0][1]
        flat = np.asarray(experts).reshape(-1)
        plan = planned(experts, num_experts)
        held = []
        for e in range(num_experts):
            here = np.asarray(plan.held[e])
            here = here[here < flat.size]
            assert (flat[here] == e).all()
            held += here.tolist()
        seat = np.asarray(plan.seat).reshape(-1)
        np.testing.assert_array_equal(np.asarray(plan.held).reshape(-1)[seat[held]], held)
        assert (np.delete(seat, held) == plan.held.size).all()
        for i in range(int(plan.block_end[-1])):
            expert, assignment = block(plan, jnp.int32(i), plan.held.shape[1])
            here = np.asarray(assignment)[np.asarray(assignment) < flat.size]
            assert len(here) > 0, "no empty turns of the loop"
            assert (flat[here] == int(expert)).all()
            held += here.tolist()
        assert sorted(held) == list(range(flat.size))
        np.testing.assert_array_equal(plan.load, oracles.load(experts, num_experts))


def test_hand_written_gradients_match_finite_differences():
    """With one full overflow block, so both halves of the backward pass are differentiated."""
    rng = np.random.default_rng(2)
    shapes = ((40, 3), (40, 1), (8, 3, 4), (8, 2, 3))
    x, weights, gate_up, down = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    experts = jnp.full((40, 1), 5, jnp.int32).at[:4, 0].set(jnp.arange(4, dtype=jnp.int32))
    assert int(planned(experts, 8).block_end[-1]) == 1
    run = jax.jit(lambda x, w, g, d: dropless_experts(x, experts, w, g, d))
    check_grads(run, (x, weights, gate_up, down), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


def test_bfloat16_stays_within_its_precision():
    """Against loops and float32 on the same rounded numbers; 2**-8 is half a step of bfloat16."""
    (x, experts, weights, gate_up, down), cotangent = problem("one_expert_in_every_token")
    x, gate_up, down, cotangent = (a.astype(jnp.bfloat16) for a in (x, gate_up, down, cotangent))
    found = all_dispatchers((x, experts, weights, gate_up, down), cotangent)
    x, gate_up, down, cotangent = (a.astype(jnp.float32) for a in (x, gate_up, down, cotangent))
    args = (x, experts, weights, gate_up, down)
    want, want_grads = oracles.moe_forward(*map(np.asarray, args)), all_dispatchers(args, cotangent)["loop"][1]
    for y, grads in found.values():
        assert [a.dtype for a in (y, *grads)] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.bfloat16, jnp.bfloat16]
        assert relative_error(y, want) < 4 * 2**-8
        for a, b in zip(grads, want_grads, strict=True):
            assert relative_error(a, b) < 4 * 2**-8


@pytest.mark.parametrize("load", ["one", "random"])
@pytest.mark.parametrize("tokens", [100, 5_000, 70_000])
def test_bfloat16_is_as_exact_as_dense_at_any_load_and_size(tokens, load):
    """Sums over thousands of tokens are kept in float32 by both, the overflow loop included."""
    rng = np.random.default_rng(0)
    shapes = ((tokens, 8), (4, 8, 8), (4, 4, 8), (tokens, 8))
    x, gate_up, down, cotangent = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes)
    cotangent = cotangent + 1  # without a mean, sums over tokens would be noise
    experts = jnp.asarray(choose(tokens, 4, 2, load) if tokens < 1e4 else rng.permuted(
        np.tile(np.arange(4, dtype=np.int32), (tokens, 1)), axis=1)[:, :2])  # fmt: skip
    if load == "one":
        experts = experts.at[:, 0].set(1).at[:, 1].set(jnp.where(experts[:, 1] == 1, 2, experts[:, 1]))
    weights = jnp.asarray(rng.uniform(0.1, 1.0, size=(tokens, 2)), jnp.float32)
    args = (x, experts, weights, gate_up, down)
    wide = (x.astype(jnp.float32), experts, weights, gate_up.astype(jnp.float32), down.astype(jnp.float32))
    want = dense_and_dropless(wide, cotangent.astype(jnp.float32))["dense"]
    errors = {
        name: jax.tree.leaves(jax.tree.map(relative_error, found, want))
        for name, found in dense_and_dropless(args, cotangent).items()
    }
    labels = ("y", "x", "weights", "gate_up", "down")
    for label, ours, bar in zip(labels, errors["dropless"], errors["dense"], strict=True):
        assert ours <= 1.5 * bar, f"{label}: {ours:.2%}, dense {bar:.2%}"


@jax.jit
def dense_and_dropless(args, cotangent):
    return {name: value_and_gradients(DISPATCHERS[name], args, cotangent) for name in ("dense", "dropless")}


def relative_error(found, wanted) -> float:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


# What a token contains stays with it


@pytest.mark.parametrize("bad", [np.nan, 1e30], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_no_token_reaches_another(case, bad):
    """A bad token changes nobody else's output, nor anybody else's gradients of x and of the combine weights.

    Every third token is padding, which has combine weights of 0. Of the bad tokens one is padding; one has the last
    slot of an expert, whose row an assignment without a slot must not read; one is the last of all.
    """
    (x, experts, weights, gate_up, down), cotangent = problem(case)
    weights = weights.at[::3].set(0.0)
    others = np.ones(len(x), bool)
    others[[3, min(slots_per_expert(experts.size, gate_up.shape[0]), len(x)) - 1, -1]] = False
    clean = all_dispatchers((x, experts, weights, gate_up, down), cotangent)
    for what, (spoilt_x, spoilt_cotangent) in {
        "token": (x.at[~others].set(bad), cotangent),
        "feature": (x.at[~others, 1].set(bad), cotangent),
        "incoming gradient": (x, cotangent.at[~others].set(bad)),
    }.items():
        spoilt = all_dispatchers((spoilt_x, experts, weights, gate_up, down), spoilt_cotangent)
        for name in DISPATCHERS:
            (y, (dx, d_weights, *_)), (want_y, (want_dx, want_d_weights, *_)) = spoilt[name], clean[name]
            for part, found, want in (("y", y, want_y), ("dx", dx, want_dx), ("d_weights", d_weights, want_d_weights)):
                np.testing.assert_allclose(
                    found[others], want[others], rtol=1e-5, atol=1e-6, err_msg=f"{name}: {part}, {bad} in the {what}"
                )


def test_a_token_leaves_experts_alone_that_do_not_compute_it():
    """The 185 rows: all tokens to expert 0, one of them bad. The other experts' weights still get clean gradients."""
    rng = np.random.default_rng(0)
    shapes = ((256, 8), (256, 1), (4, 8, 12), (4, 6, 8), (256, 8))
    x, weights, gate_up, down, cotangent = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    args = (x.at[255].set(jnp.nan), jnp.zeros((256, 1), jnp.int32), weights, gate_up, down)
    y, (dx, d_weights, d_gate_up, d_down) = jax.jit(functools.partial(value_and_gradients, dropless_dispatch))(
        args, cotangent
    )
    assert [int(jnp.isnan(a).any(axis=1).sum()) for a in (y, dx, d_weights)] == [1, 1, 1]
    assert [int(jnp.isnan(a).any(axis=(1, 2)).sum()) for a in (d_gate_up, d_down)] == [1, 1]


# Sizes beyond 32 bits


@pytest.mark.parametrize(("num_experts", "assignments"), [(8, 100), (2**20, 4096), (2**31 - 1, 1), (2**31 - 1, 50)])
def test_sorting_is_right_when_expert_and_assignment_exceed_one_key(num_experts, assignments):
    """``E*A`` may pass 2**31: then the two parts are sorted as two arrays."""
    flat = np.random.default_rng(0).integers(0, num_experts, assignments).astype(np.int32)
    flat[-1] = num_experts - 1
    by_expert, order = jax.jit(sort_by_expert, static_argnums=1)(jnp.asarray(flat), num_experts)
    want = np.argsort(flat, kind="stable")
    np.testing.assert_array_equal(order, want)
    np.testing.assert_array_equal(by_expert, flat[want])


def test_a_plan_of_3_million_assignments_for_1024_experts():
    """E*A = 3.2e9. Every assignment is in the place that counting gives it."""
    rng = np.random.default_rng(0)
    experts = rng.integers(0, 1024, (196_608, 16)).astype(np.int32)
    plan = planned(jnp.asarray(experts), 1024)
    np.testing.assert_array_equal(plan.order, np.argsort(experts.reshape(-1), kind="stable"))
    np.testing.assert_array_equal(plan.load, np.bincount(experts.reshape(-1), minlength=1024))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda x: make_plan(x, 8), r"dropless: T\*K=3000000000 assignments exceed .* 2147483647; use fewer tokens"),
        (lambda x: make_plan(x[:2], 2**29), r"dropless: E\*C=4294967296 slots exceed"),
        (lambda x: make_capacity_plan(x, jnp.ones(x.shape, bool), 8, 1), r"capacity: T\*K=3000000000 assignments"),
        (lambda x: make_capacity_plan(x[:9], jnp.ones((9, 3), bool), 8, 2**30), r"capacity: E\*C=8589934592 slots"),
    ],
)  # fmt: skip
def test_sizes_that_32_bits_cannot_count_are_refused(plan, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(plan, jax.ShapeDtypeStruct((10**9, 3), jnp.int32))


# Sizes at the edge, and pairs that were not chosen


@pytest.mark.parametrize("dispatch", DISPATCHERS)
def test_no_tokens_give_no_output(dispatch):
    x, experts, weights = jnp.zeros((0, 4)), jnp.zeros((0, 2), jnp.int32), jnp.zeros((0, 2))
    y = DISPATCHERS[dispatch](x, experts, weights, jnp.ones((3, 4, 6)), jnp.ones((3, 3, 4)), capacity=0)
    assert y.shape == (0, 4)


@jax.jit
def by_every_dispatch(x, experts, weights, gate_up, down):
    return {name: run(x, experts, weights, gate_up, down, capacity=None) for name, run in DISPATCHERS.items()}


@pytest.mark.parametrize(("tokens", "num_experts"), [(1, 1), (1, 5), (3, 4), (31, 4)], ids=str)
def test_experts_that_choose(tokens, num_experts):
    """K = E, most weights 0: for one token, for few, and for enough to leave the path for few."""
    rng = np.random.default_rng(0)
    experts = np.tile(np.arange(num_experts, dtype=np.int32), (tokens, 1))
    weights = rng.uniform(size=(tokens, num_experts)) * (rng.uniform(size=(tokens, num_experts)) < 0.4)
    arrays = rng.normal(size=(tokens, 4)), weights, rng.normal(size=(num_experts, 4, 6)), rng.normal(
        size=(num_experts, 3, 4)
    )  # fmt: skip
    x, weights, gate_up, down = (jnp.asarray(a, jnp.float32) for a in arrays)
    want = oracles.moe_forward(*map(np.asarray, (x, experts, weights, gate_up, down)))
    for name, y in by_every_dispatch(x, jnp.asarray(experts), weights, gate_up, down).items():
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5, err_msg=name)


# Capacity


@pytest.mark.parametrize(
    ("tokens", "factor", "slots"), [(64, 1.25, 20), (64, 1, 16), (10, 1.1, 3), (40, 1.1, 11), (1, 0.1, 1), (0, 1.25, 0),
     (4, 100.0, 4)],
)  # fmt: skip
def test_capacity_is_rounded_up_and_at_most_all_tokens(tokens, factor, slots):
    """40 * 2 / 8 * 1.1 is 11, though not in binary."""
    assert expert_capacity(tokens, MoEConfig(8, 8, num_experts=8, top_k=2, capacity_factor=factor)) == slots


def plan_of(experts, used, num_experts, capacity):
    arrays = jnp.asarray(experts, jnp.int32), jnp.asarray(used, bool)
    return jax.jit(make_capacity_plan, static_argnums=(2, 3))(*arrays, num_experts, capacity)


def test_first_choices_come_before_second_choices():
    """Two slots an expert. Token 0's second choice is dropped for the first choices of later tokens."""
    experts = [[1, 0], [0, 1], [0, 2], [2, 0]]
    plan = plan_of(experts, np.ones((4, 2)), 3, 2)
    np.testing.assert_array_equal(plan.kept, [[True, False], [True, True], [True, True], [True, False]])
    np.testing.assert_array_equal(plan.token, [[1, 2], [0, 1], [3, 2]])


def test_earlier_tokens_come_first():
    plan = plan_of([[1], [1], [0], [1]], np.ones((4, 1)), 2, 2)
    np.testing.assert_array_equal(plan.kept[:, 0], [True, True, True, False])
    np.testing.assert_array_equal(plan.token, [[2, 4], [0, 1]])  # 4: the slot is empty


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("capacity", [1, 5])
def test_capacity_plan_matches_the_loops(case, capacity):
    _, num_experts, *_ = CASES[case]
    experts = np.asarray(problem(case)[0][1])
    used = np.random.default_rng(0).uniform(size=experts.shape) < 0.8
    plan = plan_of(experts, used, num_experts, capacity)
    kept = oracles.kept_by_capacity(experts, used, num_experts, capacity)
    np.testing.assert_array_equal(plan.kept, kept)
    slots = np.asarray(plan.slot)[kept]
    assert len(set(slots.tolist())) == slots.size
    np.testing.assert_array_equal(slots // capacity, experts[kept])
    np.testing.assert_array_equal(np.asarray(plan.token).reshape(-1)[slots], np.nonzero(kept)[0])
    assert (np.asarray(plan.token) < len(experts)).sum() == kept.sum()
    load = oracles.load(experts, num_experts, None) if used.all() else np.array(
        [np.sum(used & (experts == e)) for e in range(num_experts)], np.float32
    )  # fmt: skip
    np.testing.assert_allclose(
        drop_rate(jnp.asarray(load, jnp.float32), capacity), 1 - kept.sum() / used.sum(), atol=1e-6
    )


@pytest.mark.parametrize("case", ["one_expert_in_every_token", "odd_sizes"])
def test_dropped_assignments_count_nothing(case):
    """Value and gradients are those of the loop with the dropped weights at 0, and a dropped weight has no slope."""
    args, cotangent = problem(case)
    x, experts, weights, gate_up, down = args
    kept = oracles.kept_by_capacity(np.asarray(experts), np.ones(experts.shape), gate_up.shape[0], 9)
    assert 0 < kept.sum() < kept.size
    y, grads = jax.jit(functools.partial(value_and_gradients, functools.partial(capacity_dispatch, capacity=9)))(
        args, cotangent
    )
    masked = (x, experts, jnp.where(jnp.asarray(kept), weights, 0.0), gate_up, down)
    want = jax.jit(functools.partial(value_and_gradients, DISPATCHERS["loop"]))(masked, cotangent)
    np.testing.assert_allclose(y, want[0], rtol=1e-4, atol=1e-5)
    d_x, d_weights, *rest = want[1]
    assert_gradients_match(grads, (d_x, np.where(kept, d_weights, 0.0), *rest))


def test_padding_takes_no_slot():
    """``used`` marks it: ninety real tokens find all slots free behind sixty of padding."""
    (x, experts, weights, gate_up, down), _ = problem("one_expert_in_every_token")
    padded, used = weights.at[:60].set(0.0), jnp.ones(weights.shape, bool).at[:60].set(False)
    run = jax.jit(functools.partial(capacity_dispatch, capacity=90))
    y, alone = run(x, experts, padded, gate_up, down, used=used), run(x[60:], experts[60:], weights[60:], gate_up, down)
    np.testing.assert_allclose(y[60:], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone, by_definition("one_expert_in_every_token")[60:], rtol=1e-4, atol=1e-5)
    assert (np.asarray(y[:60]) == 0).all()


# What is computed in vain


def flops_of(dispatch: str, load=None, **changes):
    config = MoEConfig(**{"d_model": 8, "d_expert": 16, "num_experts": 8, "top_k": 2, "dispatch": dispatch} | changes)
    return dispatch_flops(config, 64, load)


def test_executed_rows_of_every_dispatch():
    row = 2 * (8 * 32 + 16 * 8)
    assert {flops_of(dispatch).useful for dispatch in DISPATCHES} == {row * 64 * 2.0}
    executed = {dispatch: flops_of(dispatch).executed / row for dispatch in DISPATCHES}
    slots = slots_per_expert(128, 8)
    assert executed == {"loop": 512, "dense": 512, "capacity": 160, "ragged": 1024, "dropless": 8 * slots}
    assert flops_of("dense").overhead == 8 / 2
    assert flops_of("capacity", capacity_factor=0.5).overhead == 0.5, "half of the work is dropped"


@pytest.mark.parametrize("dispatch", [name for name in DISPATCHERS if name != "dropless"])
def test_the_compiler_counts_the_same(dispatch):
    """XLA's own count on this CPU, which adds activations and gathers. (A loop body it would count once.)"""
    config = MoEConfig(d_model=32, d_expert=64, num_experts=8, top_k=2, dispatch=dispatch)
    shapes = ((256, 32), jnp.float32), ((256, 2), jnp.int32), ((256, 2), jnp.float32)
    shapes = *shapes, ((8, 32, 128), jnp.float32), ((8, 64, 32), jnp.float32)
    run = jax.jit(functools.partial(DISPATCHERS[dispatch], capacity=expert_capacity(256, config)))
    found = run.lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes)).compile().cost_analysis()["flops"]
    assert 1.0 <= found / dispatch_flops(config, 256).executed < 1.1


def test_dropless_pays_for_imbalance():
    slots = slots_per_expert(128, 8)
    even, uneven = flops_of("dropless", [16] * 8), flops_of("dropless", [slots + 1, *[0] * 7])
    assert even == flops_of("dropless")
    row = even.useful / 128
    assert uneven.executed - even.executed == row * BLOCK_ROWS
    load = np.asarray(planned(problem("one_expert_takes_everything")[0][1], 4).load)
    config = MoEConfig(d_model=8, d_expert=6, num_experts=4, top_k=1)
    rows = 4 * slots_per_expert(300, 4) + BLOCK_ROWS * num_blocks("one_expert_takes_everything")
    assert dispatch_flops(config, 300, load.tolist()).executed == rows * 2 * 3 * 8 * 6
    assert dispatch_flops(config, 3).overhead == 1.0, "few tokens slice out what they need"
    with pytest.raises(UserError, match="load has 3 entries but num_experts=8"):
        flops_of("dropless", [1, 2, 3])


def test_expert_choice_fits_capacity_exactly():
    """E*C pairs are chosen and E*C slots multiplied; the other dispatches see all T*E pairs."""
    assert flops_of("capacity", select="expert_choice").overhead == 1.0
    assert flops_of("dense", select="expert_choice", capacity_factor=1).overhead == 8 / 2
    assert flops_of("dropless", select="expert_choice").executed >= flops_of("dense").executed
    assert dispatch_flops(MoEConfig(8, 8, 4, 2), 0).overhead == 0.0
