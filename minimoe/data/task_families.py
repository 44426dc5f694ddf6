"""The three kinds of reasoning problem: each maker draws one question and the steps that answer it.

Every intermediate number is in 1..99, so that a small model has to learn how steps are chained and not long arithmetic.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

LARGEST = 99
MOST_ADDED = 20
FACTORS = (2, 3, 4, 5)


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation on whole numbers.

    Args:
      op: ``+ - * /`` with two operands, or ``max``, ``min`` with any number of them.
      operands: in the order in which they are written. result: a whole number.

    Example:
      >>> print(Step("*", (22, 3), 66), Step("max", (4, 17, 3), 17))
      22*3=66 max(4,17,3)=17
    """

    op: str
    operands: tuple[int, ...]
    result: int

    def __str__(self) -> str:
        if self.op in ("max", "min"):
            return f"{self.op}({','.join(map(str, self.operands))})={self.result}"
        return f"{self.operands[0]}{self.op}{self.operands[1]}={self.result}"


class Draw:
    """Choices read off a sha256, one after another: the same everywhere, whatever the version of Python or NumPy.

    256 bits are more than twice what the longest problem needs, so that no choice is noticeably uneven.
    """

    def __init__(self, key: str) -> None:
        self._bits = int.from_bytes(hashlib.sha256(key.encode()).digest(), "big")

    def between(self, low: int, high: int) -> int:
        """A whole number in low..high."""
        self._bits, offset = divmod(self._bits, high - low + 1)
        return low + offset

    def choice(self, items: Sequence[Any]) -> Any:
        """One of the items."""
        return items[self.between(0, len(items) - 1)]

    def sample(self, items: Sequence[Any], count: int) -> list[Any]:
        """``count`` different items in random order; all of them to shuffle."""
        left = list(items)
        return [left.pop(self.between(0, len(left) - 1)) for _ in range(count)]


def next_step(draw: Draw, value: int, before: str, *, either_side: bool = False) -> Step:
    """A step from ``value`` and a new number, with a result in 1..99.

    Args:
      before: the operation of the step before; two of ``*`` and ``/`` never follow each other, since the second would
        often undo the first.
      either_side: the new number may also come first, as in ``60-value``.
    """
    ops = [op for op in ("+-" if before in ("*", "/") else "+-*/") if _pairs(op, value, either_side)]
    op = draw.choice(ops)
    first, second = draw.choice(_pairs(op, value, either_side))
    results = {"+": first + second, "-": first - second, "*": first * second, "/": first // second}
    return Step(op, (first, second), results[op])


@functools.cache
def _pairs(op: str, value: int, either_side: bool) -> tuple[tuple[int, int], ...]:
    """The operands that ``op`` may take, one of them ``value``."""
    added = range(1, MOST_ADDED + 1)
    if op == "+":
        pairs = [(value, n) for n in added if value + n <= LARGEST]
    elif op == "-":
        pairs = [(value, n) for n in added if n < value]
    elif op == "*":
        pairs = [(value, n) for n in FACTORS if value * n <= LARGEST]
    else:
        pairs = [(value, n) for n in FACTORS if value % n == 0]
    if either_side and op in "+*":
        pairs += [(n, value) for _, n in pairs]
    if either_side and op == "-":
        pairs += [(value + n, value) for n in added if value + n <= LARGEST]
    return tuple(pairs)


def _chain(draw: Draw, value: int, count: int, *, either_side: bool = False) -> list[Step]:
    """``count`` steps, each from the result of the one before, the first from ``value``."""
    steps: list[Step] = []
    for _ in range(count):
        # In the first step of an expression both numbers are new, so their order is no matter.
        step = next_step(draw, value, steps[-1].op if steps else "", either_side=either_side and bool(steps))
        steps.append(step)
        value = step.result
    return steps


def make_arithmetic(draw: Draw, level: int) -> tuple[str, tuple[Step, ...]]:
    """An expression, everything but its last operation in brackets: ``60-((17+5)*2)``."""
    value = draw.between(2, 50)
    text = str(value)
    steps = _chain(draw, value, level, either_side=True)
    for number, (step, before) in enumerate(zip(steps, [value, *(s.result for s in steps)], strict=False)):
        first, second = step.operands
        inside = f"({text})" if number else text
        text = f"{inside}{step.op}{second}" if first == before else f"{first}{step.op}{inside}"
    return text, tuple(steps)


# Names, things and verbs of one or two tokens each in the bundled tokenizer.
PEOPLE = (("Jane", "She"), ("Mary", "She"), ("Anne", "She"), ("Tom", "He"), ("Peter", "He"), ("Moses", "He"))
THINGS = ("coins", "sheep", "letters", "apples", "fish", "cups")
SENTENCES = {
    "+": ("{who} finds {n}.", "{who} gets {n} more.", "{who} buys {n}."),
    "-": ("{who} loses {n}.", "{who} gives {n}.", "{who} sells {n}."),
    "*": ("It is now {n} times that.", "It is soon {n} times that."),
    "/": ("{who} keeps one part in {n}.",),
}


def make_words(draw: Draw, level: int) -> tuple[str, tuple[Step, ...]]:
    """A story: somebody has some things, and then a sentence a step."""
    (name, who), things, value = draw.choice(PEOPLE), draw.choice(THINGS), draw.between(2, 50)
    steps = _chain(draw, value, level)
    told = [draw.choice(SENTENCES[step.op]).format(who=who, n=step.operands[1]) for step in steps]
    return " ".join([f"{name} has {value} {things}.", *told, "How many?"]), tuple(steps)


def make_lists(draw: Draw, level: int) -> tuple[str, tuple[Step, ...]]:
    """Four numbers and something done to their largest or smallest, or the sum of those that pass a test."""
    return draw.choice((_extremes, _selected_sum))(draw, level)


OPERATIONS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


def _extremes(draw: Draw, level: int) -> tuple[str, tuple[Step, ...]]:
    numbers = tuple(draw.sample(range(1, LARGEST + 1), 4))
    largest, smallest = Step("max", numbers, max(numbers)), Step("min", numbers, min(numbers))
    if level < 3:
        steps = [draw.choice((largest, smallest))]
        wanted = [steps[0].op]
    else:
        first, second = largest.result, smallest.result
        signs = "+-" if first + second <= LARGEST else "-"
        op = draw.choice(signs)
        joined = Step(op, (first, second), first + second if op == "+" else first - second)
        steps = [largest, smallest, joined]
        wanted = [f"max {OPERATIONS[op]} min"]
    after = _chain(draw, steps[-1].result, level - len(steps))
    wanted += [f"{OPERATIONS[step.op]} {step.operands[1]}" for step in after]
    return f"[{','.join(map(str, numbers))}]: {', '.join(wanted)}", (*steps, *after)


def _selected_sum(draw: Draw, level: int) -> tuple[str, tuple[Step, ...]]:
    top = LARGEST // (level + 1)  # level + 1 numbers are added
    test = draw.choice(("even", "odd", "over"))
    limit = draw.between(3, 8)
    passes = {"even": lambda n: n % 2 == 0, "odd": lambda n: n % 2 == 1, "over": lambda n: n > limit}[test]
    inside = [n for n in range(1, top + 1) if passes(n)]
    outside = [n for n in range(1, top + 1) if not passes(n)]
    numbers = draw.sample(draw.sample(inside, level + 1) + draw.sample(outside, 2), level + 3)
    total, *rest = (n for n in numbers if passes(n))
    steps = []
    for number in rest:
        steps.append(Step("+", (total, number), total + number))
        total += number
    wanted = f"those over {limit}" if test == "over" else f"the {test} ones"
    return f"[{','.join(map(str, numbers))}]: sum of {wanted}", tuple(steps)


MAKERS: dict[str, Callable[[Draw, int], tuple[str, tuple[Step, ...]]]] = {
    "arithmetic": make_arithmetic,
    "words": make_words,
    "lists": make_lists,
}
