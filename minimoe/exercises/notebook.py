"""What a notebook calls: `check`, `hint`, `status`, `exercises`."""

from __future__ import annotations

from typing import Any

from minimoe.errors import UserError
from minimoe.exercises.record import Result
from minimoe.exercises.registry import CATALOGUE, Catalogue, Table

_results: dict[str, Result] = {}  # of this process: the best so far
_hints_given: dict[str, int] = {}


def check(id: str, answer: Any, *, time_limit: int | float | None = None) -> Result:
    """Judges an answer and prints the verdict; a wrong answer raises nothing.

    Args:
      id: of the exercise, such as ``"routing.topk"``.
      answer: your function. It is called with positional arguments, in a process of its own with settings of its own:
        what you have set in this one changes no verdict.
      time_limit: seconds for each call of it; 20 by default.

    Returns:
      A `Result`: ``passed``, ``points``, ``message``, the name of a recognised ``mistake``.

    Raises:
      UserError: for an unknown id, or a time limit that is no number above 0.

    Example:
      >>> result = check("sparse.params", lambda d, f, e, k, s: (3 * d * f * (e + s), 3 * d * f * (k + s)))
      NOT YET  sparse.params  0 of 5 points
        no router: the router has weights too, and every token multiplies with them.
        on case 'small' (d_model=8, d_expert=6, num_experts=4, top_k=2, num_shared_experts=1): total: expected 752, got 720.
        hint: minimoe.exercises.hint("sparse.params")
      >>> result.passed
      False
    """
    result = judge(id, answer, time_limit)
    if result.passed or id not in _results or not _results[id].passed:
        _results[id] = result
    print(result)
    return result


def judge(id: str, answer: Any, time_limit: int | float | None = None) -> Result:
    """The verdict on an answer, nothing printed. What is no function is told so without starting a process."""
    from minimoe.exercises import judging

    exercise = CATALOGUE[id]
    if not callable(answer):
        from minimoe.exercises.grade import grade  # it imports JAX

        return grade(exercise, answer)
    return judging.shared().answer(id, answer, time_limit=time_limit)


def hint(id: str, level: int | None = None) -> None:
    """Prints the next of three hints, each saying more than the one before; none is the solution.

    Args:
      id: of the exercise.
      level: 1, 2 or 3 for a certain one.

    Raises:
      UserError: for an unknown id or level.
    """
    print(hint_text(id, level))


def hint_text(id: str, level: int | None = None) -> str:
    """What `hint` prints."""
    exercise = CATALOGUE[id]
    count = len(exercise.hints)
    if level is None:
        level = min(_hints_given.get(id, 0) + 1, count)
        _hints_given[id] = level
    if not 1 <= level <= count:
        raise UserError(f"hint level {level} does not exist; choose 1 to {count}")
    return f"{id}, hint {level} of {count}: {exercise.hints[level - 1]}"


def status() -> Table:
    """All exercises, and which of them passed a check in this process."""
    rows = []
    for exercise in CATALOGUE.values():
        result = _results.get(exercise.id)
        state = "" if result is None or not result.attempted else "done" if result.passed else "not yet"
        size = (f"{exercise.lesson:02d}", f"{exercise.difficulty}/5", str(exercise.minutes))
        points = f"{result.points if result else 0}/{exercise.points}"
        rows.append((exercise.id, state, *size, points, exercise.title))
    earned, possible = sum(r.points for r in _results.values()), sum(e.points for e in CATALOGUE.values())
    done = sum(r.passed for r in _results.values())
    note = f"{done} of {len(CATALOGUE)} done, {earned} of {possible} points (in this process)"
    return Table(("exercise", "state", "lesson", "difficulty", "minutes", "points", "title"), tuple(rows), note)


def exercises() -> Catalogue:
    """All exercises by id; an entry shows its statement.

    Example:
      >>> print(exercises()["routing.topk"].starter)
      def topk(affinities, bias, k):
          raise NotImplementedError("not written yet: routing.topk")
    """
    return CATALOGUE
