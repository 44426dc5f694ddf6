"""Quantized modules as plain values, both ways: what config.json says of them, and the modules it says it of.

A description holds everything but the arrays: which module stands where, how its matrices are stored (`Spec`), and
their logical shapes. From it `install` puts modules with arrays of the right shape and dtype into a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from minimoe.config import from_fields
from minimoe.errors import UserError
from minimoe.model import MoETransformer
from minimoe.model.paths import path_name
from minimoe.moe import Experts
from minimoe.quant.layers import QuantEmbed, QuantExperts, QuantLinear
from minimoe.quant.recipes import RECIPES, QuantRecipe
from minimoe.quant.report import STORED
from minimoe.quant.specs import Block, Group, PerChannel, PerTensor, PerToken, Spec, Tile
from minimoe.quant.tensor import QTensor, quantize

MODULES: dict[str, type[Any]] = {"linear": QuantLinear, "embed": QuantEmbed, "experts": QuantExperts}
FLOAT_MODULES: dict[str, type[Any]] = {"linear": nnx.Linear, "embed": nnx.Embed, "experts": Experts}
GRANULARITIES: dict[str, type[Any]] = {
    "per_tensor": PerTensor,
    "per_channel": PerChannel,
    "per_token": PerToken,
    "tile": Tile,
    "group": Group,
    "block": Block,
}


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """One quantized matrix.

    Attributes:
      shape: logical, ``[O, I]`` or ``[E, O, I]``.
      spec: how it is stored.
      bits: in all, with scales and zero points; for the reader, since shape and spec decide it.
    """

    shape: tuple[int, ...]
    spec: Spec
    bits: int

    @classmethod
    def of(cls, q: QTensor) -> StoredArray:
        return cls(q.shape, q.spec, q.bits)

    def to_dict(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "spec": spec_to_dict(self.spec), "bits": self.bits}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StoredArray:
        shape = tuple(values["shape"])
        if len(shape) not in (2, 3) or not all(type(n) is int and 0 < n < 2**40 for n in shape):
            raise UserError(f"shape {list(shape)} is not two or three sizes of at least 1; save the model again")
        return cls(shape, spec_from_dict(values["spec"]), values["bits"])

    def blank(self) -> QTensor:
        """Zeros stored so. Call it where nothing is computed, under `nnx.eval_shape`."""
        return quantize(jnp.zeros(self.shape), self.spec)


@dataclasses.dataclass(frozen=True)
class QuantizedModule:
    """One module that computes with quantized matrices.

    Attributes:
      module: a name in `MODULES`.
      arrays: its matrices by attribute.
      activations: how its inputs are quantized, None for not at all.
    """

    module: str
    arrays: Mapping[str, StoredArray]
    activations: Spec | None

    def to_dict(self) -> dict[str, Any]:
        arrays = {name: array.to_dict() for name, array in self.arrays.items()}
        activations = None if self.activations is None else spec_to_dict(self.activations)
        return {"module": self.module, "arrays": arrays, "activations": activations}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantizedModule:
        if values["module"] not in MODULES:
            raise UserError(f"module {values['module']!r} is not known; it is one of {', '.join(MODULES)}")
        arrays = {name: StoredArray.from_dict(array) for name, array in values["arrays"].items()}
        activations = values["activations"]
        return cls(values["module"], arrays, None if activations is None else spec_from_dict(activations))


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How a whole model is quantized: the recipe's name, and its modules by path."""

    recipe: str
    modules: Mapping[str, QuantizedModule]

    def __hash__(self) -> int:
        return hash((self.recipe, *sorted(self.modules)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"recipe": self.recipe, "modules": {path: m.to_dict() for path, m in self.modules.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Quantization:
        """The inverse of `to_dict`."""
        modules = {path: QuantizedModule.from_dict(m) for path, m in values["modules"].items()}
        return cls(str(values["recipe"]), modules)


def spec_to_dict(spec: Spec) -> dict[str, Any]:
    """Plain values, ready for JSON; the granularity with its sizes.

    Example:
      >>> spec_to_dict(Spec("int4", Group(32)))["granularity"]
      {'kind': 'group', 'size': 32}
    """
    kind = next(name for name, granularity in GRANULARITIES.items() if type(spec.granularity) is granularity)
    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    return values | {"granularity": {"kind": kind} | dataclasses.asdict(spec.granularity)}


def spec_from_dict(values: Mapping[str, Any]) -> Spec:
    """The inverse of `spec_to_dict`.

    Raises:
      UserError: for unknown names and impossible sizes.
    """
    sizes = dict(values["granularity"])
    kind = sizes.pop("kind")
    if kind not in GRANULARITIES:
        raise UserError(f"granularity {kind!r} is not known; it is one of {', '.join(GRANULARITIES)}")
    return from_fields(Spec, dict(values) | {"granularity": from_fields(GRANULARITIES[kind], sizes)})


def describe(model: MoETransformer) -> Quantization | None:
    """What is quantized in a model, and how; None for a float model."""
    modules = {}
    found: list[tuple[Any, Any]] = list(nnx.iter_modules(model))
    for path, module in found:
        kind = next((name for name, cls in MODULES.items() if isinstance(module, cls)), None)
        if kind is not None:
            arrays = {name: StoredArray.of(q) for name, q in sorted(vars(module).items()) if isinstance(q, QTensor)}
            modules[path_name(path)] = QuantizedModule(kind, arrays, module.activations)
    modules = dict(sorted(modules.items()))
    return Quantization(_recipe_name(model, modules), modules) if modules else None


def _recipe_name(model: MoETransformer, modules: Mapping[str, QuantizedModule]) -> str:
    """The first recipe whose rules give just these modules, or "custom": it is read off the model, not remembered."""
    kept = [path_name(path) for path, m in nnx.iter_modules(model) if isinstance(m, tuple(FLOAT_MODULES.values()))]
    paths = [*modules, *kept]
    narrow = any(STORED in leaf.get_metadata() for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)))
    for recipe in RECIPES.values():
        if narrow == (recipe.rest is not None) and all(_follows(recipe, path, modules.get(path)) for path in paths):
            return recipe.name
    return "custom"


def _follows(recipe: QuantRecipe, path: str, module: QuantizedModule | None) -> bool:
    rule = recipe.rule_for(path)
    if rule is None or rule.weight is None or module is None:
        return module is None and (rule is None or rule.weight is None)
    same = all(array.spec == rule.weight for array in module.arrays.values())
    return same and module.activations == rule.activations


def install(quantization: Quantization, model: MoETransformer) -> MoETransformer:
    """Puts quantized modules of zeros in the places of float ones, in ``model`` itself.

    Raises:
      UserError: if the model has no such place, or another kind or size of module there.
    """
    places: dict[str, Any] = {path_name(path): module for path, module in nnx.iter_modules(model)}
    for name, described in quantization.modules.items():
        module = places.get(name)
        wanted = {} if module is None else _stored_shapes(module)
        found = {array: stored.shape for array, stored in described.arrays.items()}
        if not wanted or found != wanted or not isinstance(module, FLOAT_MODULES[described.module]):
            what = f"a quantized {described.module} of {found} at {name}"
            raise UserError(f"{what}, where the model config has {wanted or 'nothing of the kind'}; save it again")
        arrays = {array: stored.blank() for array, stored in described.arrays.items()}
        dtype = "float32" if module.dtype is None else jnp.dtype(module.dtype).name
        limit = {"limit": module.limit} if isinstance(module, Experts) else {}
        new = MODULES[described.module](**arrays, activations=described.activations, dtype=dtype, **limit)
        parent, _, attribute = name.rpartition(".")
        setattr(places[parent], attribute, new)  # the model's own name is ""
    return model


def _stored_shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Logical shapes of the quantized form of a float module, contraction axis last; empty if it has none."""
    if isinstance(module, nnx.Linear):
        return {"weight": module.kernel.shape[::-1]}
    if isinstance(module, nnx.Embed):
        return {"weight": module.embedding.shape}
    if isinstance(module, Experts):
        stacks = {"gate_up": module.gate_up_proj.shape, "down": module.down_proj.shape}
        return {name: (e, o, i) for name, (e, i, o) in stacks.items()}
    return {}
