"""What ends the judging, and the words for it: where it happened, and why JAX refused."""

from __future__ import annotations

import inspect
import traceback
from typing import Any

import jax
import numpy as np

from minimoe.exercises.record import Case, Exercise


class Fault(Exception):
    """Ends the judging: which aspect failed, the recognised mistake, and the message."""

    def __init__(self, aspect: str, message: str, mistake: str | None = None):
        super().__init__(message)
        self.aspect, self.message, self.mistake = aspect, message, mistake


def unwritten(exercise: Exercise) -> str:
    return (
        f"not written yet: {exercise.id}. Write {exercise.signature} and pass it to "
        f'minimoe.exercises.check("{exercise.id}", {exercise.name}).'
    )


def shape_text(array: Any) -> str:
    return f"[{', '.join(map(str, array.shape))}]" if array.shape else "[] (a scalar)"


def describe(exercise: Exercise, case: Case) -> str:
    """``case 'first shape' (x [5, 4], k=2)``."""
    parts = [
        f"{name} {shape_text(value)}" if isinstance(value, np.ndarray) else f"{name}={value}"
        for name, value in zip(exercise.parameters, case.arguments, strict=True)
    ]
    return f"case '{case.name}' ({', '.join(parts)})"


def explain_error(exercise: Exercise, answer: Any, error: BaseException, case: Case, stage: str) -> Fault:
    """The Fault for what an answer raised; ``stage`` is empty where it ran eagerly."""
    where = location(answer, error)
    if isinstance(error, NotImplementedError):
        return Fault("unwritten", unwritten(exercise))
    words = words_of(error)
    words = words if len(words) <= 300 else words[:300] + " ..."
    text = f"raised {type(error).__name__} {stage}on {describe(exercise, case)}{where}: {words}"
    reason = why_untraceable(error)
    if isinstance(error, TypeError) and "item assignment" in words:
        reason = "JAX arrays cannot be written to: x.at[i].set(v) returns a changed copy."
    return Fault("jit" if stage else "error", f"{text}\n{reason}".rstrip())


def words_of(error: BaseException) -> str:
    """The message of an exception on one line; an exception of the answer's own may fail to give one."""
    try:
        return " ".join(str(error).split())
    except Exception as failed:
        return f"(no message: its __str__ raised {type(failed).__name__})"


def location(answer: Any, error: BaseException) -> str:
    """Line and text in the student's own file, where they can be found."""
    code = getattr(inspect.unwrap(answer), "__code__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    return f", line {frames[-1].lineno} `{frames[-1].line}`" if frames and frames[-1].line else ""


def why_untraceable(error: BaseException) -> str:
    """Why JAX refused, for somebody who meets tracers for the first time."""
    inside = "While JAX traces a function (jax.jit, jax.grad) its arrays have shapes and dtypes but no values yet"
    if isinstance(error, jax.errors.TracerArrayConversionError):
        return f"{inside}, so NumPy cannot work on them. Use jax.numpy for everything that depends on the inputs."
    if isinstance(error, jax.errors.NonConcreteBooleanIndexError):
        return f"{inside}: x[mask] would have an unknown length. Use jnp.where, or a sum with where=mask."
    if isinstance(error, jax.errors.TracerIntegerConversionError):
        return f"{inside}: they cannot index a list or count a loop. Index arrays, with jnp.take or take_along_axis."
    if isinstance(error, jax.errors.ConcretizationTypeError):  # TracerBoolConversionError is one
        return f"{inside}: `if`, `while`, int() and float() cannot look at them. Use jnp.where; keep sizes static."
    return ""
