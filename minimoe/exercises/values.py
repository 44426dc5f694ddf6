"""An answer's outputs against the oracle's: structure, shapes, values, dtypes, and the mistakes that explain them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from minimoe.exercises.messages import Fault, describe, shape_text
from minimoe.exercises.numeric import ERRORS, Tolerance, as_outputs, difference, widen
from minimoe.exercises.record import Arrays, Case, Exercise


@functools.lru_cache(maxsize=256)
def expected_outputs(exercise: Exercise, case: Case) -> Arrays:
    """The oracle's outputs. The oracle sees float64, so that no error of its own counts against the answer."""
    return as_outputs(exercise.oracle(*(widen(value) for value in case.arguments)))


def tolerance(case: Case) -> Tolerance:
    """What the right values may differ by."""
    return Tolerance(0.0, 0.0) if case.exact else Tolerance(*ERRORS, case.absolute)


def alike(expected: np.ndarray, got: np.ndarray, allowed: Tolerance) -> bool:
    return expected.shape == got.shape and bool(allowed.close(expected, got).all())


def check_values(exercise: Exercise, case: Case, returned: Any, stage: str = "") -> None:
    """Structure, shapes, values, dtypes, in this order; a known mistake is named where one computes the same.

    Raises:
      Fault: for the first thing that is wrong.
    """
    where = f"{stage}on {describe(exercise, case)}"
    expected = expected_outputs(exercise, case)
    values = structure(exercise, returned, where)
    got = tuple(np.asarray(value) for value in values)
    for spec, answer in zip(exercise.outputs, got, strict=True):
        if answer.dtype.kind not in "iufb" and answer.dtype.name != "bfloat16":
            raise Fault("dtype", f"{spec.name} holds {answer.dtype}, not numbers ({where}).")
    try:
        for spec, answer, right in zip(exercise.outputs, got, expected, strict=True):
            check_shape(spec.name, answer, right, where)
    except Fault as fault:
        recognise(exercise, case, got, fault)
        raise
    wrong = [
        text
        for spec, right, answer in zip(exercise.outputs, expected, got, strict=True)
        if (text := difference(spec.name, right, answer, tolerance(case)))
    ]
    if wrong:
        recognise(exercise, case, got, Fault("values", f"{where}: {wrong[0]}."))
    for spec, value, right in zip(exercise.outputs, values, expected, strict=True):
        check_dtype(spec.name, spec.dtype, case, value, right, where)
    if not wrong:
        return
    for spec, right, answer in zip(exercise.outputs, expected, got, strict=True):
        bad = ~np.isfinite(answer.astype(np.float64)) & np.isfinite(right)
        if bad.any():
            kind = "NaN" if np.isnan(answer.astype(np.float64)).any() else "infinity"
            raise Fault(
                "nan", f"{spec.name} contains {kind} {where}.\n{wrong[0]}\nWhich step overflows, or divides 0 by 0?"
            )
    raise Fault("values", f"{'; '.join(wrong)}\n{where}.")


def recognise(exercise: Exercise, case: Case, got: Arrays, fault: Fault) -> None:
    """Raises ``fault`` under the name of the first known mistake that computes the same, if there is one.

    On some cases a mistake makes no difference. There it explains no answer.
    """
    allowed = Tolerance(*ERRORS, case.absolute)  # also where the right answer has to be exact
    expected = expected_outputs(exercise, case)
    for mistake in exercise.mistakes:
        if mistake.outputs is None:
            continue
        with np.errstate(all="ignore"):
            theirs = as_outputs(mistake.outputs(*case.arguments))
        if all(alike(right, answer, tolerance(case)) for right, answer in zip(expected, theirs, strict=True)):
            continue
        if all(alike(right, answer, allowed) for right, answer in zip(theirs, got, strict=True)):
            raise Fault(fault.aspect, f"{mistake.name}: {mistake.message}\n{fault.message}", mistake.name) from None


def structure(exercise: Exercise, returned: Any, where: str) -> tuple[Any, ...]:
    """The returned values, one for each output.

    Raises:
      Fault: if something else came back.
    """
    names = [output.name for output in exercise.outputs]
    wanted = f"({', '.join(names)})" if len(names) > 1 else names[0]
    if returned is None:
        raise Fault("structure", f"returned None {where}: is the return missing? It must return {wanted}.")
    if len(names) == 1:
        values: tuple[Any, ...] = (returned,)
    elif isinstance(returned, tuple | list) and len(returned) == len(names):
        values = tuple(returned)
    else:
        many = f" of {len(returned)}" if isinstance(returned, tuple | list) else ""
        kind = type(returned).__name__
        raise Fault("structure", f"returned {_a(kind)}{many} {where}; it must return the {len(names)} values {wanted}.")
    for name, value in zip(names, values, strict=True):
        if isinstance(value, tuple | list):
            kind, length = type(value).__name__, len(value)
            raise Fault(
                "structure",
                f"{name} is {_a(kind)} of {length} {where}; return one array (jnp.stack or jnp.asarray make it).",
            )
        if not hasattr(value, "dtype") and not isinstance(value, int | float):
            raise Fault("structure", f"{name} is {_a(type(value).__name__)} {where}; it must be an array or a number.")
        if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
            raise Fault(
                "structure", f"{name} is a masked array with numbers hidden {where}; return them all, unmasked."
            )
    return values


def _a(kind: str) -> str:
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def check_shape(name: str, value: Any, right: np.ndarray, where: str) -> None:
    if right.shape != value.shape:
        raise Fault("shape", f"{name} has shape {shape_text(value)}; it must be {shape_text(right)} ({where}).")


def check_dtype(name: str, dtype: str, case: Case, value: Any, right: np.ndarray, where: str) -> None:
    """A Python number will do for a scalar of its kind; else the dtype must be the one asked for."""
    found = getattr(value, "dtype", None) or np.asarray(value).dtype
    if dtype in ("int", "float"):
        if found.kind not in ("iu" if dtype == "int" else "iuf"):
            raise Fault("dtype", f"{name} is {found.name}; it must be a whole number ({where}).")
        return
    wanted = case.dtype if case.dtype and dtype.startswith("float") else dtype
    python_number = not right.shape and not hasattr(value, "dtype") and (found.kind == "f") == (right.dtype.kind == "f")
    if found.name != wanted and not python_number:
        raise Fault("dtype", f"{name} has dtype {found.name}; it must be {wanted} ({where}).")
