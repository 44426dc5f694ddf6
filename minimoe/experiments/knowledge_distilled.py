"""Can facts be distilled, as reasoning steps can?

The teacher, twice as wide, learned the whole book of `knowledge`. Students read one half of the entries, in
one of three ways: as they stand in the book (``alone``), with the teacher's probabilities of every digit (``logits``), or
as the teacher writes them (``text``). Three seeds. The record has what a student recalls of the half that it read, and of
the other half, which only the teacher knows. Lesson 05 reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.fact_run import FactRun, book_of
from minimoe.experiments.knowledge import ENTRIES, SEEDS, STEPS, WIDTH, fact_contestants
from minimoe.experiments.run import Learning, Run
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.data import FactBook
    from minimoe.model import MoETransformer
    from minimoe.training import RunConfig

STUDENT_STEPS = 600  # too few to learn half the book by heart, so that a teacher can help
WAYS: dict[str, dict[str, Any]] = {
    "alone": {},
    "logits": {"distill": {"alpha": 0.9}},
    "text": {"text": "sampled"},
}
TEACHER = "knowledge-distilled/teacher-0"


def runs(done: Mapping[str, Any]) -> list[Run]:
    """A teacher learns a book; students learn half of it from the book, from its logits or from its text; three seeds."""
    teacher = fact_contestants(ENTRIES, 2 * WIDTH)["experts-16"]
    found: list[Run] = [FactRun("teacher-0", changes={"steps": STEPS}, settings={"entries": ENTRIES}, model=teacher)]
    student = fact_contestants()["experts-4"]
    for seed in SEEDS:
        for name, way in WAYS.items():
            settings = {"entries": ENTRIES, "half": True} | way
            more: dict[str, Any] = {"learn": read_half, "settings": settings, "scores": (by_half,), "model": student}
            found.append(FactRun(f"{name}-{seed}", changes={"steps": STUDENT_STEPS, "seed": seed}, **more))
    return found


def read_half(
    work: Workplace, run: RunConfig, *, distill: Mapping[str, Any] | None = None, text: str = "book", **settings: Any
) -> Learning:
    """The first half of the book, by one of `WAYS`."""
    from minimoe.training import RecallFacts

    book = book_of(settings)
    half = book.part(0, book.size // 2)
    if text == "sampled":
        return Learning(half.with_numbers(written(work.finished(TEACHER), half)), method=RecallFacts())
    if not distill:
        return Learning(half, method=RecallFacts())
    return Learning(half, method=taught(work.finished(TEACHER), distill))


def written(model: MoETransformer, book: FactBook) -> Any:
    """What a model writes below every name of a book, greedily: the tokens of its numbers, int32 ``[N, digits]``."""
    import jax.numpy as jnp
    import numpy as np

    entries = jnp.asarray(book.entries[:, : book.letters])
    for _ in range(book.digits):  # an entry is one token longer than the model's context, so `generate` would refuse it
        logits, _ = model(entries)
        entries = jnp.concatenate([entries, logits[:, -1].argmax(axis=-1, keepdims=True).astype(jnp.int32)], axis=1)
    return np.asarray(entries)[:, book.letters :]


def taught(teacher: MoETransformer, distill: Mapping[str, Any]) -> Any:
    """Distillation on the digits alone, as `minimoe.training.RecallFacts` trains on them alone."""
    from minimoe.distill import Distillation, DistillRecipe

    class TaughtDigits(Distillation):
        name = "taught-digits"

        def changes(self, run, model, data, tokenizer):
            found = super().changes(run, model, data, tokenizer)
            return dataclasses.replace(found, objective=OnDigits(found.objective, data.letters))

    return TaughtDigits(DistillRecipe(**distill), teacher)


@dataclasses.dataclass(frozen=True)
class OnDigits:
    """An objective that sees the positions before a digit only."""

    objective: Any
    letters: int

    def __call__(self, output: Any, targets: Any, where: Any, extra: Any) -> Any:
        import jax.numpy as jnp

        asked = jnp.arange(targets.shape[1]) >= self.letters - 1
        return self.objective(output, targets, where & asked[None, :], extra)


def by_half(work: Workplace, model: MoETransformer, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``read`` and ``unread``: what the student recalls of the half that it read, and of the other."""
    from minimoe.training import evaluate_facts

    book = book_of(settings)
    middle = book.size // 2
    halves = {"read": book.part(0, middle), "unread": book.part(middle, book.size)}
    return {name: evaluate_facts(model, half).recalled for name, half in halves.items()}
