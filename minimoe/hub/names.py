"""A model as names and arrays, both ways: what a file of tensors needs to know of it.

A name is the path of an array in the model, such as ``layers.0.attention.q_proj.kernel``, or, where a matrix is
quantized, the path of each of its parts: ``layers.0.attention.q_proj.weight.codes``, ``.scale``, ``.zero_point``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from minimoe.config import ModelConfig
from minimoe.cost import count_params
from minimoe.errors import UserError
from minimoe.hub.quantized import Quantization, install
from minimoe.hub.tensorfile import REPAIR, TensorFile
from minimoe.model import MoETransformer
from minimoe.quant.report import STORED

SHOWN = 3  # names in a complaint; a wrong config can produce hundreds


def named_arrays(model: MoETransformer) -> dict[str, Any]:
    """Every array of the model under its name, in the dtype that a file needs for it.

    That is its own dtype, and a copy is made of nothing, except for weights that a recipe has rounded to bfloat16
    while they stay float32 in memory: those come as bfloat16, which loses nothing.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> named_arrays(model)["layers.0.ffn.experts.down_proj"].shape
      (8, 128, 128)
    """
    return {_dotted(path): _array(leaf) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def abstract_model(config: ModelConfig, quantization: Quantization | None = None) -> tuple[Any, Any]:
    """The model with the right modules in their places, and shapes and dtypes where its arrays will be.

    Returns:
      ``(graphdef, state)`` as `flax.nnx.split` gives them, the leaves of the state `jax.ShapeDtypeStruct`.

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
    leaves = {_dotted(path): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
    _check(leaves, file)
    filled: list[tuple[Any, Any]] = []
    for name, (path, leaf) in leaves.items():
        array = jnp.asarray(file.read(name))
        if isinstance(leaf, nnx.Variable):
            leaf, dtype = leaf.replace(array.astype(leaf.dtype)), leaf.dtype
            if array.dtype != dtype:
                leaf.set_metadata(**{STORED: str(array.dtype)})
            filled.append((path, leaf))
        else:
            filled.append((path, array))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _check(leaves: dict[str, tuple[Any, Any]], file: TensorFile) -> None:
    problems = {
        "missing": sorted(set(leaves) - set(file.header)),
        "unexpected": sorted(set(file.header) - set(leaves)),
        "wrong": [],
    }
    for name, (_, leaf) in leaves.items():
        if name not in file.header:
            continue
        wanted, shape = (str(leaf.dtype), tuple(leaf.shape)), file.shape(name)
        dtype = file.dtype(name)
        rounded = isinstance(leaf, nnx.Param) and (dtype, wanted[0]) == ("bfloat16", "float32")
        same = dtype == wanted[0] or rounded
        if not same or shape != wanted[1]:
            problems["wrong"].append(f"{name} is {dtype}{list(shape)} instead of {wanted[0]}{list(wanted[1])}")
    if any(problems.values()):
        said = "; ".join(f"{what} {_some(names)}" for what, names in problems.items() if names)
        raise UserError(f"{file.path} does not fit the config.json beside it: {said}; {REPAIR}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _array(leaf: Any) -> Any:
    if not isinstance(leaf, nnx.Variable):
        return leaf
    array = leaf[...]
    narrow = array.astype(leaf.get_metadata().get(STORED, array.dtype))
    return narrow if jnp.array_equal(narrow.astype(array.dtype), array) else array  # trained on since it was rounded
