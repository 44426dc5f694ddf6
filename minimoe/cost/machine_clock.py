"""Measures the rates of a `minimoe.cost.Machine` with JAX, on its first device. About ten seconds on two cores.

Every operation runs many times in a loop inside one compiled program, as it does in training and decoding, so that
what Python adds is not counted. The best of several rounds is taken: whatever else runs can only slow it down.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from minimoe.cost.machine import FEW_ROWS, KINDS, LARGE, WORKING_SETS, Machine, grid_shapes

ROUND_SECONDS, ROUNDS = 0.004, 3
SIDE = 512  # of matrices that are read in turn
LEVELS = (4, 16, 64)  # of `_small_operations`
NUMBERS = 2**20  # handled at a time, in rows of 128; a 128th of them are sorted


def measure_machine(progress: Callable[[int, int, str], None] | None = None) -> Machine:
    """Times everything that a `Machine` holds, on this machine, now.

    Args:
      progress: called with (steps done, steps in all, what comes next).
    """
    shapes = grid_shapes()
    total, done = len(shapes) + len(LEVELS) + len(WORKING_SETS) * (1 + len(FEW_ROWS)) + len(KINDS) + 2, 0

    def tell(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, what)
        done += 1

    calls = {}
    for levels in LEVELS:
        tell(f"a program of {levels * PER_LEVEL} small operations")
        program = jax.jit(functools.partial(_small_operations, levels))
        calls[levels * PER_LEVEL] = _seconds(program, jnp.linspace(0.0, 1.0, 128)) / (levels * PER_LEVEL)
    call = min(calls.values())
    matmuls = {}
    for m, k, n in shapes:
        tell(f"matmul {m} x {k} x {n}")
        matmuls[m, k, n] = max(_matmul(m, k, n, jnp.float32) - call, call)  # the loop itself adds a small operation
    bandwidth = {}
    for size in WORKING_SETS:
        tell(f"moving {size / 2**20:.0f} MB")
        arrays = jnp.ones(size // 8), jnp.ones(size // 8)  # two of them, in float32
        bandwidth[size] = 1.5 * size / _seconds(_triad, *arrays)  # both read, one written
    reading = {}
    for size in WORKING_SETS:
        side = SIDE if size < 64 * SIDE**2 * 4 else 4 * SIDE
        matrices = max(1, size // (4 * side**2))
        weights = [jnp.full((side, side), 1 / side) for _ in range(matrices)]
        for rows in FEW_ROWS:
            tell(f"reading {size / 2**20:.0f} MB of weights for {rows} rows")
            reading[rows, size] = 4 * side**2 * matrices / _seconds(_reads, jnp.ones((rows, side)), *weights)
    rates = {}
    for kind, program in zip(KINDS, (_exponentials, _sums, _gathers, _sorts), strict=True):
        tell(kind)
        numbers = NUMBERS // 128 if kind == "sorted" else NUMBERS
        rates[kind] = numbers / _seconds(program, jnp.linspace(0.0, 1.0, numbers).reshape(-1, min(numbers, 128)))
    peaks = {}
    for kind in ("float32", "bfloat16"):
        tell(f"large matmul in {kind}")
        m, k, n = LARGE
        peaks[kind] = 2 * m * k * n / _matmul(m, k, n, jnp.dtype(kind))
    if progress is not None:
        progress(total, total, "done")
    return Machine(machine_name(), usable_cores(), memory_bytes(), matmuls, peaks, bandwidth, reading, rates, calls)


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
        a, b, c = x[:43], x[43:86], x[86:]
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
