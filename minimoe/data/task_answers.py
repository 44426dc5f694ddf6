"""Reading and grading what a model wrote below a reasoning problem. Any text at all is a legal input."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

from minimoe.data.task_families import Step
from minimoe.data.tasks import Problem

# Nine digits at most: a model may write thousands, and int() refuses those.
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")
_BINARY = re.compile(r"([0-9]{1,9})\s*([-+*/])\s*([0-9]{1,9})\s*=\s*([0-9]{1,9})")
_EXTREME = re.compile(r"(max|min)\s*\(([0-9,\s]*)\)\s*=\s*([0-9]{1,9})")


@dataclasses.dataclass(frozen=True)
class StepCheck:
    """How a text reasons.

    Attributes:
      num_steps: written. num_valid: those whose arithmetic holds.
      chained: whether they are a way from the question to the right answer: each uses numbers of the question or
        results before it, every one of these is used exactly once, and what is left over is the answer. A ``max`` or
        ``min`` is of the whole list.
    """

    num_steps: int
    num_valid: int
    chained: bool

    @property
    def correct(self) -> bool:
        """Every step holds, and together they lead to the answer."""
        return self.num_steps > 0 and self.num_valid == self.num_steps and self.chained

    def __bool__(self) -> bool:
        return self.correct


def parse_answer(text: str) -> int | None:
    """The answer that a text gives: the whole number alone on the first line that begins with ``A:``.

    The first such line counts and no other, since what follows it belongs to problems that the model made up. If it
    holds anything but one number (none, two, words, a fraction), there is no answer. Spaces do not matter.

    Args:
      text: the prompt with what the model wrote, or from the steps on.

    Returns:
      None without an answer.

    Example:
      >>> parse_answer("Q: 17+5\\nSteps: 17+5=22\\n A :  22 \\nQ: 1+1\\nA: 2\\n"), parse_answer("A: 22 or 23")
      (22, None)
    """
    number = _first_line(text, "A") or ""
    return int(number) if _NUMBER.fullmatch(number) else None


def check_answer(problem: Problem, text: str) -> bool:
    """Whether `parse_answer` finds exactly the right number; the way there does not matter.

    Example:
      >>> from minimoe.data.tasks import problem
      >>> example = problem(0)
      >>> check_answer(example, example.text("direct")), check_answer(example, example.prompt())
      (True, False)
    """
    return parse_answer(text) == problem.answer


def check_steps(problem: Problem, text: str) -> StepCheck:
    """Grades the first line that begins with ``Steps:``, step by step; steps are separated by ``;``.

    Any valid way is right, not only the one that `Problem.text` shows: sums may be taken in another order. The answer
    line is not looked at.

    Args:
      problem: what was asked.
      text: as for `parse_answer`.

    Returns:
      A record that is true if every step is right and they lead to the answer.

    Example:
      >>> way = (Step("+", (17, 5), 22), Step("*", (22, 3), 66))
      >>> asked = Problem("an example", 2, "train", "arithmetic", "(17+5)*3", way)
      >>> check_steps(asked, "Steps: 17+5=22; 22*3=66").correct
      True
      >>> check_steps(asked, "Steps: 17+5=21; 21*3=63")  # a slip, and right from there
      StepCheck(num_steps=2, num_valid=1, chained=False)
    """
    pieces = (_first_line(text, "Steps") or "").split(";")
    steps = [_parse_step(piece.strip()) for piece in pieces if piece.strip()]
    valid = [step for step in steps if step is not None and _holds(step)]
    chained = None not in steps and _leads_to_answer(problem, [step for step in steps if step is not None])
    return StepCheck(len(steps), len(valid), chained)


def _first_line(text: str, label: str) -> str | None:
    """What follows ``label:`` on the first line that begins with it, stripped."""
    for line in text.split("\n"):
        start, colon, rest = line.partition(":")
        if colon and start.strip() == label:
            return rest.strip()
    return None


def _parse_step(text: str) -> Step | None:
    if found := _BINARY.fullmatch(text):
        first, op, second, result = found.groups()
        return Step(op, (int(first), int(second)), int(result))
    if found := _EXTREME.fullmatch(text):
        op, listed, result = found.groups()
        numbers = [number.strip() for number in listed.split(",")]
        if all(re.fullmatch(r"[0-9]{1,9}", number) for number in numbers):
            return Step(op, tuple(map(int, numbers)), int(result))
    return None


def _holds(step: Step) -> bool:
    if step.op in ("max", "min"):
        return step.result == (max if step.op == "max" else min)(step.operands)
    first, second = step.operands
    if step.op == "/":
        return second != 0 and first == second * step.result
    return step.result == {"+": first + second, "-": first - second, "*": first * second}[step.op]


def _leads_to_answer(problem: Problem, steps: list[Step]) -> bool:
    """Whether the steps use up the numbers of the question, and one another's results, and leave the answer."""
    lists = {tuple(sorted(step.operands)) for step in problem.steps if step.op in ("max", "min")}
    left = Counter(_numbers_to_use(problem))
    for step in steps:
        if step.op in ("max", "min"):
            if tuple(sorted(step.operands)) not in lists:
                return False
        else:
            left.subtract(step.operands)
            if min(left.values()) < 0:
                return False
        left[step.result] += 1
    return +left == Counter([problem.answer])


def _numbers_to_use(problem: Problem) -> list[int]:
    """What the question gives to calculate with: the operands that no earlier step made. Lists are looked at, not used."""
    made: Counter[int] = Counter()
    given = []
    for step in problem.steps:
        for operand in step.operands if step.op not in ("max", "min") else ():
            if made[operand]:
                made[operand] -= 1
            else:
                given.append(operand)
        made[step.result] += 1
    return given
