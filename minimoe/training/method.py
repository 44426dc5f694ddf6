"""The method of training: what a step does differently from plain language-model training, as one value.

A `Method` has a name and settings, so it can be stored with a run and compared when the run goes on. This file holds
the plain method and the way to combine several. The others live with their ideas: `minimoe.distill.Distillation`,
`minimoe.quant.QuantizationAware`, `minimoe.quant.Fp8Products`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from minimoe.data import Batch, Tokenizer, TrainingData
from minimoe.errors import UserError
from minimoe.model import MoETransformer
from minimoe.training.step import Objective, TransformParams

if TYPE_CHECKING:
    from minimoe.training.run_folder import RunConfig

# (step, its batch, the model so far) -> the batch to train on, of the same shape. Steps count from 0.
BatchFor = Callable[[int, Batch, MoETransformer], Batch]
# (step, the batch to train on) -> the pytree of arrays that the objective gets as ``extra``.
ExtraFor = Callable[[int, Batch], Any]


@dataclasses.dataclass(frozen=True)
class StepChanges:
    """What a method changes in the steps of one run; None leaves that part as it is.

    Attributes:
      objective: what a step lowers instead of the language-model loss; see `minimoe.training.train_step`.
      transform_params: maps the parameters to those that the forward pass uses; see `minimoe.training.train_step`.
      batch_for: from (step, its batch, the model so far) to the batch to train on. What it draws must depend on these
        and the seed alone, so that a resumed run draws it again.
      extra_for: from (step, that batch) to what ``objective`` gets as ``extra``.
    """

    objective: Objective | None = None
    transform_params: TransformParams | None = None
    batch_for: BatchFor | None = None
    extra_for: ExtraFor | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """Plain training on the next token, and the base of all other methods.

    A method of your own is a frozen dataclass whose fields are its settings. It has a ``name`` and overrides `changes`,
    `prepare_model`, or both. Weights that it needs, such as a teacher's, are a field that `to_dict` describes by a
    fingerprint.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class HalvedWeights(Method):
      ...     name = "halved-weights"
      ...     factor: float = 0.5
      ...
      ...     def changes(self, run, model, data, tokenizer):
      ...         scale = lambda params: jax.tree.map(lambda p: p * self.factor, params)
      ...         return StepChanges(transform_params=scale)
      >>> HalvedWeights().to_dict()
      {'name': 'halved-weights', 'factor': 0.5}
    """

    name: ClassVar[str] = "language-model"

    def to_dict(self) -> dict[str, Any]:
        """The name and the settings as plain values, ready for JSON: what a resumed run must agree with."""
        return {"name": self.name, **dataclasses.asdict(self)}

    def prepare_model(self, model: MoETransformer) -> MoETransformer:
        """The model to train: the same one, or one with other modules whose parameters keep their paths."""
        return model

    def changes(self, run: RunConfig, model: MoETransformer, data: TrainingData, tokenizer: Tokenizer) -> StepChanges:
        """What the steps of this run do differently.

        Args:
          run: its model config and recipe. model: prepared, before the first step. data, tokenizer: of the run.

        Raises:
          UserError: if the method does not fit the run, such as a teacher with another vocabulary.
        """
        return StepChanges()


@dataclasses.dataclass(frozen=True, init=False)
class Combined(Method):
    """Several methods in one run, say distillation into a student whose weights are rounded.

    Each part of a step (objective, parameter transform, batch) may be changed by one of them only.

    Example:
      >>> Combined(Method(), Method()).to_dict()
      {'name': 'combined', 'methods': [{'name': 'language-model'}, {'name': 'language-model'}]}
    """

    name: ClassVar[str] = "combined"
    methods: tuple[Method, ...]

    def __init__(self, *methods: Method) -> None:
        object.__setattr__(self, "methods", methods)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "methods": [method.to_dict() for method in self.methods]}

    def prepare_model(self, model: MoETransformer) -> MoETransformer:
        for method in self.methods:
            model = method.prepare_model(model)
        return model

    def changes(self, run: RunConfig, model: MoETransformer, data: TrainingData, tokenizer: Tokenizer) -> StepChanges:
        found: dict[str, Any] = {}
        owner: dict[str, str] = {}
        for method in self.methods:
            for part, value in vars(method.changes(run, model, data, tokenizer)).items():
                if value is None:
                    continue
                if part in found:
                    both = f"{owner[part]!r} and {method.name!r}"
                    raise UserError(f"the methods {both} both change a step's {part}; leave one of them out")
                found[part], owner[part] = value, method.name
        return StepChanges(**found)
