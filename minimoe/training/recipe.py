"""How to train: the numbers that, with a model config, data and a seed, decide a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from minimoe.checks import LARGEST_SEED, choice_fields, number_fields, whole_fields
from minimoe.config import from_fields
from minimoe.errors import UserError

OPTIMIZERS = ("adamw", "muon")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One training run.

    Args:
      steps: optimiser steps in all; the learning rate decays to its end over exactly these.
      batch_size: B sequences a step, each as long as the model's context.
      seed: decides initial weights, order of data, dropout and routing noise; 0..2**32-1.
      learning_rate: peak, after ``warmup_steps`` of linear warm-up; then a cosine down to ``final_fraction`` of it.
      optimizer: "adamw", or "muon" for all matrices but embedding and head, see `minimoe.training.muon`.
      weight_decay: decoupled, on matrices only. beta1, beta2: AdamW. clip_norm: of the global gradient norm.
      router_bias_rate: first step of loss-free balancing, in units of affinity; it follows a cosine down to
        ``final_fraction`` of itself. 0 switches it off.
      balance_weight: times the load-balance loss, mean over layers. z_weight: times the router z-loss.
      sequence_balance_weight: times the load-balance loss within single sequences; DeepSeek-V3 uses 1e-4.
      mtp_weight: times the loss of the head for multi-token prediction, in a model that has one.
      log_every, eval_every, checkpoint_every: in steps; 0 evaluates (or saves) at the end only.

    Raises:
      UserError: for an impossible value, naming it and the repair.
    """

    steps: int = 1000
    batch_size: int = 16
    seed: int = 0
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    final_fraction: float = 0.05
    optimizer: str = "adamw"
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0
    router_bias_rate: float = 0.001
    balance_weight: float = 0.0
    z_weight: float = 0.0
    sequence_balance_weight: float = 0.0
    mtp_weight: float = 0.3
    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        whole_fields(self, "steps", "batch_size", "log_every")
        whole_fields(self, "warmup_steps", "eval_every", "checkpoint_every", least=0, hint="use 0 for none")
        choice_fields(self, "optimizer", choices=OPTIMIZERS)
        whole_fields(self, "seed", least=0, most=LARGEST_SEED, hint="use 0 if in doubt")
        number_fields(self, "learning_rate", low=0, high=math.inf, ends="()", hint="0.003 suits small models")
        number_fields(self, "clip_norm", low=0, high=math.inf, ends="()", hint="1.0 is usual")
        hint = "0.05 is usual, 1 keeps the rate constant"
        number_fields(self, "final_fraction", low=0, high=1, ends="[]", hint=hint)
        number_fields(self, "beta1", "beta2", low=0, high=1, hint="0.9 and 0.95 are usual")
        switches = (
            "weight_decay",
            "router_bias_rate",
            "balance_weight",
            "z_weight",
            "sequence_balance_weight",
            "mtp_weight",
        )
        number_fields(self, *switches, low=0, high=math.inf, hint="0 switches it off")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Recipe:
        """The recipe that goes with a model preset, some fields changed."""
        if name not in RECIPES:
            raise UserError(f"recipe {name!r} is not known; choose one of {', '.join(RECIPES)}")
        return dataclasses.replace(RECIPES[name], **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`; unknown and missing keys are errors."""
        return from_fields(cls, values)


# Ways to keep experts in work, as changes to a recipe. 0.02 is the presets' rate of the bias: the papers' 0.001 is too
# slow for runs of hundreds of steps.
BALANCE_METHODS: dict[str, dict[str, int | float]] = {
    "none": {"router_bias_rate": 0.0},
    "switch": {"router_bias_rate": 0.0, "balance_weight": 0.01},
    "sequence": {"router_bias_rate": 0.0, "sequence_balance_weight": 0.01},
    "loss-free": {"router_bias_rate": 0.02},
    "loss-free+sequence": {"router_bias_rate": 0.02, "sequence_balance_weight": 1e-4},
}

RECIPES: dict[str, Recipe] = {
    "nano": Recipe(steps=800, batch_size=8, learning_rate=4e-3, warmup_steps=50, router_bias_rate=0.02),
    # An hour on two cores.
    "small": Recipe(
        steps=6500, batch_size=8, learning_rate=2.5e-3, warmup_steps=200, router_bias_rate=0.02, eval_every=1000
    ),
}
# The same steps and rates, so that the models differ in their parts alone.
RECIPES |= {f"v4-{name}": recipe for name, recipe in RECIPES.items()}
