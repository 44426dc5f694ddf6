"""The settings of distillation: temperature, share of the teacher, kind of divergence, and the rest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from minimoe.checks import choice_fields, number_fields, whole_fields
from minimoe.config import from_fields
from minimoe.errors import UserError

DIVERGENCE_NAMES = ("forward_kl", "reverse_kl", "jsd", "hinton")
COLDEST, HOTTEST = 1e-3, 1e3  # temperatures; logits divided by 1e-30 leave no finite loss
_FROM_TOP_K = ("forward_kl", "hinton")  # the others need the teacher's probability of every word the student uses


@dataclasses.dataclass(frozen=True)
class DistillRecipe:
    """One way to learn from a teacher: on text, ``(1 - alpha) * cross-entropy + alpha * divergence``.

    Args:
      divergence: ``"forward_kl"``, ``"reverse_kl"``, ``"jsd"`` (at 0.5), or ``"hinton"``: forward KL times
        temperature**2. See `minimoe.distill.losses`.
      temperature: T in [0.001, 1000], divides the logits of both in the divergence.
      alpha: weight of the teacher, 0..1. At 0 the teacher is not used.
      top_k: keep the teacher's k best words and the mass of all others; None for the whole vocabulary. Only with
        forward KL and hinton, and not with on-policy steps.
      on_policy_fraction: share of the steps, 0..1, that train on text the student writes itself, below prompts.
      on_policy_divergence: the loss of these steps, over the whole vocabulary. Their text has no right answer, so
        cross-entropy and alpha do not apply.
      max_new_tokens: the number of tokens that the student writes below a prompt.
      sample_temperature: the temperature of that sampling, above 0.

    Raises:
      UserError: for an impossible value, naming it and the repair.

    Example:
      >>> DistillRecipe(divergence="hinton", temperature=2.0, alpha=0.5).needs_teacher
      True

    References:
      Hinton et al., `Distilling the Knowledge in a Neural Network <https://arxiv.org/abs/1503.02531>`_;
      Agarwal et al., `On-Policy Distillation <https://arxiv.org/abs/2306.13649>`_, whose lambda is
      ``on_policy_fraction``.
    """

    divergence: str = "forward_kl"
    temperature: int | float = 1.0
    alpha: int | float = 0.9
    top_k: int | None = None
    on_policy_fraction: int | float = 0.0
    on_policy_divergence: str = "reverse_kl"
    max_new_tokens: int = 96
    sample_temperature: int | float = 1.0

    def __post_init__(self) -> None:
        choice_fields(self, "divergence", "on_policy_divergence", choices=DIVERGENCE_NAMES)
        hint = "1 leaves the logits alone"
        number_fields(self, "temperature", low=COLDEST, high=HOTTEST, ends="[]", hint=hint)
        number_fields(self, "sample_temperature", low=0, high=math.inf, ends="()", hint=hint)
        number_fields(self, "alpha", "on_policy_fraction", low=0, high=1, ends="[]", hint="0 is none, 1 is all")
        whole_fields(self, "max_new_tokens", hint="96 is enough for a worked problem")
        if self.top_k is not None:
            whole_fields(self, "top_k", hint="32 is a fair start, None keeps every word")
            self._check_top_k()

    def check_vocabulary(self, size: int) -> None:
        """Refuses a ``top_k`` above the number of ids.

        Raises:
          UserError: naming both.
        """
        if self.top_k is not None and self.top_k > size:
            raise UserError(f"top_k={self.top_k} must be in 1..{size}, the vocabulary; 32 is a fair start")

    def _check_top_k(self) -> None:
        said = f"DistillRecipe: top_k={self.top_k} goes"
        if self.divergence not in _FROM_TOP_K:
            raise UserError(f"{said} with {' or '.join(_FROM_TOP_K)}, not {self.divergence}; leave it out")
        if self.on_policy_fraction:
            raise UserError(f"{said} not with on-policy steps, which need every word; leave one of them out")

    @property
    def needs_teacher(self) -> bool:
        """Whether any step uses a teacher. If not, this is plain training."""
        return self.alpha > 0 or self.on_policy_fraction > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DistillRecipe:
        """The inverse of `to_dict`; unknown and missing keys are errors."""
        return from_fields(cls, values)
