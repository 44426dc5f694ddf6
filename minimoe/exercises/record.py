"""What an exercise is: its statement, its cases, its oracle, the mistakes people make, and the verdict on an answer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

Arguments = tuple[Any, ...]
Arrays = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Output:
    """One returned value. ``dtype`` is a NumPy name; ``int`` and ``float`` mean a plain Python number."""

    name: str
    dtype: str


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One set of arguments, made on first use from a seed that stands in the lesson's file.

    Attributes:
      name: shown to the student when this case fails.
      make: returns the arguments in order. NumPy arrays are traced under ``jax.jit``, all else is static.
      gradient: whether gradients are checked here too.
      absolute: error allowed besides the relative one, where the largest value does not say what is negligible.
      dtype: of the floating outputs, where the inputs are in half precision. Such a case is traced, not computed.
      exact: no error is allowed: all values have few bits, so float32 makes none.
    """

    name: str
    make: Callable[[], Arguments]
    gradient: bool = False
    absolute: float | None = None
    dtype: str | None = None
    exact: bool = False

    @functools.cached_property
    def arguments(self) -> Arguments:
        return self.make()


@dataclasses.dataclass(frozen=True, eq=False)
class Mistake:
    """A usual misunderstanding, recognised by what it computes.

    Attributes:
      name: short, as a heading.
      message: what is wrong in the idea; never the corrected line of code.
      outputs: takes the arguments and returns what the mistaken function returns, in whatever shape.
      gradient: takes the arguments and the right gradients and returns the mistaken gradients, for functions whose
        values are right.
    """

    name: str
    message: str
    outputs: Callable[..., Any] | None = None
    gradient: Callable[[Arguments, Arrays], Arrays] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Exercise:
    """A pure function to be written, and everything needed to judge it.

    Attributes:
      id: ``lesson.name``. lesson: number of the notebook. title: one line.
      signature: as in ``def``, without it.
      task: what to compute, with shapes, dtypes and axis letters (Markdown).
      difficulty: 1 to 5. minutes: for a first attempt. points: given whole or not at all.
      hints: three, each saying more than the one before.
      outputs: what is returned, in order.
      oracle: the definition in NumPy and float64, slow and plain.
      cases: small, and of few shapes, since every shape is compiled anew; judged in this order. A mistake that changes
        values in a later case only must not show in the gradient of an earlier one.
      mistakes: recognised in this order.
      wrt: arguments with respect to which the gradient is checked.
      gradient: takes the arguments in float64 and returns the gradients asked for, of the outputs weighted by
        `minimoe.exercises.numeric.cotangent`, where they are not the oracle's derivative: a convention.
      jit: whether the function must also work under ``jax.jit``.
      time_limit: seconds for each call of the answer, compilation included.
    """

    id: str
    lesson: int
    title: str
    signature: str
    task: str
    difficulty: int
    minutes: int
    points: int
    hints: tuple[str, str, str]
    outputs: tuple[Output, ...]
    oracle: Callable[..., Any]
    cases: tuple[Case, ...]
    mistakes: tuple[Mistake, ...]
    wrt: tuple[str, ...] = ()
    gradient: Callable[..., Arrays] | None = None
    jit: bool = True
    time_limit: int | float = 20.0

    def public(self) -> Exercise:
        """What the process that runs answers may know of it: the statement and the arguments, nothing that tells a result.

        It can be pickled.
        """
        cases = tuple(dataclasses.replace(case, make=functools.partial(tuple, case.arguments)) for case in self.cases)
        nothing: dict[str, Any] = {"oracle": tuple, "mistakes": (), "gradient": None, "hints": ("", "", "")}
        return dataclasses.replace(self, cases=cases, **nothing)

    @property
    def name(self) -> str:
        return self.signature.partition("(")[0]

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.signature.partition("(")[2].rstrip(")").split(","))

    @property
    def numpy_allowed(self) -> bool:
        """Plain Python or NumPy will do: neither a gradient nor ``jax.jit`` is asked for."""
        return not self.jit and not self.wrt

    @property
    def starter(self) -> str:
        """The unfilled function, for a student's file."""
        message = f'"not written yet: {self.id}"'
        return f"def {self.signature}:\n    raise NotImplementedError({message})\n"

    @property
    def checks(self) -> str:
        """What an answer must stand, in words."""
        parts = [f"values, shapes and dtypes on {len(self.cases)} cases"]
        if self.jit:
            parts.append("the same under `jax.jit`")
        if self.wrt:
            parts.append("gradient with respect to " + " and ".join(f"`{name}`" for name in self.wrt))
        return ", ".join(parts) + (". Python, NumPy or jax.numpy." if self.numpy_allowed else ". Use jax.numpy.")

    def __repr__(self) -> str:
        return f"Exercise({self.id!r}: {self.title})"

    def __str__(self) -> str:
        return (
            f"{self.id}  {self.title}\n"
            f"lesson {self.lesson:02d}, difficulty {self.difficulty} of 5, about {self.minutes} minutes, "
            f"{self.points} points\n\n{self.task}\n\nChecked: {self.checks}\n\n{self.starter}"
        )

    def _repr_markdown_(self) -> str:
        stars = "●" * self.difficulty + "○" * (5 - self.difficulty)
        return (
            f"**Exercise `{self.id}`: {self.title}**\n\n"
            f"lesson {self.lesson:02d} · {stars} · about {self.minutes} minutes · {self.points} points\n\n"
            f"{self.task}\n\nChecked: {self.checks}\n\n```python\n{self.starter}```\n"
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """The verdict on one answer. True in a condition when it passed.

    Attributes:
      id: of the exercise.
      passed: everything held.
      points: earned: all of ``max_points`` or none.
      message: what is wrong, or what was checked.
      mistake: name of the recognised mistake, if any.
      aspect: where it failed: unwritten, signature, error, time, process, mutation, structure, shape, dtype, nan, values,
        jit, gradient zero, gradient nan or gradient; empty when passed.
      printed: what the answer printed in the call that decided the verdict, the beginning of it.
    """

    id: str
    passed: bool
    points: int
    max_points: int
    message: str
    mistake: str | None = None
    aspect: str = ""
    printed: str = ""

    @property
    def attempted(self) -> bool:
        return self.aspect != "unwritten"

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        verdict = "passed" if self.passed else f"not passed: {self.mistake or self.aspect}"
        return f"Result({self.id!r}, {verdict}, {self.points} of {self.max_points} points)"

    def __str__(self) -> str:
        lines = [f"{'PASSED ' if self.passed else 'NOT YET'}  {self.id}  {self.points} of {self.max_points} points"]
        lines += [f"  {line}" for line in self.message.splitlines()]
        if self.printed:
            shown = self.printed.splitlines()[:10]
            lines += ["  your function printed:", *(f"  | {line[:200]}" for line in shown)]
        if not self.passed:
            lines.append(f'  hint: minimoe.exercises.hint("{self.id}")')
        return "\n".join(lines)
