"""On-policy steps: the student writes a text, and the teacher judges every word of that text.

A student that reads only the teacher's text never sees what to do after a mistake of its own. In an on-policy step the
student writes below prompts, with its present weights. The target at each of these words is the teacher's whole
distribution. There is no reward and no policy gradient. The text depends on the student too, but no gradient goes through
the sampling.

A rollout depends on the student, the seed and the step only, so a resumed run writes the same text again. Its rows have
the usual length and are mostly padding: ``tokens`` in the metrics counts positions, padding included.

References:
  Agarwal et al., `On-Policy Distillation of Language Models <https://arxiv.org/abs/2306.13649>`_, algorithm 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jaxtyping import Bool

from minimoe.data import LEVELS, Batch, Document, Tokenizer, problem
from minimoe.data.tasks import DOMAIN
from minimoe.distill.recipe import DistillRecipe
from minimoe.errors import UserError
from minimoe.inference import continue_prompts
from minimoe.model import MoETransformer
from minimoe.training import RunConfig


def task_prompts(
    num: int, levels: Iterable[int] = LEVELS, split: str = "train", seed: int = 0, form: str = "worked"
) -> list[Document]:
    """The prompts of problems 0..num-1, levels in turn, to be continued: those of `minimoe.data.task_documents`.

    Example:
      >>> print(task_prompts(1, levels=[2])[0].text.splitlines()[-1])
      Steps:
    """
    levels = tuple(levels)
    if num < 1 or not levels:
        raise UserError(f"num={num} with levels={levels}: give at least one prompt and one level")
    made = [problem(index, levels[index % len(levels)], split, seed=seed) for index in range(num)]
    return [Document(DOMAIN, split, f"{one.key}/{form}", one.prompt(form)) for one in made]


def is_on_policy(seed: int, step: int, fraction: int | float) -> bool:
    """Whether a step trains on the student's own text. A share ``fraction`` of the steps does, drawn from ``seed``.

    Example:
      >>> sum(is_on_policy(0, step, 0.25) for step in range(100))
      22
    """
    return bool(np.random.default_rng([seed, step, 1]).random() < fraction)


@dataclasses.dataclass(frozen=True)
class Rollout(Batch):
    """A batch that the student wrote below prompts. ``where`` is True at real tokens, prompts included.

    Args:
      written: True where the target is a word that the student wrote. Not the same as ``where``: the prompt is no
        padding, and a model that takes it for padding gives it no experts.
    """

    written: Bool[np.ndarray, "B L"]


class Rollouts:
    """Batches of what a student writes below prompts.

    Args:
      prompts: documents whose text is to be continued; their domain says which of several teachers judges. Step n takes
        B of them, where step n - 1 stopped.
      tokenizer: the student's.
      run: batch size, seed and context. recipe: length and temperature of what is written.
      names: domains, to which `Batch.domains` refers.

    Raises:
      UserError: if there is no prompt, or one does not fit in the context with what is to be written.
    """

    def __init__(
        self,
        prompts: Sequence[Document],
        tokenizer: Tokenizer,
        run: RunConfig,
        recipe: DistillRecipe,
        names: tuple[str, ...],
    ) -> None:
        if not prompts:
            raise UserError("on-policy steps need prompts; pass some, such as minimoe.distill.task_prompts(1000)")
        self.run, self.recipe, self.eot_id = run, recipe, tokenizer.eot_id
        self.prompts = [
            [tokenizer.eot_id, *ids] for ids in tokenizer.encode_documents([prompt.text for prompt in prompts])
        ]
        self.domains = np.array([names.index(prompt.domain) for prompt in prompts], np.int32)
        longest = max(len(prompt) for prompt in self.prompts)
        self.size = longest + recipe.max_new_tokens
        if self.size > run.model.context_length:
            raise UserError(
                f"the longest prompt has {longest} tokens; with max_new_tokens={recipe.max_new_tokens} that is above "
                f"context_length={run.model.context_length}; lower max_new_tokens or shorten the prompts"
            )

    def batch(self, step: int, model: MoETransformer) -> Rollout:
        """B rows ``[EOT prompt continuation]``, padded to L."""
        count, length, seed = self.run.recipe.batch_size, self.run.model.context_length, self.run.recipe.seed
        chosen = [(step * count + row) % len(self.prompts) for row in range(count)]
        prompts = [self.prompts[index] for index in chosen]
        new = continue_prompts(
            model,
            prompts,
            self.recipe.max_new_tokens,
            stop_token=self.eot_id,
            temperature=self.recipe.sample_temperature,
            key=jax.random.fold_in(jax.random.key(seed), step),
            batch_size=count,
            size=self.size,
        )
        rows = np.full((count, length + 1), self.eot_id, np.int32)
        where, written = np.zeros((2, count, length), bool)
        for row, (prompt, words) in enumerate(zip(prompts, new, strict=True)):
            end = len(prompt) + len(words)
            rows[row, :end] = prompt + words
            where[row, :end] = True
            written[row, len(prompt) - 1 : end - 1] = True
        return Rollout(rows[:, :-1].copy(), rows[:, 1:].copy(), where, self.domains[chosen], written)
