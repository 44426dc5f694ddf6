"""Judging an answer: it is called eagerly, under ``jax.jit`` and ``jax.grad``, and what comes back is compared."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minimoe.exercises.gradients import check_gradient, positions
from minimoe.exercises.limits import Raised, TimeLimitExceeded, run_limited
from minimoe.exercises.messages import Fault, describe, explain_error, unwritten
from minimoe.exercises.numeric import cotangent
from minimoe.exercises.record import Arguments, Case, Exercise, Result
from minimoe.exercises.values import check_dtype, check_shape, check_values, expected_outputs, structure


def grade(exercise: Exercise, answer: Any, *, time_limit: int | float | None = None) -> Result:
    """Judges ``answer``; prints nothing and never raises for what the answer does.

    Args:
      exercise: what was asked.
      answer: the student's function.
      time_limit: seconds for each call, instead of the exercise's own.
    """
    printed = io.StringIO()
    judge = _Judge(exercise, answer, exercise.time_limit if time_limit is None else time_limit, printed)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            warnings.simplefilter("ignore")  # an overflow is reported as what it leads to
            judge.run()
    except Fault as fault:
        return Result(
            exercise.id, False, 0, exercise.points, fault.message, fault.mistake, fault.aspect, printed.getvalue()
        )
    checked = "checked: " + exercise.checks.partition(". ")[0].replace("`", "")
    if printed.getvalue():
        checked += "; your function prints, which slows a training loop down"
    return Result(exercise.id, True, exercise.points, exercise.points, checked)


class _Judge:
    """One answer before its checks, in order: can it be called, and then case by case values, jit, gradients."""

    def __init__(self, exercise: Exercise, answer: Any, time_limit: int | float, printed: io.StringIO):
        self.exercise, self.answer, self.time_limit, self.printed = exercise, answer, time_limit, printed

    def run(self) -> None:
        """The first case eagerly; then all cases compiled, which is quicker than one operation at a time."""
        cases = self.exercise.cases
        self._check_callable()
        for case in cases if self.exercise.numpy_allowed else cases[:1]:
            check_values(self.exercise, case, self._call_eagerly(case))
        if self.exercise.numpy_allowed:
            return
        for case in cases:
            if case.dtype:
                self._check_promotion(case)
                continue
            try:
                self._check_compiled(case)
            except Fault as fault:
                if fault.aspect not in ("jit", "time") and not fault.aspect.startswith("gradient"):
                    # Only if it is right eagerly is jax.jit to blame; and there it prints values, not tracers.
                    check_values(self.exercise, case, self._call_eagerly(case))
                raise

    # Calling it.

    def _check_callable(self) -> None:
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

    def _call(self, function: Callable[..., Any], arguments: Arguments, case: Case, stage: str) -> Any:
        """``function(*arguments)`` to its end, within the limit and with JAX's settings at their defaults."""
        self.printed.seek(0)
        self.printed.truncate()

        def body() -> Any:
            with _default_settings():
                return jax.block_until_ready(function(*arguments))

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

    def _call_eagerly(self, case: Case) -> Any:
        """JAX arrays go in; NumPy arrays where NumPy is allowed, and JAX arrays after all if those do not do."""
        if not self.exercise.numpy_allowed:
            return self._call(self.answer, _to_jax(case.arguments), case, "")
        given = tuple(value.copy() if isinstance(value, np.ndarray) else value for value in case.arguments)
        try:
            returned = self._call(self.answer, given, case, "")
        except Fault as fault:
            if fault.aspect != "error" or not any(isinstance(value, np.ndarray) for value in given):
                raise
            try:
                return self._call(self.answer, _to_jax(case.arguments), case, "")
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

    # jit and gradients.

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
            gradients, outputs = jax.grad(weighted, has_aux=True)({i: arrays[i] for i in at})
            return outputs, gradients

        return jax.jit(outputs_and_gradients, static_argnums=(0, 1))

    def _structured(self, *arguments: Any) -> tuple[Any, ...]:
        return structure(self.exercise, self.answer(*arguments), "under jax.jit")

    def _check_compiled(self, case: Case) -> None:
        """Gradients are computed even where they are not checked, so that cases of one shape share a program."""
        arrays = {i: jnp.asarray(v) for i, v in enumerate(case.arguments) if isinstance(v, np.ndarray)}
        statics = tuple((i, v) for i, v in enumerate(case.arguments) if not isinstance(v, np.ndarray))
        differentiate = bool(self.exercise.wrt)
        stage = "under jax.jit and jax.grad " if differentiate else "under jax.jit "
        outputs, gradients = self._call(self._compiled, (statics, differentiate, arrays), case, stage)
        returned = outputs if len(outputs) > 1 else outputs[0]
        check_values(self.exercise, case, returned, "under jax.jit ")
        if case.gradient:
            check_gradient(self.exercise, case, tuple(np.asarray(gradients[i]) for i in sorted(gradients)))

    def _check_promotion(self, case: Case) -> None:
        """Shapes and dtypes for inputs in half precision, by tracing alone: their values would say nothing new."""
        exercise = self.exercise
        where = f"on {describe(exercise, case)}"
        traced = self._call(lambda: jax.eval_shape(lambda: self._structured(*_to_jax(case.arguments))), (), case, "")
        for spec, value, right in zip(exercise.outputs, traced, expected_outputs(exercise, case), strict=True):
            check_shape(spec.name, value, right, where)
            check_dtype(spec.name, spec.dtype, case, value, right, where)


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
