"""One run of an experiment on facts: a small model learns a book by heart and is asked for every entry."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.run import Learning, Run, ran, training_curve
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.data import Document, FactBook, Tokenizer
    from minimoe.training import RunConfig, TrainResult


def book_of(settings: Mapping[str, Any]) -> FactBook:
    """The book of a run: ``entries`` of 3 letters and 3 digits, always of the same seed."""
    from minimoe.data import FactBook

    return FactBook(settings["entries"], letters=3, digits=3)


def read_book(work: Workplace, run: RunConfig, **settings: Any) -> Learning:
    """Fresh weights, and the whole book."""
    from minimoe.training import RecallFacts

    return Learning(book_of(settings), method=RecallFacts())


@dataclasses.dataclass(frozen=True)
class FactRun(Run):
    """A run whose ``settings`` have the size of its book, ``entries``, and whose ``model`` is given.

    ``changes`` are to `minimoe.training.recall.RECIPE`. Each of ``scores`` is called as those of `Run` are.
    """

    preset: str = "facts"
    learn: Callable[..., Learning] = read_book

    def method(self) -> dict[str, Any]:
        return json.loads(json.dumps(dict(self.settings)))

    def tokenizer(self, work: Workplace) -> Tokenizer:
        """Plain bytes."""
        from minimoe.data import ByteTokenizer

        return ByteTokenizer()

    def validation(self, work: Workplace) -> list[Document]:
        """None: nothing of a random book can be held out."""
        return []

    def config(self, work: Workplace) -> RunConfig:
        from minimoe.training import fact_run

        run = fact_run(book_of(self.settings), self.model, **self.changes)
        return dataclasses.replace(run, data=dict(run.data) | self.method())

    def outcome(self, work: Workplace, config: RunConfig, result: TrainResult) -> dict[str, Any]:
        from minimoe.training import evaluate_facts

        found = {
            **ran(self, config, result),
            **evaluate_facts(result.model, book_of(self.settings)).to_record(),
            "curve": training_curve(result),
        }
        for score in self.scores:
            found |= score(work, result.model, self.settings)
        return found

    def headline(self, outcome: Mapping[str, Any]) -> str:
        return f"{self.name}: {outcome['recalled']:.1%} of the entries recalled"
