"""Quantization-aware training: the forward pass sees rounded weights, the optimiser moves the exact ones.

Rounding is a staircase: its true gradient is 0 almost everywhere and teaches nothing. The straight-through estimator
pretends that it is 1 (Bengio et al., `Estimating or propagating gradients <https://arxiv.org/abs/1308.3432>`_). Small
updates then add up in the float32 master weight until its rounded value moves on to the next code.

DeepSeek-V4 does this to its experts at the end of training: float32 master, rounded to FP4 in blocks of 32, taken back
to FP8, which holds those values exactly, multiplied; the gradient of that matrix goes to the master as it is (technical
report, section 5.2.1). Here the rounded weights are multiplied in float32, which are the same values; for products in
FP8 too, combine it with `minimoe.quant.Fp8Products`.

Training takes it as a method, `minimoe.quant.QuantizationAware`. `qat_transform` makes the function that a single
`minimoe.training.train_step` accepts as ``transform_params``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from minimoe.model import MoETransformer
from minimoe.model.paths import path_name
from minimoe.moe import Experts
from minimoe.quant.models import QUANTIZABLE, QuantRecipe, check_rules, get_recipe
from minimoe.quant.specs import Spec
from minimoe.quant.tensor import quantize

Path = tuple[Any, ...]  # attribute names and list positions


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def straight_through(function: Callable[[Array], Array], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``function(x)``, whose gradient passes as if nothing had happened: exactly the identity's, for every value.

    Example:
      >>> print(jax.value_and_grad(lambda x: straight_through(jnp.round, x) ** 2)(jnp.float32(2.6)))
      (Array(9., dtype=float32), Array(6., dtype=float32))
    """
    return function(x)


straight_through.defjvp(lambda function, primals, tangents: (function(*primals), *tangents))


def fake_quantize(x: Float[Array, "*shape"], spec: Spec) -> Float[Array, "*shape"]:
    """``x`` rounded to what ``spec`` can hold, in its own dtype, straight through for the gradient.

    A scale is the block's largest magnitude over the format's, so hardly any value saturates; one that does (the "ocp"
    rule of scales) gets its gradient like the others and can find its way back.

    Args:
      x: blocks lie along the last axis, so kernels ``[I, O]`` are to be transposed.
      spec: see `minimoe.quant.specs.Spec`.

    Example:
      >>> x = jnp.array([[0.1, 0.7, 6.0]])
      >>> print(fake_quantize(x, MXFP4), jax.grad(lambda x: fake_quantize(x, MXFP4).sum())(x))
      [[0.  0.5 6. ]] [[1. 1. 1.]]
    """
    return straight_through(lambda x: quantize(x, spec, check=False).dequantize(x.dtype), x)


@dataclasses.dataclass(frozen=True)
class QatTransform:
    """Parameters in, rounded parameters out. Equal ones compare equal, so a step is compiled for them once.

    Attributes:
      targets: path of a Param, how it is rounded, and whether its contraction axis is the last but one.
      rest: dtype that all other Params are rounded to, None for not at all.
    """

    targets: tuple[tuple[Path, Spec, bool], ...]
    rest: str | None = None

    def __call__(self, params: Any) -> Any:
        """From `nnx.State` to `nnx.State`; Params that no rule names and that ``rest`` spares are passed on."""
        known = {path: (spec, transposed) for path, spec, transposed in self.targets}
        return nnx.from_flat_state([(path, self._round(v, known.get(path))) for path, v in nnx.to_flat_state(params)])

    def _round(self, variable: Any, target: tuple[Spec, bool] | None) -> Any:
        x = variable[...]
        if target is None:
            if self.rest is None:
                return variable
            return variable.replace(straight_through(lambda x: x.astype(self.rest).astype(x.dtype), x))
        spec, transposed = target
        if not transposed:
            return variable.replace(fake_quantize(x, spec))
        return variable.replace(jnp.swapaxes(fake_quantize(jnp.swapaxes(x, -1, -2), spec), -1, -2))


def qat_transform(model: MoETransformer, recipe: str | QuantRecipe) -> QatTransform:
    """The rounding that `minimoe.quant.quantize_model` would do, for the weights of a model in training.

    The forward pass of the rounded parameters is that of the quantized model, as far as weights go: activations that a
    recipe rounds are left alone.

    Args:
      model: float; only its modules and their paths are looked at, so `nnx.eval_shape` of one will do.
      recipe: a name in `minimoe.quant.RECIPES`, or your own.

    Raises:
      UserError: for an unknown recipe, or a rule that decides about no module.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> transform = qat_transform(model, "mxfp4")
      >>> path, spec, transposed = transform.targets[0]
      >>> path, spec.format, transposed, len(transform.targets)
      (('layers', 0, 'ffn', 'experts', 'down_proj'), 'fp4_e2m1', True, 8)
      >>> rounded = transform(nnx.state(model, nnx.Param))  # what train_step(transform_params=transform) multiplies
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    modules = {path: module for path, module in nnx.iter_modules(model) if isinstance(module, QUANTIZABLE)}
    names = {path: path_name(path) for path in modules}
    check_rules(recipe, list(names.values()))
    targets = []
    for path in sorted(modules, key=lambda path: names[path]):
        rule = recipe.rule_for(names[path])
        if rule is not None and rule.weight is not None:
            targets += [((*path, name), rule.weight, name != "embedding") for name in _weights(modules[path])]
    return QatTransform(tuple(targets), recipe.rest)


def _weights(module: Any) -> tuple[str, ...]:
    """The names of the Params that a rule rounds."""
    if isinstance(module, Experts):
        return ("down_proj", "gate_up_proj")
    return ("embedding",) if isinstance(module, nnx.Embed) else ("kernel",)
