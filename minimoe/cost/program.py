"""What a traced program does, counted from its jaxpr: matmuls by shape, bytes moved, exponentials, sums, gathered rows.

XLA compiles a chain of element-wise operations into one loop, so only three kinds of arrays are counted as read and
written: what goes into or comes out of a matmul, what an operation on whole arrays needs (a sum, a gather, a sort, a
copy), and what enters or leaves the program. Everything else is taken as computed on the way.

Three more things are told apart, since they take their own time. A matmul reads a matrix that an earlier step of the
program wrote, or one that the program was given, such as a weight, which lies in slower memory. A transposition that
moves inner axes copies its array; one of a matrix is done by the matmul that takes it, and one past axes of size 1 by
nobody. A slice whose place only the run knows, as of an expert's weights, is copied out.

A loop counts as often as it turns. Where only the run knows how often, as in the overflow of `minimoe.moe.dropless`,
the caller says it. A choice between branches counts the costliest.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend as jex
import numpy as np

INLINE = {"pjit", "jit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call",
          "custom_vjp_call_jaxpr", "custom_lin"}  # fmt: skip
EXPONENTIALS = {"exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "erf_inv", "sin", "cos", "pow"}
PICKS = {"argmax", "argmin"}
SUMS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"}
GATHERS = {"gather", "scatter", "scatter-add", "scatter_add", "scatter_mul"}
SORTS = {"sort", "top_k", "cumsum", "cummax", "cumprod", "cumlogsumexp"}
COPIES = {"concatenate", "transpose", "pad", "rev", "random_bits"}
LOOPS = {"scan", "while", "cond"}
VIEWS = {"reshape", "squeeze", "expand_dims"}  # the same bytes under another shape
# What these take is written before they begin; sums and copies compute it on the way.
NEED_WRITTEN = GATHERS | SORTS | LOOPS | {"dot_general", "dynamic_slice", "dynamic_update_slice"}
WHOLE = NEED_WRITTEN | SUMS | PICKS | COPIES  # what these give is written


@dataclasses.dataclass
class Work:
    """What a program does in all.

    Attributes:
      matmuls: how often each ``(m, k, n)`` is done.
      moved: how often an operation reads and writes so many bytes; matmuls are not among them.
      calls: how many operations are done, by the size of their program: a loop's body is one of its own.
      numbers: "exponentials", and the numbers that are "summed", "gathered" and "sorted", and of which one is "picked".
      given: of ``matmuls``, those with a matrix that the program, or the loop around them, was given.
      turned: how often an array of so many bytes has its axes put in another order.
      sliced: how often so many bytes are copied out of an array, at a place that only the run knows.
    """

    matmuls: dict[tuple[int, int, int], int | float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    moved: dict[int, int | float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    calls: dict[int, int | float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    numbers: dict[str, int | float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    given: dict[tuple[int, int, int], int | float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    turned: dict[int, int | float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    sliced: dict[int, int | float] = dataclasses.field(default_factory=lambda: defaultdict(float))

    @property
    def flops(self) -> int | float:
        """Of the matmuls; a multiply-add counts as 2."""
        return sum(2 * math.prod(shape) * count for shape, count in self.matmuls.items())

    def add(self, other: Work, times: int | float = 1) -> None:
        """Adds what another program does, ``times`` times."""
        for field in dataclasses.fields(self):
            mine = getattr(self, field.name)
            for key, count in getattr(other, field.name).items():
                mine[key] += times * count


def work_of(function: Callable[..., Any], *arguments: Any, turns: int | float = 0) -> Work:
    """What ``function(*arguments)`` does, from tracing it; nothing is computed.

    Args:
      arguments: arrays, or shapes as `jax.eval_shape` gives them, in any pytree.
      turns: of loops whose number of turns only the run knows; 0 is a load that is even.

    Example:
      >>> work = work_of(lambda x, w: jnp.exp(x @ w), jnp.ones((4, 8)), jnp.ones((8, 2)))
      >>> dict(work.matmuls), work.flops, work.numbers["exponentials"]
      ({(4, 8, 2): 1.0}, 128.0, 8.0)
    """
    return work_of_jaxpr(jax.make_jaxpr(function)(*arguments), turns)


def work_of_jaxpr(traced: Any, turns: int | float = 0) -> Work:
    """The same of a program that is traced already, as by `jax.make_jaxpr`."""
    return _count(traced.jaxpr, turns)


def _count(jaxpr: Any, turns: int | float) -> Work:
    """Of one jaxpr, whose inputs lie in memory and whose outputs go there."""
    views: dict[int, int] = {}
    steps = list(_flat(jaxpr, views))
    written = {name for step in steps if step.primitive in NEED_WRITTEN for name in step.takes}
    written |= {_name(v, views) for v in jaxpr.outvars}
    inputs = {_name(v, {}) for v in (*jaxpr.constvars, *jaxpr.invars)}
    work, done = Work(), 0
    sources: dict[int, dict[int, int]] = {}  # of each array that is not written: the written ones that it is made from
    for step in steps:
        read = {
            name: size for taken in step.takes for name, size in sources.get(taken, {taken: step.sizes[taken]}).items()
        }
        inner = _inside(step, turns)
        if inner is not None:
            work.add(inner)
            continue
        if step.primitive == "dot_general":
            _add_matmul(work, step.eqn, bool(inputs & set(read)))
            done += 1
            continue
        _add_kinds(work, step)
        if step.primitive == "transpose" and not _copies(step.eqn):
            sources |= dict.fromkeys(step.gives, read)
        elif step.primitive == "transpose":
            work.turned[sum(step.gives.values())] += 1
            done += 1
        elif step.primitive == "dynamic_slice":
            work.sliced[sum(step.gives.values())] += 1
            done += 1
        elif step.primitive in WHOLE or written & set(step.gives):
            work.moved[_moved(step, read)] += 1
            done += 1
        else:
            sources |= dict.fromkeys(step.gives, read)
    work.calls[done] += done
    return work


def _copies(eqn: Any) -> bool:
    """Whether a transposition has to copy: its axes above size 1 change places, and they are more than a matrix has."""
    shape = eqn.invars[0].aval.shape
    order = [axis for axis in eqn.params["permutation"] if shape[axis] > 1]
    return order != sorted(order) and len(order) > 2


def _moved(step: _Step, read: dict[int, int]) -> int:
    """Bytes read and written. A gather reads what it gives; an update works in place on what it changes."""
    given = sum(step.gives.values())
    if step.primitive == "gather":
        return 2 * given
    if step.primitive == "dynamic_update_slice":
        return 2 * _bytes(step.eqn.invars[1])
    if step.primitive in GATHERS:  # the ways to scatter
        return 2 * _bytes(step.eqn.invars[2])
    return given + sum(read.values())


@dataclasses.dataclass
class _Step:
    """One operation: names and bytes of what it takes and gives."""

    primitive: str
    takes: list[int]
    gives: dict[int, int]
    sizes: dict[int, int]
    eqn: Any


def _name(var: Any, renamed: dict[int, int]) -> int:
    return renamed.get(id(var), id(var))


def _flat(jaxpr: Any, renamed: dict[int, int]) -> Iterator[_Step]:
    """All operations in order, with called functions put in the place of their calls; a view has its array's name."""
    for eqn in jaxpr.eqns:
        inner = _called(eqn)
        seen = eqn.invars[0] if eqn.primitive.name in VIEWS else None
        if seen is not None and not isinstance(seen, jex.core.Literal) and id(eqn.outvars[0]) not in renamed:
            renamed[id(eqn.outvars[0])] = _name(seen, renamed)
            continue
        if inner is None:
            taken = [v for v in eqn.invars if not isinstance(v, jex.core.Literal)]
            sizes = {_name(v, renamed): _bytes(v) for v in taken}
            gives = {_name(v, renamed): _bytes(v) for v in eqn.outvars}
            yield _Step(eqn.primitive.name, list(sizes), gives, sizes, eqn)
            continue
        outside = list(eqn.invars)[-len(inner.invars) :] if inner.invars else []
        below = {id(v): _name(given, renamed) for v, given in zip(inner.invars, outside, strict=True)}
        below |= {
            id(v): _name(out, renamed)
            for v, out in zip(inner.outvars, eqn.outvars, strict=True)
            if not isinstance(v, jex.core.Literal)
        }
        yield from _flat(inner, below)


def _called(eqn: Any) -> Any:
    """The jaxpr of a plain call, None of anything else."""
    if eqn.primitive.name not in INLINE:
        return None
    inner = next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params)
    return getattr(inner, "jaxpr", inner)


def _inside(step: _Step, turns: int | float) -> Work | None:
    """What loops and branches do in all."""
    params, work = step.eqn.params, Work()
    if step.primitive == "scan":
        work.add(_count(params["jaxpr"].jaxpr, turns), params["length"])
    elif step.primitive == "while":
        work.add(_count(params["body_jaxpr"].jaxpr, turns), turns)
    elif step.primitive == "cond":
        work.add(max((_count(branch.jaxpr, turns) for branch in params["branches"]), key=lambda each: each.flops))
    else:
        return None
    return work


def _add_kinds(work: Work, step: _Step) -> None:
    given = sum(math.prod(v.aval.shape) for v in step.eqn.outvars)
    taken = math.prod(step.eqn.invars[0].aval.shape) if step.eqn.invars else 0
    if step.primitive in EXPONENTIALS:
        work.numbers["exponentials"] += given
    elif step.primitive in PICKS:
        work.numbers["picked"] += taken
    elif step.primitive in SUMS:
        work.numbers["summed"] += taken
    elif step.primitive in GATHERS:
        work.numbers["gathered"] += given if step.primitive == "gather" else math.prod(step.eqn.invars[2].aval.shape)
    elif step.primitive in SORTS:
        work.numbers["sorted"] += taken


def _add_matmul(work: Work, eqn: Any, given: bool) -> None:
    (left_sum, _), (left_batch, _) = eqn.params["dimension_numbers"]
    left, right = (v.aval.shape for v in eqn.invars[:2])
    batch = math.prod(left[axis] for axis in left_batch)
    k = math.prod(left[axis] for axis in left_sum)
    if batch * k and math.prod(left) and math.prod(right):
        shape = math.prod(left) // (batch * k), k, math.prod(right) // (batch * k)
        work.matmuls[shape] += batch
        if given:
            work.given[shape] += batch


def _bytes(var: Any) -> int:
    aval = var.aval
    try:
        return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize
    except TypeError:  # keys of random numbers
        return 0
