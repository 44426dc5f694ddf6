"""Every dispatch computes the same function and the same gradients, whatever the load."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from minimoe.moe import DISPATCHERS
from minimoe.moe.dropless import (
    BLOCK_ROWS,
    FEW_ASSIGNMENTS,
    dropless_dispatch,
    dropless_experts,
    make_plan,
    overflow_block,
    slots_per_expert,
)

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
    for sharpness in np.geomspace(0.005, 5, 30):
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
        slots = plan.slot.shape[1]
        held = []
        for e in range(num_experts):
            here = np.asarray(plan.order)[np.asarray(plan.slot[e])[np.asarray(plan.filled[e])]]
            assert (flat[here] == e).all()
            held += here.tolist()
        for i in range(int(plan.block_end[-1])):
            expert, assignment, valid = block(plan, jnp.int32(i), slots)
            here = np.asarray(assignment)[np.asarray(valid)]
            assert len(here) > 0, "no empty turns of the loop"
            assert (flat[here] == int(expert)).all()
            held += here.tolist()
        assert sorted(held) == list(range(flat.size))
        np.testing.assert_array_equal(plan.load, oracles.load(experts, num_experts))
        np.testing.assert_array_equal(np.asarray(plan.order)[np.asarray(plan.place)], np.arange(flat.size))


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


def relative_error(found, wanted) -> float:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
