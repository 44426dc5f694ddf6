"""Quantization as a method of training: rounded weights in the forward pass, or products of 8-bit numbers."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from minimoe.data import Tokenizer, TrainingData
from minimoe.model import MoETransformer, without_arrays
from minimoe.quant.fp8_training import with_fp8_training
from minimoe.quant.qat import qat_transform
from minimoe.quant.recipes import QuantRecipe
from minimoe.training import Method, RunConfig, StepChanges


@dataclasses.dataclass(frozen=True)
class QuantizationAware(Method):
    """The forward pass of a step sees weights rounded as ``recipe`` says, and the optimiser moves the exact ones.

    Evaluations and checkpoints are of the exact weights; see `minimoe.quant.qat_transform`.

    Args:
      recipe: a name in `minimoe.quant.RECIPES`, or your own.

    Example:
      >>> QuantizationAware("mxfp4").to_dict()
      {'name': 'quantization-aware', 'recipe': 'mxfp4'}
    """

    name: ClassVar[str] = "quantization-aware"
    recipe: str | QuantRecipe

    def to_dict(self) -> dict[str, Any]:
        """The name of the recipe, or all that is in it."""
        return {"name": self.name, "recipe": self.recipe if isinstance(self.recipe, str) else repr(self.recipe)}

    def changes(self, run: RunConfig, model: MoETransformer, data: TrainingData, tokenizer: Tokenizer) -> StepChanges:
        """The rounding of the parameters, which have the paths of the plain model whatever modules hold them."""
        return StepChanges(transform_params=qat_transform(without_arrays(run.model), self.recipe))


@dataclasses.dataclass(frozen=True)
class Fp8Products(Method):
    """Attention and feed-forward layers multiply 8-bit numbers, as in `minimoe.quant.with_fp8_training`.

    The model is evaluated with these products too. Its parameters are those of the plain model, and so are checkpoints.
    """

    name: ClassVar[str] = "fp8-products"

    def prepare_model(self, model: MoETransformer) -> MoETransformer:
        """The same parameters in modules that multiply 8-bit numbers."""
        return with_fp8_training(model)
