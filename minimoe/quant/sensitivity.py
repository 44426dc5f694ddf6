"""Which tensors suffer from rounding, and which experts from too little calibration text.

Both are experiments that return records: numbers with their conditions, ready for JSON and for a figure.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flax import nnx

from minimoe.data import Document, Tokenizer
from minimoe.errors import UserError
from minimoe.model import MoETransformer
from minimoe.model.paths import path_name
from minimoe.moe import MoELayer, Router
from minimoe.quant.calibrate import Calibration
from minimoe.quant.gptq import DAMPING, gptq_experts, output_error, output_first
from minimoe.quant.models import QUANTIZED, QuantRecipe, get_recipe, quantize_model, replace_module
from minimoe.quant.specs import Spec
from minimoe.quant.tensor import quantize
from minimoe.training import evaluate


def tensor_group(path: str) -> str:
    """A module's path without its last part if that is one of several projections.

    Example:
      >>> [tensor_group(p) for p in ("embed", "layers.0.attention.q_proj", "layers.0.ffn.experts")]
      ['embed', 'layers.0.attention', 'layers.0.ffn.experts']
    """
    return re.sub(r"\.[^.]*_proj$", "", path)


def kind_group(path: str) -> str:
    """`tensor_group`, all layers together.

    Example:
      >>> kind_group("layers.3.ffn.shared.down_proj")
      'layers.*.ffn.shared'
    """
    return re.sub(r"^layers\.\d+\.", "layers.*.", tensor_group(path))


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Bits per byte with parts of a model quantized; smaller is better.

    Attributes:
      recipe: its name.
      float_bits_per_byte: nothing quantized. all_bits_per_byte: everything the recipe names.
      bits_per_byte: by group, with that group alone quantized.
    """

    recipe: str
    float_bits_per_byte: float
    all_bits_per_byte: float
    bits_per_byte: dict[str, float]

    @property
    def loss(self) -> dict[str, float]:
        """What each group alone costs, in bits per byte. The costs need not add up to that of all of them."""
        return {group: value - self.float_bits_per_byte for group, value in self.bits_per_byte.items()}

    def to_record(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


def quantized_groups(
    model: MoETransformer, recipe: str | QuantRecipe, group: Callable[[str], str] = kind_group
) -> Iterable[tuple[str, MoETransformer]]:
    """For each group of modules that the recipe decides about, the model with that group alone quantized.

    Args:
      model: float; not changed.
      recipe: also its rounded activations count. What it does to ``rest`` is left out.
      group: from a module's path to the name of its group, e.g. `kind_group` or `tensor_group`.

    Yields:
      Name and model, groups in the order of the model's paths.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    groups: dict[str, list[tuple[tuple[Any, ...], nnx.Module]]] = {}
    for path, module in nnx.iter_modules(quantize_model(model, recipe)):
        name = path_name(path)
        rule = recipe.rule_for(name)
        if isinstance(module, (*QUANTIZED, Router)) and rule is not None and rule.weight is not None:
            groups.setdefault(group(name), []).append((path, module))
    for name, members in sorted(groups.items()):
        mixed = nnx.clone(model)
        for path, module in members:
            replace_module(mixed, path, module)
        yield name, mixed


def layer_sensitivity(
    model: MoETransformer,
    recipe: str | QuantRecipe,
    documents: list[Document],
    tokenizer: Tokenizer,
    *,
    group: Callable[[str], str] = kind_group,
    progress: Callable[[str, float], None] | None = None,
) -> Sensitivity:
    """Bits per byte when only one group of tensors is quantized at a time.

    Each group is a model of its own, which is compiled and evaluated: two passes over the text and one more a group.

    Args:
      model: float; not changed.
      recipe: which tensors, and to what.
      documents: to score, e.g. ``evaluation_documents(documents(), "quick")``.
      tokenizer: the model's.
      group: how finely to look, see `quantized_groups`.
      progress: called with each group and its bits per byte.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe

    def score(name: str, candidate: MoETransformer) -> float:
        value = evaluate(candidate, documents, tokenizer).bits_per_byte
        if progress is not None:
            progress(name, value)
        return value

    return Sensitivity(
        recipe=recipe.name,
        float_bits_per_byte=score("float", model),
        all_bits_per_byte=score("all", quantize_model(model, recipe)),
        bits_per_byte={name: score(name, mixed) for name, mixed in quantized_groups(model, recipe, group)},
    )


@dataclasses.dataclass(frozen=True)
class ExpertError:
    """One matrix of one expert, rounded after one amount of calibration.

    Errors are relative, ``||X (W - Wq)^T|| / ||X W^T||``, on held-out rows unless said otherwise; NaN where no held-out
    row reached the expert.

    Attributes:
      matrix: its path. expert: its id.
      tokens: calibration tokens in all. rows: how many of them reached this expert.
      plain: rounded to nearest; it does not depend on calibration.
      gptq: GPTQ with nothing but the expert's own rows, however few.
      shrunk: GPTQ with a share of everybody's tokens mixed in.
      gptq_seen: GPTQ's error on the calibration rows themselves; far below ``gptq`` means that it has learnt them by
        heart.
    """

    matrix: str
    expert: int
    tokens: int
    rows: int
    plain: float
    gptq: float
    shrunk: float
    gptq_seen: float

    def to_record(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


def expert_calibration_experiment(
    model: MoETransformer,
    calibrations: Sequence[Calibration],
    held_out: Calibration,
    spec: Spec,
    *,
    shrinkage: int | float = 0.05,
    damping: int | float = DAMPING,
    layers: Sequence[int] | None = None,
) -> list[ExpertError]:
    """How much calibration text an expert needs before GPTQ beats rounding to nearest on text it has not seen.

    Args:
      model: float.
      calibrations: of it, on more and more text.
      held_out: the same statistics of other text; the errors are measured with them, no row needs to be kept.
      spec: of the experts.
      shrinkage: for the mixed variant, see `minimoe.quant.gptq.gptq_experts`.
      damping: of both variants.
      layers: which, None for all.

    Returns:
      One record for each calibration, matrix and expert.

    Raises:
      UserError: for a dense model.
    """
    if model.config.moe is None:
        raise UserError("the model is dense (moe=None), and this experiment is about experts; use a sparse model")
    records = []
    for calibration in calibrations:
        for i in range(len(model.layers)) if layers is None else layers:
            layer = model.layers[i].ffn
            assert isinstance(layer, MoELayer)  # the model is sparse
            for name, weight in zip(("gate_up_proj", "down_proj"), output_first(layer.experts), strict=True):
                path = f"layers.{i}.ffn.experts.{name}"
                seen, new = calibration[path], held_out[path].moment
                plain = quantize(weight, spec)
                own = gptq_experts(weight, seen, spec, min_rows=0, damping=damping)
                mixed = gptq_experts(weight, seen, spec, min_rows=0, shrinkage=shrinkage, damping=damping)
                errors = [output_error(weight, q, new) for q in (plain, own, mixed)]
                errors.append(output_error(weight, own, seen.moment))
                for expert, (rows, *values) in enumerate(zip(seen.rows, *errors, strict=True)):
                    records.append(ExpertError(path, expert, calibration.tokens, int(rows), *map(float, values)))
    return records
