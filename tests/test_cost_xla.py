"""Our formulas of FLOPs against what XLA counts in the program, and against the matmuls of the traced program.

What differs, and why the tolerances are what they are:

    matmuls of the program / formula    1.00 to 1.04: attention in blocks multiplies some of what the mask hides, and
                                        experts have slots in multiples of 8, some of them empty
    XLA / matmuls of the program        1.00 to 1.20: XLA counts every addition and comparison of an array too (1 for each
                                        number), and the body of a loop once, whether it turns never or a hundred times

The formula counts useful operations: it leaves out both, and norms and softmax.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from minimoe import MoETransformer
from minimoe.bench.models import DENSE_NANO
from minimoe.config import PRESETS
from minimoe.cost import Work, forward_flops_per_token, predicted_seconds, training_flops_per_token, work_of
from minimoe.cost.program import work_of_jaxpr
from minimoe.training import Recipe, optimizer_for, train_step

BATCH, LENGTH = 2, 64
MODELS = {"nano": PRESETS["nano"], "small": PRESETS["small"], "dense-nano": DENSE_NANO}
MODELS |= {"v4-nano": PRESETS["v4-nano"]}
RECIPE = Recipe(steps=10)


def counted(function, *arguments, turns=0):
    """FLOPs of the matmuls of a program, and all that XLA counts in it before compiling, from one trace."""
    traced = jax.jit(function).trace(*arguments)
    return work_of_jaxpr(traced.jaxpr, turns).flops, traced.lower().cost_analysis()["flops"]


@functools.cache
def shapes_of(name: str):
    """A model without arrays: counting needs shapes only."""
    return nnx.eval_shape(lambda: MoETransformer(MODELS[name], rngs=nnx.Rngs(0)))


def forward(name: str):
    """The forward pass of a model as a function, and the shapes of its arguments."""
    graphdef, state = nnx.split(shapes_of(name))
    return lambda state, tokens: nnx.merge(graphdef, state)(tokens)[0], state, jnp.zeros((BATCH, LENGTH), jnp.int32)


@pytest.mark.parametrize("name", MODELS)
def test_forward(name):
    formula = forward_flops_per_token(MODELS[name], LENGTH) * BATCH * LENGTH
    matmuls, xla = counted(*forward(name))
    assert 1.0 <= matmuls / formula < 1.04
    assert 1.0 < xla / matmuls < 1.2


def test_compiling_hardly_changes_the_count():
    function, *arguments = forward("dense-nano")
    program = jax.jit(function).lower(*arguments)
    assert program.compile().cost_analysis()["flops"] == pytest.approx(program.cost_analysis()["flops"], rel=0.01)


@pytest.mark.parametrize("name", ["nano", "dense-nano"])
def test_train_step(name):
    """The backward pass costs twice the forward; the optimiser has no matmul."""

    def both():
        model = MoETransformer(MODELS[name], rngs=nnx.Rngs(0))
        return model, optimizer_for(model, RECIPE)

    graphdef, state = nnx.split(nnx.eval_shape(both))
    tokens, where = jnp.zeros((BATCH, LENGTH), jnp.int32), jnp.ones((BATCH, LENGTH), bool)

    def step(state):
        both = nnx.merge(graphdef, state)
        train_step(*both, tokens, tokens, where, jax.random.key(0), recipe=RECIPE)
        return nnx.state(both)

    formula = training_flops_per_token(MODELS[name], LENGTH) * BATCH * LENGTH
    traced = jax.jit(step).trace(state)
    assert 1.0 <= work_of_jaxpr(traced.jaxpr).flops / formula < 1.04
    once = work_of_jaxpr(traced.jaxpr, turns=1).flops  # XLA counts the loop over overflowing experts once
    assert 1.0 < traced.lower().cost_analysis()["flops"] / once < 1.2


def test_what_xla_counts():
    """A multiply-add is 2; a number that is added is 1; the body of a loop counts once."""
    x, w = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert counted(lambda x, w: x @ w, x, w) == (210, 210)
    assert counted(lambda x, w: x @ w + 1.0, x, w) == (210, 210 + 3 * 7)
    square = jnp.ones((4, 4))
    looped = counted(lambda n, s: jax.lax.fori_loop(0, n, lambda _, s: s @ square, s), 9, square)[1]
    assert 2 * 4**3 <= looped < 3 * 4**3


def test_what_we_count_in_a_program():
    """Matmuls by shape, loops as often as they turn, the costliest branch, and sums and sorts by their numbers."""
    x, w = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert work_of(lambda x, w: x @ w, x, w).matmuls == {(3, 5, 7): 1}
    batched = work_of(lambda a, b: jnp.einsum("ecd,edf->ecf", a, b), jnp.ones((4, 2, 3)), jnp.ones((4, 3, 6)))
    assert batched.matmuls == {(2, 3, 6): 4}
    square = jnp.ones((4, 4))
    fixed = work_of(lambda s: jax.lax.fori_loop(0, 9, lambda _, s: s @ square, s), square)
    assert fixed.flops == 9 * 2 * 4**3
    open_loop = functools.partial(work_of, lambda n, s: jax.lax.fori_loop(0, n, lambda _, s: s @ square, s), 9, square)
    assert [open_loop(turns=turns).flops for turns in (0, 2.5)] == [0, 2.5 * 2 * 4**3]
    branches = work_of(lambda p, s: jax.lax.cond(p, lambda s: s @ s @ s, lambda s: s, s), True, square)
    assert branches.flops == 2 * 2 * 4**3
    numbers = work_of(lambda x: (jnp.exp(x).sum(), jnp.sort(x)), jnp.ones((3, 5))).numbers
    assert numbers == {"exponentials": 15, "summed": 15, "sorted": 15}


def test_a_chain_is_moved_once_and_what_it_ends_in_too():
    """Element-wise operations become one loop: what enters is read and what leaves is written, nothing between."""
    x = jnp.ones((10, 10))
    assert work_of(lambda x, y: jnp.tanh(2 * x + y) * 3, x, x).moved == {3 * 400: 1}
    assert work_of(lambda x: (2 * x).sum(), x).moved == {400 + 4: 1}
    looped = work_of(lambda x: jax.lax.fori_loop(0, 9, lambda _, x: x - x.sum(), x), x)
    assert looped.calls == {0: 0, 3: 27}  # nothing outside; a sum, what is left and the count of turns, nine times
    sliced = work_of(lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, 2), x, 0)
    assert max(sliced.moved) == 2 * 2 * 10 * 4  # not the whole array


def test_prediction_by_hand():
    from minimoe.cost import Machine
    from minimoe.cost.machine import FEW_ROWS, KINDS, grid_shapes

    grid = dict.fromkeys(grid_shapes(), 2e-6)
    reads = {(rows, size): rate for rows in FEW_ROWS for size, rate in ((2**20, 1e10), (2**30, 1e9))}
    rates = dict.fromkeys(KINDS, 1e9)
    mine = Machine("made up", 1, 2**33, grid, {}, {2**20: 1e10}, reads, rates, {1: 1e-7})
    work = Work({(8, 128, 256): 3.0}, {2**20: 2.0}, {7: 2.0}, {"sorted": 500.0})
    parts = predicted_seconds(work, mine, 2**20)
    weights = 3 * 4 * 128 * 256 / 1e10  # takes longer than the 2 microseconds of the grid
    assert parts == pytest.approx({"matmuls": weights, "moving": 2**21 / 1e10, "numbers": 5e-7, "operations": 2e-7})
    assert predicted_seconds(work, mine, 2**30)["matmuls"] == pytest.approx(10 * weights)  # from slower memory
