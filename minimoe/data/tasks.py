"""Reasoning problems with a checkable answer: generated, seeded, endless, and short.

Three families: an expression, a story, a list. A problem of level n takes n steps, each of which needs the result of
an earlier one; every number that occurs is in 1..99. As text, with the steps and without:

    Q: (17+5)*3                         Q: (17+5)*3
    Steps: 17+5=22; 22*3=66             A: 66
    A: 66

*What is held out.* A combination is the set of operands of one step, whatever the order, the operation and the family:
17+5, 5+17 and 17-5 are all the combination {5, 17}. One in ten is held out, by hash. No step of any training problem
has a held-out combination; every validation problem has at least one. So a validation answer cannot be remembered.

*How numbers are written.* Plainly. The bundled tokenizer cuts every digit off by itself and none of its 2,048 tokens
joins two (a test counts them), so 17 is always the tokens ``1`` and ``7``. The steps have no spaces inside because a
space before a digit is a token of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable

from minimoe.checks import choice, whole
from minimoe.data.corpus import SPLITS, Document
from minimoe.data.task_families import MAKERS, Draw, Step
from minimoe.errors import UserError

DOMAIN = "reasoning"
FAMILIES = tuple(MAKERS)
FORMS = ("direct", "worked")
LEVELS = (1, 2, 3, 4, 5)
HELD_OUT_PERCENT = 10
_SALT = "reasoning/298"  # one under which additions, subtractions, products and divisions each give up a tenth


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem, its way and its answer.

    Args:
      key: unique: seed, split, level, index, and the family if it was asked for.
      level: the number of steps. split: ``"train"`` or ``"val"``. family: one of `FAMILIES`.
      question: one line. steps: the way that the text shows.
    """

    key: str
    level: int
    split: str
    family: str
    question: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """The result of the last step."""
        return self.steps[-1].result

    def prompt(self, form: str = "worked") -> str:
        """What a model is given; its tokens begin those of `text`. The last word says which form it shall answer in."""
        choice("form", form, FORMS)
        return f"Q: {self.question}\n{'Steps' if form == 'worked' else 'A'}:"

    def text(self, form: str = "worked") -> str:
        """The whole problem, solved: three lines worked, two lines direct."""
        steps = f" {'; '.join(map(str, self.steps))}\nA:" if form == "worked" else ""
        return f"{self.prompt(form)}{steps} {self.answer}\n"


def problem(index: int, level: int = 3, split: str = "train", *, seed: int = 0, family: str | None = None) -> Problem:
    """Problem number ``index``: always the same one for the same arguments, on any machine.

    Args:
      index: 0 and up, without end. seed: another seed is another sequence.
      level: steps, one of `LEVELS`.
      split: ``"train"`` or ``"val"``, see the module.
      family: one of `FAMILIES`; None takes each in turn, by chance.

    Raises:
      UserError: for an unknown level, split or family, or a negative index or seed.

    Example:
      >>> print(problem(2, level=2, family="arithmetic").text(), end="")
      Q: 2*(46-7)
      Steps: 46-7=39; 2*39=78
      A: 78
      >>> print(problem(2, level=3, split="val", family="words").text("direct"), end="")
      Q: Jane has 30 coins. She gives 14. She buys 4. She loses 2. How many?
      A: 18
      >>> print(problem(2, level=3, family="lists").text(), end="")
      Q: [55,14,36,95]: max minus min
      Steps: max(55,14,36,95)=95; min(55,14,36,95)=14; 95-14=81
      A: 81
    """
    level = choice("level", level, LEVELS)
    choice("split", split, SPLITS)
    if family is not None:
        choice("family", family, FAMILIES)
    return _problem(whole("index", index, 0), level, split, whole("seed", seed, 0), family)


@functools.lru_cache(maxsize=4096)  # a command looks at the validation problems several times
def _problem(index: int, level: int, split: str, seed: int, family: str | None) -> Problem:
    key = f"{seed}/{split}/{level}/{index}" + (f"/{family}" if family else "")
    for attempt in itertools.count():
        draw = Draw(f"{key}/{attempt}")
        chosen = family or draw.choice(FAMILIES)
        question, steps = MAKERS[chosen](draw, level)
        held_out = any(is_held_out(step.operands) for step in steps)
        if held_out == (split == "val"):
            return Problem(key, level, split, chosen, question, steps)
    raise AssertionError("count() does not end")


@functools.lru_cache(maxsize=1 << 16)
def is_held_out(operands: tuple[int, ...]) -> bool:
    """Whether a combination of operands, in any order, is kept from training.

    Example:
      >>> is_held_out((17, 5)) == is_held_out((5, 17))
      True
    """
    digest = hashlib.sha256(f"{_SALT}/{sorted(operands)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


def task_documents(
    num: int,
    levels: Iterable[int] = LEVELS,
    split: str = "train",
    seed: int = 0,
    form: str = "worked",
) -> list[Document]:
    """Problems 0..num-1 as documents, one each, for `minimoe.data.training_data` to mix with other text.

    The first documents of a longer list are those of a shorter one.

    Args:
      num: how many. levels: taken in turn. split, seed: as for `problem`.
      form: ``"direct"``, ``"worked"``, or ``"mixed"`` for every level in one and then in the other.

    Raises:
      UserError: for unknown values, a negative number, or no level.

    Example:
      >>> document = task_documents(1, levels=[1])[0]
      >>> document.domain, document.split, document.key
      ('reasoning', 'train', '0/train/1/0/worked')
    """
    levels = tuple(levels)
    choice("form", form, (*FORMS, "mixed"))
    if num < 0 or not levels:
        raise UserError(f"num={num} with levels={levels}: give a number of at least 0 and at least one level")
    found = []
    for index in range(num):
        form_here = FORMS[index // len(levels) % 2] if form == "mixed" else form
        made = problem(index, levels[index % len(levels)], split, seed=seed)
        found.append(Document(DOMAIN, split, f"{made.key}/{form_here}", made.text(form_here)))
    return found
