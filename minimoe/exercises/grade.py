"""The verdict on an answer: what comes back from calling it is compared with what is right."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

from minimoe.exercises.calls import Step, replies, steps
from minimoe.exercises.gradients import check_gradient
from minimoe.exercises.messages import Fault, describe
from minimoe.exercises.record import Case, Exercise, Result
from minimoe.exercises.values import check_dtype, check_shape, check_values, expected_outputs
from minimoe.exercises.wire import Reply

# Takes steps and yields what the answer replies to each, until the first fault; it may raise a `Fault` of its own.
Run = Callable[[tuple[Step, ...]], Iterator[Reply]]


def grade(exercise: Exercise, answer: Any, *, time_limit: int | float | None = None) -> Result:
    """Judges ``answer`` in this process; prints nothing and never raises for what the answer does.

    Args:
      exercise: what was asked.
      answer: the student's function.
      time_limit: seconds for each call, instead of the exercise's own.
    """
    return verdict(exercise, lambda wanted: replies(exercise, answer, wanted, time_limit=time_limit))


def verdict(exercise: Exercise, run: Run) -> Result:
    """Judges an answer that `run` calls, wherever that happens."""
    fault, (how, number), printed = _first_fault(exercise, run, steps(exercise))
    if fault is not None and how == "compiled" and not _blames_jit(fault):
        # Only if it is right eagerly is jax.jit to blame; and there it prints values, not tracers.
        eagerly, _, printed = _first_fault(exercise, run, (("eager", number),))
        fault = eagerly or fault
    if fault is not None:
        return Result(exercise.id, False, 0, exercise.points, fault.message, fault.mistake, fault.aspect, printed)
    checked = "checked: " + exercise.checks.partition(". ")[0].replace("`", "")
    if printed:
        checked += "; your function prints, which slows a training loop down"
    return Result(exercise.id, True, exercise.points, exercise.points, checked)


def _blames_jit(fault: Fault) -> bool:
    return fault.aspect in ("jit", "time", "process") or fault.aspect.startswith("gradient")


def _first_fault(exercise: Exercise, run: Run, wanted: tuple[Step, ...]) -> tuple[Fault | None, Step, str]:
    """The first fault, the step that it came with, and what was printed there; the last step if there is no fault."""
    printed, step = "", wanted[0]
    with contextlib.closing(_closable(run(wanted))) as given:
        try:
            for step in wanted:
                reply = next(given, None)
                if reply is None:
                    raise Fault(
                        "process", "ended before all its results were there. An answer leaves its process alone."
                    )
                printed = reply.printed
                _check(exercise, exercise.cases[step[1]], step[0], reply)
        except Fault as fault:
            return fault, step, printed
    return None, step, printed


def _closable(given: Iterator[Reply]) -> Generator[Reply, None, None]:
    yield from given


def _check(exercise: Exercise, case: Case, how: str, reply: Reply) -> None:
    """Raises the `Fault` of a reply, its own or what is wrong with its numbers."""
    if reply.fault is not None:
        raise reply.fault
    if len(reply.values) != len(exercise.outputs):
        raise Fault("process", "sent results of its own making. An answer leaves the process that judges it alone.")
    if how == "traced":
        where = f"on {describe(exercise, case)}"
        for spec, value, right in zip(exercise.outputs, reply.values, expected_outputs(exercise, case), strict=True):
            check_shape(spec.name, value, right, where)
            check_dtype(spec.name, spec.dtype, case, value, right, where)
        return
    returned = reply.values if len(reply.values) > 1 else reply.values[0]
    check_values(exercise, case, returned, "under jax.jit " if how == "compiled" else "")
    if how == "compiled" and case.gradient:
        check_gradient(exercise, case, reply.gradients)
