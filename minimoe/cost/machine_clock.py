"""Measures the rates of a `minimoe.cost.Machine` with JAX, on its first device. About ten seconds on two cores.

Every operation runs many times in a loop inside one compiled program, as it does in training and decoding, so that
what Python adds is not counted. The best of several rounds is taken: whatever else runs can only slow it down.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from minimoe.cost.machine import FEW_ROWS, KINDS, LARGE, TURNED, WORKING_SETS, Machine, grid_shapes

ROUND_SECONDS, ROUNDS = 0.004, 3
SIDE = 256  # of matrices that are read in turn
PIECE = 128  # side of matrices that are copied out of a stack
MOST_MATRICES = 16  # of this side; what is larger has fewer, larger ones, or compiling would take longer than timing
TURNED_HEADS, TURNED_WIDTH = 2, 32  # of the array that is turned
SMALL = 1024  # numbers of a small operation; below 128, XLA plans nothing, whatever the size of the program
LEVELS = (4, 16, 64)  # of `_small_operations`
NUMBERS = 2**20  # handled at a time, in rows of 128; a 128th of them are sorted


def measure_machine(progress: Callable[[int, int, str], None] | None = None) -> Machine:
    """Times everything that a `Machine` holds, on this machine, now.

    Args:
      progress: called with (steps done, steps in all, what comes next).
    """
    tables: dict[str, dict[Any, int | float]] = {}
    steps = list(_steps())
    for done, (table, key, what, time_it) in enumerate(steps):
        if progress is not None:
            progress(done, len(steps), what)
        tables.setdefault(table, {})[key] = time_it()
    if progress is not None:
        progress(len(steps), len(steps), "done")
    call = min(tables["call_seconds"].values())
    products = tables["matmul_seconds"]  # the loop around each adds a small operation
    tables["matmul_seconds"] = {shape: max(seconds - call, call) for shape, seconds in products.items()}
    return Machine(machine_name(), usable_cores(), memory_bytes(), **tables)


Step = tuple[str, Any, str, Callable[[], int | float]]


def _steps() -> Iterator[Step]:
    """Everything that is timed: the table it belongs to, its key there, what it is in words, and how to time it."""
    for levels in LEVELS:
        count = levels * PER_LEVEL
        yield "call_seconds", count, f"a program of {count} small operations", functools.partial(_call, levels)
    for shape in grid_shapes():
        what = "matmul " + " x ".join(map(str, shape))
        yield "matmul_seconds", shape, what, functools.partial(_matmul, *shape, jnp.float32)
    for size in WORKING_SETS:
        yield "bandwidth", size, f"moving {size / 2**20:.0f} MB", functools.partial(_bandwidth, size)
    for size in WORKING_SETS:
        for rows in FEW_ROWS:
            what = f"reading {size / 2**20:.0f} MB of weights for {rows} rows"
            yield "reading", (rows, size), what, functools.partial(_reading, rows, size)
    for size in TURNED:
        yield "turning", size, f"turning {size / 2**10:.0f} KB", functools.partial(_turning, size)
    for size in WORKING_SETS:
        what = f"copying pieces out of {size / 2**20:.0f} MB"
        yield "slicing", size, what, functools.partial(_slicing, size)
    for kind in KINDS:
        yield "per_second", kind, f"numbers {kind}", functools.partial(_per_second, kind)
    for kind in ("float32", "bfloat16"):
        yield "peak_flops", kind, f"large matmul in {kind}", functools.partial(_peak, kind)


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has under ``taskset`` or in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory of the machine, 0 where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 0


def machine_name() -> str:
    """System, architecture and what JAX computes on, such as ``Linux x86_64, 2 cores, cpu``."""
    return f"{platform.system()} {platform.machine()}, {usable_cores()} cores, {jax.devices()[0].device_kind}"


def _seconds(program: Callable[..., Any], *arrays: jax.Array) -> float:
    """Of one turn of ``program(turns, *arrays)``: what as many turns again add to a round that is long enough.

    A difference of two rounds leaves out what a call costs once: its start, and pages that the system hands out.
    """
    turns = 1
    jax.block_until_ready(program(turns, *arrays))  # compiles
    while (taken := _round(program, turns, *arrays)) < ROUND_SECONDS:
        turns = max(2 * turns, int(turns * ROUND_SECONDS / max(taken, 1e-7)))
    once = min(taken, *(_round(program, turns, *arrays) for _ in range(ROUNDS - 1)))
    twice = min(_round(program, 2 * turns, *arrays) for _ in range(ROUNDS))
    return (twice - once if twice > once else twice / 2) / turns


def _round(program: Callable[..., Any], turns: int, *arrays: jax.Array) -> float:
    start = time.perf_counter()
    jax.block_until_ready(program(turns, *arrays))
    return time.perf_counter() - start


def _call(levels: int) -> float:
    program = jax.jit(functools.partial(_small_operations, levels))
    return _seconds(program, jnp.linspace(0.0, 1.0, SMALL)) / (levels * PER_LEVEL)


def _bandwidth(size: int) -> float:
    arrays = jnp.ones(size // 8), jnp.ones(size // 8)  # two of them, in float32
    return 1.5 * size / _seconds(_triad, *arrays)  # both read, one written


def _reading(rows: int, size: int) -> float:
    side = SIDE if size <= MOST_MATRICES * 4 * SIDE**2 else 4 * SIDE
    matrices = max(1, size // (4 * side**2))
    weights = [jnp.full((side, side), 1 / side) for _ in range(matrices)]
    return 4 * side**2 * matrices / _seconds(_reads, jnp.ones((rows, side)), *weights)


def _turning(size: int) -> float:
    tokens = max(1, size // (4 * TURNED_HEADS * TURNED_WIDTH))
    heads = jnp.ones((1, tokens, TURNED_HEADS, TURNED_WIDTH))
    return 2 * 2 * heads.nbytes / _seconds(_turns, heads)  # there and back, read and written


def _slicing(size: int) -> float:
    stack = jnp.ones((max(2, size // (4 * PIECE**2)), PIECE, PIECE))
    return 2 * stack[0].nbytes / _seconds(_slices, stack)


def _per_second(kind: str) -> float:
    program = {"exponentials": _exponentials, "summed": _sums, "gathered": _gathers, "sorted": _sorts, "picked": _picks}
    numbers = {"sorted": NUMBERS // 128, "picked": NUMBERS // 64}.get(kind, NUMBERS)
    wide = numbers // 8 if kind == "picked" else min(numbers, 128)
    return numbers / _seconds(program[kind], jnp.linspace(0.0, 1.0, numbers).reshape(-1, wide))


def _peak(kind: str) -> float:
    m, k, n = LARGE
    return 2 * m * k * n / _matmul(m, k, n, jnp.dtype(kind))


def _matmul(m: int, k: int, n: int, dtype: Any) -> float:
    return _seconds(_products, jnp.full((m, k), 1 / k, dtype), jnp.ones((k, n), dtype))


@jax.jit
def _products(turns, x, w):
    """Each turn's product changes the next one's input a little, so that none can be left out."""

    def turn(_, carry):
        x, y = carry
        y = x @ w
        return x.at[0, 0].add(1e-30 * y[0, 0]), y

    return jax.lax.fori_loop(0, turns, turn, (x, jnp.zeros((x.shape[0], w.shape[1]), x.dtype)))


PER_LEVEL = 5  # operations: four sums, one of which the others need, and what joins them


def _small_operations(levels, turns, x):
    """As small as those of a norm or a router, and like theirs some could run side by side."""

    def level(x, _):
        x = x * jax.lax.rsqrt((x * x).sum() + 1)
        a, b, c = jnp.split(x, (x.size // 3, 2 * (x.size // 3)))
        return jnp.concatenate([c * (a * a).sum(), a + jnp.exp(-b).sum(), b - c.max()])

    return jax.lax.fori_loop(0, turns, lambda _, x: functools.reduce(level, range(levels), x), x)


@jax.jit
def _triad(turns, x, y):
    return jax.lax.fori_loop(0, turns, lambda _, x: 0.5 * x + y, x)


@jax.jit
def _reads(turns, x, *weights):
    """Rows through all matrices in turn, as in decoding: before a matrix comes again, all others were read."""
    return jax.lax.fori_loop(0, turns, lambda _, x: functools.reduce(jnp.matmul, weights, x), x)


@jax.jit
def _turns(turns, x):
    """Heads before tokens, as attention multiplies them, and back; the barriers keep XLA from leaving both out."""

    def turn(_, x):
        there = jax.lax.optimization_barrier(jnp.swapaxes(x, 1, 2))
        return jax.lax.optimization_barrier(jnp.swapaxes(there, 1, 2))

    return jax.lax.fori_loop(0, turns, turn, x)


@jax.jit
def _slices(turns, stack):
    """One matrix after the other, each copied to where the one before it was."""

    def turn(i, piece):
        return jax.lax.dynamic_index_in_dim(stack, i % stack.shape[0], keepdims=False)

    return jax.lax.fori_loop(0, turns, turn, jnp.zeros(stack.shape[1:]))


@jax.jit
def _picks(turns, x):
    """The place of the largest number of each row, as of the likeliest token."""
    return jax.lax.fori_loop(0, turns, lambda _, x: x + 1e-9 * jnp.argmax(x, axis=1).astype(x.dtype)[:, None], x)


@jax.jit
def _exponentials(turns, x):
    return jax.lax.fori_loop(0, turns, lambda _, x: jnp.exp(-x), x)


@jax.jit
def _sums(turns, x):
    return jax.lax.fori_loop(0, turns, lambda _, x: x + 1e-9 * x.sum(axis=1, keepdims=True), x)


@jax.jit
def _gathers(turns, x):
    """Rows in an order that depends on the turn."""
    rows = jnp.arange(x.shape[0], dtype=jnp.int32)
    return jax.lax.fori_loop(0, turns, lambda i, x: x[(rows * 7 + i) % x.shape[0]], x)


@jax.jit
def _sorts(turns, x):
    """Numbers and their places, as routing sorts assignments; flipped, or the next turn would find them sorted."""
    places = jnp.arange(x.size, dtype=jnp.int32)

    def turn(_, carry):
        x, places = carry
        mixed = (x.reshape(-1, 2).T.reshape(-1) * 12.9898) % 1.0
        return tuple(jax.lax.sort((mixed, places), num_keys=1))

    return jax.lax.fori_loop(0, turns, turn, (x.reshape(-1), places))
