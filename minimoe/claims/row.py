"""A row of the ledger: one claim, its numbers, and how far they go."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minimoe.plots.verdict import ANSWERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One claim of the press. Sentences are made from ``numbers``, and those from records, configs and files.

    Attributes:
      number, id: its place in the list of claims, and a name for it; several rows may share a number.
      claim: as reported. means: the claim in exact words.
      published: computed at the published sizes, or why nothing is.
      text, reasoning, knowledge: measured in ours on the three yardsticks, or why not.
      other: measured in ours, in bytes, seconds or logits.
      verdict: begins with one of `ANSWERS`.
      not_established: what the check does not show.
      command: what measures it again.
      numbers: what the sentences were made from.
    """

    number: int
    id: str
    claim: str
    means: str
    published: str
    text: str
    reasoning: str
    knowledge: str
    other: str
    verdict: str
    not_established: str
    command: str
    numbers: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.verdict.startswith(ANSWERS):
            raise ValueError(f"{self.id}: verdict {self.verdict!r} must begin with one of {ANSWERS}")

    @property
    def answer(self) -> str:
        """The kind of the verdict, one of `ANSWERS`."""
        return answer_of(self.verdict)

    def to_record(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self) | {"answer": self.answer}


def answer_of(verdict: str) -> str:
    """Which of `ANSWERS` a verdict is; the longest that it begins with.

    Example:
      >>> answer_of("holds when the context is long"), answer_of("holds")
      ('holds when', 'holds')
    """
    return max((answer for answer in ANSWERS if verdict.startswith(answer)), key=len)


NO_QUALITY = "not a matter of quality"
