"""An answer's gradients against those asked for."""

from __future__ import annotations

import functools

import numpy as np

from minimoe.exercises.messages import Fault, describe
from minimoe.exercises.numeric import GRADIENT_ERRORS, Tolerance, difference, numerical_gradient, widen
from minimoe.exercises.record import Arrays, Case, Exercise
from minimoe.exercises.values import alike


@functools.lru_cache(maxsize=256)
def expected_gradients(exercise: Exercise, case: Case) -> Arrays:
    """Of the oracle, by differences, unless the exercise asks for others."""
    if exercise.gradient is not None:
        return exercise.gradient(*(widen(value) for value in case.arguments))
    return numerical_gradient(exercise.oracle, case.arguments, positions(exercise))


def positions(exercise: Exercise) -> tuple[int, ...]:
    return tuple(exercise.parameters.index(name) for name in exercise.wrt)


def check_gradient(exercise: Exercise, case: Case, got: Arrays) -> None:
    """Compares the gradients with respect to ``exercise.wrt``, of outputs whose values are right.

    Raises:
      Fault: if one differs; a known mistake is named.
    """
    expected = expected_gradients(exercise, case)
    where = describe(exercise, case)
    allowed = Tolerance(*GRADIENT_ERRORS, case.absolute)
    if len(got) != len(expected) or any(one.shape != right.shape for one, right in zip(got, expected, strict=True)):
        raise Fault("process", "sent gradients of its own making. An answer leaves the process that judges it alone.")
    if all(alike(right, answer, allowed) for right, answer in zip(expected, got, strict=True)):
        return
    for mistake in exercise.mistakes:
        if mistake.gradient is None:
            continue
        with np.errstate(all="ignore"):
            theirs = mistake.gradient(case.arguments, expected)
        if all(alike(right, answer, allowed) for right, answer in zip(theirs, got, strict=True)):
            raise Fault("gradient", f"{mistake.name}: {mistake.message}\nGradient on {where}.", mistake.name)
    raise explain_gradient(exercise, expected, got, allowed, where)


def explain_gradient(exercise: Exercise, expected: Arrays, got: Arrays, allowed: Tolerance, where: str) -> Fault:
    """The Fault for the first gradient that differs, when no mistake explains it."""
    for name, right, answer in zip(exercise.wrt, expected, got, strict=True):
        text = difference(f"d/d {name}", right, answer, allowed)
        if text is None:
            continue
        if np.isnan(answer).any():
            return Fault(
                "gradient nan",
                f"the values are right, but the gradient with respect to {name} contains NaN on {where}.\n{text}\n"
                "A NaN gradient where the value is fine comes from a derivative that is 0/0 or 0 * infinity.",
            )
        if not answer.any():
            return Fault(
                "gradient zero",
                f"the values are right, but no gradient reaches {name} on {where}: it is 0 everywhere, so nothing "
                "could be learnt through it.\nCounting, argmax, comparing and casting to integers have no gradient, "
                "and stop_gradient removes it.",
            )
        return Fault(
            "gradient",
            f"the values are right, but the gradient with respect to {name} is not, on {where}.\n{text}\n"
            "The gradient is that of the outputs, weighted by fixed coefficients and summed.",
        )
    raise AssertionError("no gradient differs")
