"""A model as names and arrays, both ways: what a file of tensors needs to know of it.

A name is the path of an array in the model, such as ``layers.0.attention.q_proj.kernel``, or, where a matrix is
quantized, the path of each of its parts: ``layers.0.attention.q_proj.weight.codes``, ``.scale``, ``.zero_point``.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from minimoe.config import ModelConfig
from minimoe.cost import count_params
from minimoe.errors import UserError
from minimoe.hub.quantized import Quantization, install
from minimoe.hub.tensorfile import REPAIR, TensorFile
from minimoe.model import MoETransformer
from minimoe.model.paths import filled_state, misfits, named_leaves
from minimoe.quant.report import STORED


def named_arrays(model: MoETransformer) -> dict[str, Any]:
    """Every array of the model under its name, in the dtype that a file needs for it.

    That is its own dtype, and a copy is made of nothing, except for weights that a recipe has rounded to bfloat16
    while they stay float32 in memory: those come as bfloat16, which loses nothing.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> named_arrays(model)["layers.0.ffn.experts.down_proj"].shape
      (8, 128, 128)
    """
    return {name: _array(leaf) for name, leaf in named_leaves(model).items()}


@functools.lru_cache(maxsize=8)  # tracing a model takes longer than reading a small file
def abstract_model(config: ModelConfig, quantization: Quantization | None = None) -> tuple[Any, Any]:
    """The model with the right modules in their places, and shapes and dtypes where its arrays will be.

    Returns:
      ``(graphdef, state)`` as `flax.nnx.split` gives them, the leaves of the state `jax.ShapeDtypeStruct`. Every caller
      with equal arguments gets the same two: read only.

    Raises:
      UserError: if ``quantization`` does not fit the config.
    """
    graphdefs = []

    def build() -> Any:
        model = MoETransformer(config, rngs=nnx.Rngs(0))
        graphdef, state = nnx.split(model if quantization is None else install(quantization, model))
        graphdefs.append(graphdef)
        return state

    state = jax.eval_shape(build)
    return graphdefs[-1], state


def check_size(config: ModelConfig, file: TensorFile) -> None:
    """Refuses a config that describes another model than the file holds, from counts alone: nothing is built.

    A model of thousands of layers would take minutes to build, even without arrays.

    Raises:
      UserError: if the file has another number of layers, or is too small for the config's parameters.
    """
    layers = {name.split(".")[1] for name in file.header if name.startswith("layers.")}
    what = f"{file.path} does not fit the config.json beside it"
    if len(layers) != config.num_layers:
        raise UserError(f"{what}: {config.num_layers} layers against {len(layers)}; {REPAIR}")
    params, room = count_params(config).total, 2 * file.bytes  # four bits are the least that a value takes
    if params > room:
        raise UserError(f"{what}: {params:,} parameters against room for {room:,}; {REPAIR}")


def fill(abstract: tuple[Any, Any], file: TensorFile) -> MoETransformer:
    """The model of `abstract_model` with the arrays of ``file``, read one after the other.

    Weights that were rounded to bfloat16 and are computed with in float32 are bfloat16 in the file: they are widened one
    by one, and marked so that they are saved as they were.

    Raises:
      UserError: naming every missing and unexpected array, and every one of another shape or dtype, at once.
    """
    graphdef, state = abstract
    _check(named_leaves(state), file)

    def read(name: str, leaf: Any) -> Any:
        array = jnp.asarray(file.read(name))
        if not isinstance(leaf, nnx.Variable):
            return array
        new = leaf.replace(array.astype(leaf.dtype))
        if array.dtype != leaf.dtype:
            new.set_metadata(**{STORED: str(array.dtype)})
        return new

    return nnx.merge(graphdef, filled_state(state, read))


def _check(leaves: dict[str, Any], file: TensorFile) -> None:
    wanted = {
        name: _Kind(str(leaf.dtype), tuple(leaf.shape), isinstance(leaf, nnx.Param)) for name, leaf in leaves.items()
    }
    found = {name: _Kind(file.dtype(name), file.shape(name)) for name in file.header}
    said = misfits(wanted, found, _Kind.may_be)
    if said:
        raise UserError(f"{file.path} does not fit the config.json beside it: {said}; {REPAIR}")


class _Kind(NamedTuple):
    """What an array is. Parameters that were rounded to bfloat16 may be so in the file."""

    dtype: str
    shape: tuple[int, ...]
    is_param: bool = False

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    def may_be(self, found: _Kind) -> bool:
        rounded = self.is_param and (found.dtype, self.dtype) == ("bfloat16", "float32")
        return self.shape == found.shape and (self.dtype == found.dtype or rounded)


def _array(leaf: Any) -> Any:
    if not isinstance(leaf, nnx.Variable):
        return leaf
    array = leaf[...]
    narrow = array.astype(leaf.get_metadata().get(STORED, array.dtype))
    return narrow if jnp.array_equal(narrow.astype(array.dtype), array) else array  # trained on since it was rounded
