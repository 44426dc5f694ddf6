"""The way back: a quantized model as a float model, to train on from or to ask as a teacher."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from minimoe.model import MoETransformer, copy_model
from minimoe.quant.layers import QuantEmbed, QuantExperts, QuantLinear
from minimoe.quant.models import QUANTIZED


def is_quantized(model: MoETransformer) -> bool:
    """Whether any module of a model holds codes."""
    return any(isinstance(module, QUANTIZED) for _, module in nnx.iter_modules(model))


def dequantize_model(model: MoETransformer) -> MoETransformer:
    """The plain `MoETransformer` with the weights that the codes stand for; a copy if nothing is quantized.

    What rounding took does not come back. But floats can be trained, and on long inputs they are faster where the
    processor has no arithmetic for the codes. Where a recipe rounds activations, this model no longer does.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> back = dequantize_model(quantize_model(model, "int8"))
      >>> type(back.layers[0].ffn.experts).__name__, is_quantized(back)
      ('Experts', False)
    """
    if not is_quantized(model):
        return copy_model(model)
    plain = nnx.eval_shape(
        lambda: MoETransformer(model.config, rngs=nnx.Rngs(0))
    )  # no weights are drawn to be thrown away
    found: dict[tuple[Any, ...], nnx.Module] = dict(nnx.iter_modules(model))
    for path, module in nnx.iter_modules(plain):
        other = found[path]
        for name, value in _floats(other).items():
            getattr(module, name).set_value(value)
    return copy_model(plain)  # what was no code is shared with the quantized model until here


def _floats(module: nnx.Module) -> dict[str, Any]:
    """The arrays of one module, by the names that they have in the float module."""
    if isinstance(module, QuantExperts):
        parts = {"gate_up_proj": module.gate_up, "down_proj": module.down}
        return {name: jnp.swapaxes(weight.dequantize(), 1, 2) for name, weight in parts.items()}
    if isinstance(module, QuantLinear):
        return {"kernel": module.weight.dequantize().T}
    if isinstance(module, QuantEmbed):
        return {"embedding": module.weight.dequantize()}
    return {name: value[...] for name, value in vars(module).items() if isinstance(value, nnx.Variable)}
