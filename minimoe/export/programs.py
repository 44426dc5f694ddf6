"""The three programs of a model, as functions of plain arrays: what a compiler for another back end is given.

    forward      (weights, tokens [B, L])                       -> logits [B, L, V]
    decode_step  (weights, tokens [B, 1], cache)                -> (logits [B, V], cache)
    train_step   (state, tokens, targets, where [B, L], seed)   -> (state, {"loss", "grad_norm", "ok"})

Weights and state are dictionaries by name, the cache is a list of arrays. So a program is described by names, shapes
and dtypes alone, and no class of ours is needed to call it.

Axes: B batch, L sequence, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from minimoe.inference.decoding import for_decoding
from minimoe.model import MoETransformer, copy_model
from minimoe.model.paths import filled_state, named_leaves
from minimoe.training.optim import optimizer_for
from minimoe.training.recipe import Recipe
from minimoe.training.step import train_step

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of arrays and what it is called with.

    Attributes:
      name: of the three above. function: see there. arguments: one for each of its parameters, arrays of the right shapes
        and dtypes; the first is the weights, or the state that training begins with.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def forward_program(model: MoETransformer, batch: int, length: int) -> Program:
    """Scores of the next token at every position of texts of one length."""
    weights, build = split_by_name(model)
    return Program("forward", lambda w, tokens: build(w)(tokens)[0], (weights, _ids(batch, length)))


def decode_program(model: MoETransformer, batch: int, size: int) -> Program:
    """One token more for each of ``batch`` sequences, with a cache that has room for ``size`` tokens."""
    model = for_decoding(model)
    weights, build = split_by_name(model)
    cache, shape_of_cache = jax.tree.flatten(model.init_cache(batch, size))

    def decode_step(weights: Arrays, tokens: jax.Array, cache: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        logits, _, longer = build(weights).extend(tokens, jax.tree.unflatten(shape_of_cache, cache))
        return logits[:, -1], jax.tree.leaves(longer)

    return Program("decode_step", decode_step, (weights, _ids(batch, 1), cache))


def train_program(model: MoETransformer, recipe: Recipe, batch: int, length: int) -> Program:
    """One step of training: loss, gradient, optimiser, router biases.

    ``state`` holds the weights under ``model.`` and the optimiser under ``optimizer.``.
    """
    model = copy_model(model)
    state, build = split_by_name({"model": model, "optimizer": optimizer_for(model, recipe)})

    def step(
        state: Arrays, tokens: jax.Array, targets: jax.Array, where: jax.Array, seed: jax.Array
    ) -> tuple[Any, Any]:
        both = build(state)
        found = train_step(
            both["model"], both["optimizer"], tokens, targets, where, jax.random.key(seed), recipe=recipe
        )
        after = {name: leaf[...] for name, leaf in named_leaves(nnx.state(both)).items()}
        return after, {"loss": found.loss, "grad_norm": found.grad_norm, "ok": found.ok}

    where = jnp.ones((batch, length), bool)
    return Program("train_step", step, (state, _ids(batch, length), _ids(batch, length), where, jnp.uint32(0)))


def split_by_name(node: Any) -> tuple[Arrays, Callable[[Arrays], Any]]:
    """The arrays of a model, or of a dictionary of modules, by name, and the function that puts others in their places."""
    graphdef, state = nnx.split(node)

    def build(arrays: Arrays) -> Any:
        def put(name: str, leaf: Any) -> Any:
            return leaf.replace(arrays[name]) if isinstance(leaf, nnx.Variable) else arrays[name]

        return nnx.merge(graphdef, filled_state(state, put))

    arrays = {
        name: jnp.asarray(leaf[...] if isinstance(leaf, nnx.Variable) else leaf)
        for name, leaf in named_leaves(state).items()
    }
    return arrays, build


def _ids(batch: int, length: int) -> jax.Array:
    return jnp.zeros((batch, length), jnp.int32)
