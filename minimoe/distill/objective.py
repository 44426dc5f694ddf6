"""The objective of distillation, in the form that `minimoe.training.train_step` takes.

Axes: B batch, L sequence, V vocabulary, k cached words.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minimoe.distill.losses import DIVERGENCES, topk_kl
from minimoe.distill.recipe import DistillRecipe
from minimoe.model import ModelOutput
from minimoe.training import lm_loss


class Targets(NamedTuple):  # a dataclass would be checked on its way through nnx.jit, which empties its leaves
    """The arrays that the objective needs in addition to the batch.

    Attributes:
      teacher: its logits ``[B, L, V]``; or values, ids ``[B, L, k]`` and tail ``[B, L]`` of its k best words, as in
        `TopK`.
      rows: weight of each row in the divergence, 1 unless some teachers count more than others.
      on_policy: whether the student wrote this batch.
      counted: True where the target counts: on own text where the student wrote it, else at every real position.
    """

    teacher: Array | tuple[Array, Array, Array]
    rows: Float[Array, "B"]
    on_policy: Bool[Array, ""]
    counted: Bool[Array, "B L"]


@dataclasses.dataclass(frozen=True)
class DistillObjective:
    """``(output, targets, where, extra) -> loss`` for one recipe, in nats per token. Equal recipes compare equal.

    On text: ``(1 - alpha) * cross-entropy + alpha * divergence``, each a mean over real positions. On what the student
    wrote: the divergence alone. One compiled step serves both, since only the branch that is taken is run.

    Example:
      >>> objective, logits = DistillObjective(DistillRecipe(alpha=1.0)), jnp.zeros((1, 2, 5))
      >>> extra = Targets(logits, jnp.ones(1), jnp.array(False), jnp.ones((1, 2), bool))
      >>> print(objective(ModelOutput(logits, jnp.zeros((1, 2, 1)), ()), jnp.zeros((1, 2), jnp.int32), extra.counted, extra))
      0.0
    """

    recipe: DistillRecipe

    def __call__(
        self,
        output: ModelOutput,
        targets: Int[Array, "B L"],
        where: Bool[Array, "B L"],
        extra: Targets,
    ) -> Float[Array, ""]:
        logits = output.logits
        if not self.recipe.on_policy_fraction:
            return self._on_text(logits, targets, where, extra)
        return jax.lax.cond(extra.on_policy, self._on_own_text, self._on_text, logits, targets, where, extra)

    def _on_text(self, logits, targets, where, extra):
        alpha = self.recipe.alpha
        if alpha == 0:
            return lm_loss(logits, targets, where)
        soft = self._divergence(self.recipe.divergence, logits, extra)
        return soft if alpha == 1 else (1 - alpha) * lm_loss(logits, targets, where) + alpha * soft

    def _on_own_text(self, logits, targets, where, extra):
        return self._divergence(self.recipe.on_policy_divergence, logits, extra)

    def _divergence(self, name: str, logits, extra: Targets) -> Float[Array, ""]:
        temperature, teacher, where = self.recipe.temperature, extra.teacher, extra.counted
        if isinstance(teacher, tuple):
            values, ids, tail = teacher
            losses = topk_kl(logits, values, ids, tail, temperature=temperature, where=where)
        else:
            divergence = DIVERGENCES["forward_kl" if name == "hinton" else name]
            losses = divergence(logits, teacher, temperature=temperature, where=where)
        weights = jnp.where(where, extra.rows[:, None], 0.0)
        mean = jnp.sum(losses * weights) / jnp.maximum(weights.sum(), 1e-9)
        return mean * temperature**2 if name == "hinton" else mean
