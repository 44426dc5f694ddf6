"""A model in another form: with arrays of its own, under another config, or with none of its arrays."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from minimoe.config import ModelConfig
from minimoe.errors import UserError
from minimoe.model.transformer import MoETransformer


def copy_model(model: MoETransformer) -> MoETransformer:
    """The same model with arrays of its own.

    `flax.nnx.clone` shares them, and a training step hands the arrays of its model to the compiler to be written over:
    after it, whoever shared them holds deleted arrays.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> model.norm.scale[...] is copy_model(model).norm.scale[...]
      False
    """
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jnp.copy, state))


def with_config(model: MoETransformer, config: ModelConfig) -> MoETransformer:
    """The same arrays under another config whose parameters are the same: a longer context, another dispatch.

    Raises:
      UserError: if the config asks for other parameters.

    Example:
      longer = with_config(model, model.config.replace(context_length=4096))
    """
    graph, shapes = _traced(config)
    state = nnx.state(model)
    asked, given = (jax.tree.map(lambda array: array.shape, nnx.to_pure_dict(each)) for each in (shapes, state))
    if asked != given:
        raise UserError("config asks for other parameters than the model has; change only what holds no weights")
    return nnx.merge(graph, state)


def without_arrays(config: ModelConfig) -> MoETransformer:
    """A new model that has shapes and dtypes in the place of its arrays."""
    return nnx.merge(*_traced(config))


@functools.lru_cache(maxsize=8)  # tracing a model takes longer than reading a small checkpoint
def _traced(config: ModelConfig) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: MoETransformer(config, rngs=nnx.Rngs(0))))
