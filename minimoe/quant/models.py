"""Quantizing a whole model: a float model and a recipe go in, the same model with quantized modules comes out.

Recipes themselves are in `minimoe.quant.recipes`, the modules in `minimoe.quant.layers`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from minimoe.errors import UserError
from minimoe.model import MoETransformer, copy_model
from minimoe.model.paths import path_name
from minimoe.moe import Experts, Router
from minimoe.quant.layers import QuantEmbed, QuantExperts, QuantLinear
from minimoe.quant.recipes import RECIPES, QuantRecipe, Rule, get_recipe
from minimoe.quant.report import STORED, SizeReport, SizeRow, routing_changes, size_report
from minimoe.quant.specs import Spec
from minimoe.quant.tensor import QTensor, quantize

__all__ = [
    "RECIPES",
    "QuantRecipe",
    "Rule",
    "SizeReport",
    "SizeRow",
    "get_recipe",
    "quantize_model",
    "routing_changes",
    "size_report",
]

QUANTIZED = (QuantEmbed, QuantExperts, QuantLinear)


def quantize_model(model: MoETransformer, recipe: str | QuantRecipe) -> MoETransformer:
    """A copy of a float model, its modules replaced as the recipe says.

    The copy is a `MoETransformer` like any other: it can be called, compiled and given to `minimoe.generate`. Norms are
    not touched. A router that a rule names stays a `Router`, with its kernel rounded and turned back into floats: the
    error of a quantized router without a module for it, since no recipe that works has one.

    Args:
      model: float; not changed.
      recipe: a name in `RECIPES`, or your own `QuantRecipe`.

    Raises:
      UserError: for an unknown recipe; for a rule that decides about no module (unless optional); for a weight with NaN
        or infinity, naming it; for a model that is quantized already.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> small = quantize_model(model, "mxfp4")
      >>> small.layers[0].ffn.experts.down.spec.format, round(size_report(small).over_bfloat16, 2)
      ('fp4_e2m1', 0.78)
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    copy = nnx.clone(model)
    modules = [(path, module) for path, module in nnx.iter_modules(copy) if isinstance(module, QUANTIZABLE)]
    if any(isinstance(module, QUANTIZED) for _, module in nnx.iter_modules(copy)):
        raise UserError("the model is quantized already; start from the float model")
    check_rules(recipe, [path_name(path) for path, _ in modules])
    for path, module in modules:
        rule = recipe.rule_for(path_name(path))
        if rule is not None and rule.weight is not None:
            replace_module(copy, path, _quantized(path_name(path), module, rule.weight, rule.activations))
    if recipe.rest is not None:
        _round_rest(copy, {id(module) for path, module in modules if _is_quantized(recipe, path)}, recipe.rest)
    return copy_model(copy)  # what no rule took is shared with the original until here


QUANTIZABLE = (nnx.Linear, nnx.Embed, Experts, Router)


def _is_quantized(recipe: QuantRecipe, path: tuple[Any, ...]) -> bool:
    rule = recipe.rule_for(path_name(path))
    return rule is not None and rule.weight is not None


def check_rules(recipe: QuantRecipe, paths: list[str]) -> None:
    """Every rule that is not optional decides about at least one path."""
    used = {id(recipe.rule_for(path)) for path in paths}
    for index, rule in enumerate(recipe.rules):
        if rule.optional or id(rule) in used:
            continue
        name = f"rule {index + 1} of recipe {recipe.name!r}, pattern {rule.pattern!r},"
        if any(rule.matches(path) for path in paths):
            raise UserError(f"{name} matches only what rules before it have taken; move it up or drop it")
        raise UserError(
            f"{name} matches nothing in this model, whose paths are like {', '.join(_samples(paths))}; correct the "
            "pattern, or pass optional=True if the part may be missing"
        )


def _samples(paths: list[str]) -> list[str]:
    """The first layer's paths and those outside the layers."""
    return [path for path in paths if not path.startswith("layers.") or path.startswith("layers.0.")]


def _quantized(name: str, module: nnx.Module, weight: Spec, activations: Spec | None) -> nnx.Module:
    """The module that takes the place of ``module``."""
    if isinstance(module, Router):
        if activations is not None:
            raise UserError(f"{name}: the router reads float32; give its rule activations=None")
        rounded = _quantize(f"{name}.kernel", module.kernel[...].T, weight).dequantize()
        module.kernel[...] = rounded.T
        return module
    if isinstance(module, Experts):
        gate_up = _quantize(f"{name}.gate_up_proj", jnp.swapaxes(module.gate_up_proj[...], 1, 2), weight)
        down = _quantize(f"{name}.down_proj", jnp.swapaxes(module.down_proj[...], 1, 2), weight)
        return QuantExperts(gate_up, down, activations=activations, limit=module.limit, dtype=module.dtype)
    if isinstance(module, nnx.Embed):
        matrix = _quantize(f"{name}.embedding", module.embedding[...], weight)
        return QuantEmbed(matrix, activations=activations, dtype=_dtype_name(module.dtype))
    assert isinstance(module, nnx.Linear)
    if module.bias is not None:
        raise UserError(f"{name} has a bias, for which QuantLinear has no place; build it with use_bias=False")
    matrix = _quantize(f"{name}.kernel", module.kernel[...].T, weight)
    return QuantLinear(matrix, activations=activations, dtype=_dtype_name(module.dtype))


def _quantize(name: str, x: Array, spec: Spec) -> QTensor:
    try:
        return quantize(x, spec)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _dtype_name(dtype: Any) -> str:
    return "float32" if dtype is None else jnp.dtype(dtype).name


def replace_module(root: nnx.Module, path: tuple[Any, ...], module: nnx.Module) -> None:
    """Puts ``module`` where ``path`` leads, names for attributes and whole numbers for places in a list."""
    parent: Any = root
    for key in path[:-1]:
        parent = parent[key] if isinstance(key, int) else getattr(parent, key)
    if isinstance(path[-1], int):
        parent[path[-1]] = module
    else:
        setattr(parent, path[-1], module)


def _round_rest(model: nnx.Module, decided: set[int], dtype: str) -> None:
    """Rounds the Params of all other modules. They keep their dtype, because norms and routers compute in it; the
    metadata says what a file needs to hold of them."""
    for _, module in list(nnx.iter_modules(model)):
        params = {name: value for name, value in vars(module).items() if isinstance(value, nnx.Param)}
        for name, value in params.items() if id(module) not in decided else ():
            rounded = value[...].astype(dtype).astype(value[...].dtype)
            stored: dict[str, Any] = {STORED: dtype}
            # A new Param: clones share their metadata with the original.
            setattr(module, name, nnx.Param(rounded, **stored))
