"""Quality in right answers: a model solves reasoning problems that training could not show it, and is graded.

The answers are greedy, so the numbers are a function of the model alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from minimoe.data import LEVELS, Problem, StepCheck, Tokenizer, check_answer, check_steps, problem
from minimoe.errors import UserError
from minimoe.inference import continue_prompts
from minimoe.model import MoETransformer


@dataclasses.dataclass(frozen=True)
class TaskEvaluation:
    """What a model makes of reasoning problems; shares are in 0..1, by level.

    Attributes:
      exact_match: share of problems with exactly the right answer.
      step_validity: share of the written steps whose arithmetic holds, 0 if none is written.
      right_ways: share of problems whose steps all hold and lead to the answer.
      num: problems of each level. form: ``"worked"`` or ``"direct"``; direct answers have no steps.
    """

    exact_match: dict[int, float]
    step_validity: dict[int, float]
    right_ways: dict[int, float]
    num: int
    form: str

    @property
    def mean_exact_match(self) -> float:
        """Mean over levels."""
        return sum(self.exact_match.values()) / len(self.exact_match)

    def to_record(self) -> dict[str, object]:
        """Plain values, ready for JSON, with the mean."""
        return {"mean_exact_match": self.mean_exact_match} | dataclasses.asdict(self)


def evaluate_tasks(
    model: MoETransformer,
    tokenizer: Tokenizer,
    *,
    levels: Iterable[int] = LEVELS,
    split: str = "val",
    num: int = 50,
    form: str = "worked",
    seed: int = 0,
    max_new_tokens: int = 96,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> TaskEvaluation:
    """Lets a model answer problems 0..num-1 of each level and grades the answers.

    Args:
      model, tokenizer: that belong together.
      levels, split, form, seed: as for `minimoe.data.problem`; ``"val"`` problems hold combinations kept from training.
      num: problems a level; with 50, one answer more is 0.02.
      max_new_tokens: an answer that needs more counts as wrong.
      batch_size: problems at a time. progress: called with (problems done, problems in all) after each batch.

    Raises:
      UserError: for unknown values, no level, or a model whose context is too short.
    """
    levels = tuple(levels)
    if not levels or num < 1:
        raise UserError(f"levels={levels} with num={num}: give at least one level and one problem of each")
    asked = [problem(index, level, split, seed=seed) for level in levels for index in range(num)]
    prompts = [[tokenizer.eot_id, *tokenizer.encode(one.prompt(form))] for one in asked]
    answers = continue_prompts(
        model,
        prompts,
        max_new_tokens,
        stop_token=tokenizer.eot_id,
        temperature=0,
        batch_size=batch_size,
        progress=progress,
    )
    stripped = [[token for token in answer if token != tokenizer.eot_id] for answer in answers]
    texts = [one.prompt(form) + tokenizer.decode(answer) for one, answer in zip(asked, stripped, strict=True)]
    return grade(asked, texts, form)


def grade(problems: list[Problem], texts: list[str], form: str) -> TaskEvaluation:
    """Grades one text a problem, prompt included; every level must have as many problems as the others.

    Example:
      >>> from minimoe.data import problem
      >>> asked = [problem(0, level=1), problem(0, level=2)]
      >>> grade(asked, [asked[0].text(), "A: 1000"], "worked").exact_match
      {1: 1.0, 2: 0.0}
    """
    right: dict[int, list[bool]] = {}
    steps: dict[int, list[StepCheck]] = {}
    for one, text in zip(problems, texts, strict=True):
        right.setdefault(one.level, []).append(check_answer(one, text))
        steps.setdefault(one.level, []).append(check_steps(one, text))
    written = {level: sum(check.num_steps for check in checks) for level, checks in steps.items()}
    valid = {level: sum(check.num_valid for check in checks) for level, checks in steps.items()}
    return TaskEvaluation(
        exact_match={level: sum(each) / len(each) for level, each in right.items()},
        step_validity={level: valid[level] / max(written[level], 1) for level in steps},
        right_ways={level: sum(check.correct for check in each) / len(each) for level, each in steps.items()},
        num=len(problems) // len(right),
        form=form,
    )
