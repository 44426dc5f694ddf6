"""Calling an answer: eagerly, under ``jax.jit`` and ``jax.grad``, and traced alone.

Nothing here knows what is right. It runs in the process that the answer could look into and change.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import eval_shape, grad, jit  # as they are now: an answer may put something else into their place

from minimoe.exercises.gradients import positions
from minimoe.exercises.limits import Raised, TimeLimitExceeded, run_limited
from minimoe.exercises.messages import Fault, describe, explain_error, unwritten
from minimoe.exercises.numeric import cotangent
from minimoe.exercises.record import Arguments, Case, Exercise
from minimoe.exercises.values import structure
from minimoe.exercises.wire import MOST_WORDS, Reply, check_number

Step = tuple[Literal["eager", "compiled", "traced"], int]  # how to call the answer, and on which case


def steps(exercise: Exercise) -> tuple[Step, ...]:
    """The first case eagerly; then all cases compiled, which is quicker than one operation at a time."""
    numbers = range(len(exercise.cases))
    if exercise.numpy_allowed:
        return tuple(("eager", i) for i in numbers)
    return (("eager", 0), *(("traced" if exercise.cases[i].dtype else "compiled", i) for i in numbers))


def replies(
    exercise: Exercise, answer: Any, wanted: Iterable[Step], *, time_limit: int | float | None = None
) -> Iterator[Reply]:
    """What an answer gives, step by step; a fault is the last reply. Prints nothing, raises for nothing the answer does.

    Args:
      exercise: what was asked; its `Exercise.public` will do.
      answer: the student's function.
      wanted: as from `steps`.
      time_limit: seconds for each call, instead of the exercise's own.
    """
    printed = _Printed()
    caller = _Caller(exercise, answer, exercise.time_limit if time_limit is None else time_limit, printed)
    for how, number in wanted:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
                warnings.simplefilter("ignore")  # an overflow is reported as what it leads to
                caller.check_callable()
                values, gradients = getattr(caller, how)(exercise.cases[number])
        except Fault as fault:
            yield Reply(fault=fault, printed=printed.getvalue())
            return
        yield Reply(values, gradients, printed=printed.getvalue())


class _Printed(io.StringIO):
    """What an answer prints; the first of it."""

    def write(self, text: str) -> int:
        super().write(text[: max(MOST_WORDS - self.tell(), 0)])
        return len(text)


Given = tuple[tuple[Any, ...], tuple[Any, ...]]  # values and gradients


class _Caller:
    """Calls one answer in each of the ways of `Step`."""

    def __init__(self, exercise: Exercise, answer: Any, time_limit: int | float, printed: io.StringIO):
        self.exercise, self.answer, self.time_limit, self.printed = exercise, answer, time_limit, printed

    def check_callable(self) -> None:
        exercise = self.exercise
        if self.answer is None or self.answer is Ellipsis:
            raise Fault("unwritten", unwritten(exercise))
        if not callable(self.answer):
            kind = type(self.answer).__name__
            raise Fault(
                "unwritten",
                f"{unwritten(exercise)}\nYou passed a value of type {kind}: pass the function itself, not its result.",
            )
        try:
            signature = inspect.signature(self.answer)
        except (TypeError, ValueError):  # a built-in that has none
            return
        try:
            signature.bind(*exercise.parameters)
        except TypeError:
            raise Fault(
                "signature",
                f"your function takes {signature}, but it is called with {len(exercise.parameters)} positional "
                f"arguments: {exercise.signature}.",
            ) from None

    def _call(self, function: Callable[[], Given], case: Case, stage: str) -> Given:
        """``function()`` to its end, within the limit and with JAX's settings at their defaults."""
        self.printed.seek(0)
        self.printed.truncate()

        def body() -> Given:
            with _default_settings():
                values, gradients = function()
                where = f"{stage}on {describe(self.exercise, case)}"
                for spec, value in zip(self.exercise.outputs, values, strict=True):
                    check_number(spec.name, value, where)
                return values, gradients

        try:
            return run_limited(body, self.time_limit)
        except TimeLimitExceeded:
            raise Fault(
                "time",
                f"took longer than {self.time_limit:g} s {stage}on {describe(self.exercise, case)}, and was stopped. "
                "Is there a loop that does not end, or one over every element of an array?",
            ) from None
        except Raised as raised:
            if isinstance(raised.error, Fault):
                raise raised.error from None
            raise explain_error(self.exercise, self.answer, raised.error, case, stage) from None

    def _structured(self, *arguments: Any, where: str = "under jax.jit") -> tuple[Any, ...]:
        return structure(self.exercise, self.answer(*arguments), where)

    def eager(self, case: Case) -> Given:
        """JAX arrays go in; NumPy arrays where NumPy is allowed, and JAX arrays after all if those do not do."""
        where = f"on {describe(self.exercise, case)}"

        def on(arguments: Arguments) -> Given:
            return self._call(lambda: (_plain(self._structured(*arguments, where=where)), ()), case, "")

        if not self.exercise.numpy_allowed:
            return on(_to_jax(case.arguments))
        given = tuple(value.copy() if isinstance(value, np.ndarray) else value for value in case.arguments)
        try:
            returned = on(given)
        except Fault as fault:
            if fault.aspect != "error" or not any(isinstance(value, np.ndarray) for value in given):
                raise
            try:
                return on(_to_jax(case.arguments))
            except Fault:
                raise fault from None
        for name, before, after in zip(self.exercise.parameters, case.arguments, given, strict=True):
            if isinstance(before, np.ndarray) and not np.array_equal(before, after):
                raise Fault(
                    "mutation",
                    f"changes its argument {name} in place (on {describe(self.exercise, case)}). The caller still needs "
                    "it: compute a new array and return that.",
                )
        return returned

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        """Outputs and gradients (none if none are asked for) under `jax.jit`, compiled once for each set of shapes."""
        at, structured = positions(self.exercise), self._structured

        def outputs_and_gradients(statics: tuple[Any, ...], differentiate: bool, arrays: dict[int, jax.Array]) -> Any:
            def weighted(varied: dict[int, jax.Array]) -> tuple[jax.Array, tuple[Any, ...]]:
                by_position = dict(statics) | arrays | varied
                outputs = structured(*(by_position[i] for i in sorted(by_position)))
                floats = [out for out in outputs if jnp.issubdtype(jnp.result_type(out), jnp.floating)]
                weights = [jnp.asarray(cotangent(np.shape(out)), jnp.float32) for out in floats]
                total = sum(
                    ((out * w).sum() for out, w in zip(floats, weights, strict=True)), jnp.zeros((), jnp.float32)
                )
                return total, outputs

            if not differentiate:
                return weighted({})[1], {}
            gradients, outputs = grad(weighted, has_aux=True)({i: arrays[i] for i in at})
            return outputs, gradients

        return jit(outputs_and_gradients, static_argnums=(0, 1))

    def compiled(self, case: Case) -> Given:
        """Gradients are computed even where they are not checked, so that cases of one shape share a program."""
        arrays = {i: jnp.asarray(v) for i, v in enumerate(case.arguments) if isinstance(v, np.ndarray)}
        statics = tuple((i, v) for i, v in enumerate(case.arguments) if not isinstance(v, np.ndarray))
        differentiate = bool(self.exercise.wrt)

        def both() -> Given:
            outputs, gradients = self._compiled(statics, differentiate, arrays)
            wanted = sorted(gradients) if case.gradient else ()
            return _plain(outputs), _plain(tuple(gradients[i] for i in wanted))

        return self._call(both, case, "under jax.jit and jax.grad " if differentiate else "under jax.jit ")

    def traced(self, case: Case) -> Given:
        """Shapes and dtypes for inputs in half precision, by tracing alone: their values would say nothing new."""
        return self._call(lambda: (eval_shape(lambda: self._structured(*_to_jax(case.arguments))), ()), case, "")


def _plain(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arrays as NumPy's, which waits until they are computed; Python numbers as they are."""
    return tuple(np.asarray(value) if hasattr(value, "dtype") else value for value in values)


def _to_jax(arguments: Arguments) -> Arguments:
    return tuple(jnp.asarray(value) if isinstance(value, np.ndarray) else value for value in arguments)


@contextlib.contextmanager
def _default_settings() -> Iterator[None]:
    """An answer is judged alike whatever the process has set; matmuls in full float32 also on accelerators."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_matmul_precision("highest"),
        jax.debug_nans(False),
        jax.disable_jit(False),
        jax.enable_x64(False),
    ):
        yield
