"""What one device sends in a whole training step, from sizes alone: gradients, updates, scores and the exchange.

    all-reduce    2 (g - 1) / g of each array of gradients that a device holds; g devices hold equal weights
    all-gather    (z - 1) / z of each array of updates, where `zero_spec` splits its moments over z devices; and for each
                  sparse layer (n - 1) / n of the router's scores ``[T, E]``, since the top-k is not partitioned
    all-to-all    the exchange of each sparse layer, see `exchange_bytes`

The compiled program sends a little more: losses, norms and counts, some hundred bytes a layer; and for the gradient of the
embedding the token ids, and rows that are cut another way before they are added.
"""

from __future__ import annotations

import math
from typing import Any

from flax import nnx

from minimoe.config import ModelConfig
from minimoe.errors import UserError
from minimoe.model.paths import named_leaves
from minimoe.parallel.mesh import BATCH_AXES, AnyMesh, axis_size, check_model
from minimoe.parallel.rules import spec_for, zero_spec
from minimoe.parallel.traffic import exchange_bytes

FLOAT32 = 4  # bytes: of weights, gradients, updates and scores


def step_bytes(config: ModelConfig, mesh: AnyMesh, batch_size: int, length: int) -> dict[str, float]:
    """Bytes that one device sends in a training step with split moments, by kind of collective.

    Args:
      config: of the model, in float32. mesh: axes data and expert alone.
      batch_size: sequences of all devices together. length: tokens of each.

    Returns:
      Numbers under "all-reduce", "all-gather" and "all-to-all".

    Raises:
      UserError: for an axis tensor, which sums activations too, a head for multi-token prediction, or what does not fit.

    Example:
      >>> mesh = jax.sharding.AbstractMesh((2, 1, 1), ("data", "expert", "tensor"))
      >>> sent = step_bytes(ModelConfig.preset("nano").dense_equivalent(), mesh, 8, 256)
      >>> sent["all-to-all"], sent["all-reduce"] / sent["all-gather"] > 2  # vectors have whole moments
      (0.0, True)
    """
    if mesh.shape["tensor"] > 1 or config.mtp is not None:
        raise UserError("step_bytes counts the axes data and expert of a model without mtp; leave out the others")
    check_model(config, mesh, batch_size)
    reduced = sum(_ring(2, _holders(mesh, name), _held(mesh, name, leaf)) for name, leaf in _weights(config).items())
    gathered = sum(
        _ring(1, _split(mesh, name, leaf), _held(mesh, name, leaf)) for name, leaf in _weights(config).items()
    )
    devices, tokens, exchanged = axis_size(mesh, *BATCH_AXES), batch_size * length, 0.0
    for moe in (layer.moe for layer in config.layers if layer.moe is not None):
        gathered += _ring(1, devices, tokens * moe.num_experts * FLOAT32)
        exchanged += exchange_bytes(moe, mesh.shape["expert"], tokens // devices)
    return {"all-reduce": reduced, "all-gather": gathered, "all-to-all": exchanged}


def _ring(ways: int, group: int, size: int | float) -> float:
    return ways * size * (group - 1) / group


def _weights(config: ModelConfig) -> dict[str, Any]:
    """Shapes of the parameters, by name; no weights are made."""
    from minimoe.model import without_arrays

    return named_leaves(nnx.state(without_arrays(config), nnx.Param))


def _axes(spec: Any) -> tuple[str, ...]:
    return tuple(axis for entry in spec if entry for axis in ((entry,) if isinstance(entry, str) else entry))


def _held(mesh: AnyMesh, name: str, leaf: Any) -> float:
    """Bytes of a parameter on one device."""
    return FLOAT32 * math.prod(leaf.shape) / axis_size(mesh, *_axes(spec_for(name)))


def _holders(mesh: AnyMesh, name: str) -> int:
    """Devices that hold the same part of a parameter."""
    return axis_size(mesh, *BATCH_AXES) // axis_size(mesh, *_axes(spec_for(name)))


def _split(mesh: AnyMesh, name: str, leaf: Any) -> int:
    """Devices over which the moments of that part are split."""
    spec = spec_for(name)
    return axis_size(mesh, *_axes(zero_spec(spec, leaf.shape, mesh))) // axis_size(mesh, *_axes(spec))
