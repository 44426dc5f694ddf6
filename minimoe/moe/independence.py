"""Layers in which tokens of one batch compete, and the same weights without that competition.

What a token gets must not depend on who else is in its batch where a model is scored or generates text. Two settings
break that: ``dispatch="capacity"`` drops what does not fit, and under ``select="expert_choice"`` experts take the
tokens that they like best.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
from flax import nnx

from minimoe.moe.layer import MoELayer
from minimoe.moe.selectors import SELECTORS

Model = TypeVar("Model")


def sparse_layers(model: Any) -> list[MoELayer]:
    """Every `MoELayer` of a model or of a module around one, each once; a tenth of the time of `nnx.iter_modules`."""
    nodes = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, MoELayer))
    return list({id(node): node for node in nodes if isinstance(node, MoELayer)}.values())


def without_drops(model: Model) -> Model:
    """The same arrays with the exact dispatch in place of ``capacity``; a model without it is returned as it is.

    Dropping is a compromise of training, for shapes that are known beforehand. A model that is scored or generates text
    gives every token its experts.
    """
    if not any(layer.config.dispatch == "capacity" for layer in sparse_layers(model)):
        return model
    graphdef, state = nnx.split(model)
    twin = nnx.merge(graphdef, state)
    for layer in sparse_layers(twin):
        if layer.config.dispatch == "capacity":
            layer.config = dataclasses.replace(layer.config, dispatch="dropless")
    return twin


def experts_choose(model: Any) -> bool:
    """Whether some layer lets experts choose among the tokens of a batch: no dispatch makes tokens independent there."""
    return any(SELECTORS[layer.config.select].counts_slots for layer in sparse_layers(model))
