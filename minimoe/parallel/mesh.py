"""The mesh: devices in a grid with three named axes, and what must be divisible for a model to fit on it.

data      every row of devices along this axis sees other sequences and holds the same weights
expert    sequences are split along this axis too; each device holds E / size of the routed experts of a layer
tensor    attention heads, widths and vocabulary are split; all devices along this axis see the same sequences
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from minimoe.config import ModelConfig, MoEConfig
from minimoe.errors import UserError

AXES = ("data", "expert", "tensor")
BATCH_AXES = ("data", "expert")  # along which sequences are split
EXAMPLE = "data=2,expert=4"
AnyMesh = Mesh | AbstractMesh  # for what reads the sizes alone


def parse_mesh(text: str) -> dict[str, int]:
    """Sizes of the three axes; an axis that is not named has size 1.

    Raises:
      UserError: for text of another form, an unknown axis, or an axis that is named twice.

    Example:
      >>> parse_mesh("data=2,expert=4")
      {'data': 2, 'expert': 4, 'tensor': 1}
    """
    sizes = dict.fromkeys(AXES, 1)
    seen = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\w+)\s*=\s*([0-9]+)\s*", part)
        if found is None:
            raise UserError(f"mesh {text!r}: {part.strip()!r} is not axis=size; write for example {EXAMPLE}")
        axis, size = found[1], int(found[2])
        if axis not in sizes:
            raise UserError(f"mesh {text!r}: axis {axis!r} is not known; choose among {', '.join(AXES)}")
        if axis in seen or size < 1:
            why = "is there twice" if axis in seen else "must be at least 1"
            raise UserError(f"mesh {text!r}: {axis}={size} {why}; write for example {EXAMPLE}")
        seen.add(axis)
        sizes[axis] = size
    return sizes


def make_mesh(mesh: str | Mapping[str, int], *, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `AXES`, of the first devices that there are.

    Args:
      mesh: text such as ``"data=2,expert=4"``, or sizes by axis.
      devices: to choose from; all that JAX sees if None, those of other processes included.

    Raises:
      UserError: if the text is wrong, or if there are fewer devices: the message says how to simulate them.

    Example:
      >>> dict(make_mesh("data=1").shape)
      {'data': 1, 'expert': 1, 'tensor': 1}
    """
    text = mesh if isinstance(mesh, str) else ",".join(f"{axis}={size}" for axis, size in mesh.items())
    sizes = parse_mesh(text)
    devices = jax.devices() if devices is None else list(devices)
    wanted = math.prod(sizes.values())
    product = " * ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
    if wanted > len(devices):
        kind = devices[0].platform if devices else "no"
        repair = "make an axis smaller"
        if kind == "cpu":
            flag = f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
            repair = f"simulate {wanted} devices with the environment variable {flag}, or {repair}"
        raise UserError(
            f"mesh {text!r}: {product} needs {wanted} devices, but there {_are(len(devices), kind)}; {repair}"
        )
    if jax.process_count() > 1 and wanted != len(devices):
        raise UserError(
            f"mesh {text!r} has {wanted} devices, but {jax.process_count()} processes have {len(devices)}; use all of them"
        )
    grid = np.array(devices[:wanted]).reshape([sizes[axis] for axis in AXES])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _are(count: int, kind: str) -> str:
    return f"is 1 ({kind})" if count == 1 else f"are {count} ({kind})"


def axis_size(mesh: AnyMesh, *axes: str) -> int:
    """Devices along these axes together."""
    return math.prod(mesh.shape[axis] for axis in axes)


def check_moe(config: MoEConfig, mesh: AnyMesh) -> None:
    """Whether the routed experts of a layer can be dealt out over the axis ``expert``.

    Raises:
      UserError: naming the axis, its size and the number of experts.
    """
    _divides("expert", mesh, num_experts=config.num_experts)


def check_model(config: ModelConfig, mesh: AnyMesh, batch_size: int | None = None) -> None:
    """Whether a model, and a batch for it, can be laid out over the mesh; an axis of size 1 always fits.

    Args:
      config: of the model. batch_size: B, sequences a step; None: not checked.

    Raises:
      UserError: naming the axis and what it does not divide.
    """
    for layer in (*config.layer_counts, *(() if config.mtp_layer is None else (config.mtp_layer,))):
        if layer.moe is not None:
            check_moe(layer.moe, mesh)
        heads = {name: getattr(layer.attention, name, None) for name in ("num_heads", "num_kv_heads")}
        _divides("tensor", mesh, **heads, d_ff=layer.d_ff)
        if layer.moe is not None and layer.moe.num_shared_experts:
            _divides("tensor", mesh, d_expert=layer.moe.d_expert)
    if not any(layer.moe for layer in config.layer_counts) and mesh.shape["expert"] > 1:
        raise UserError(
            f"mesh axis expert={mesh.shape['expert']}: the model is dense and has no experts; use data or tensor"
        )
    _divides("tensor", mesh, vocab_size=config.vocab_size)
    both = axis_size(mesh, *BATCH_AXES)
    if batch_size is not None and batch_size % both:
        axes = " * ".join(f"{axis}={mesh.shape[axis]}" for axis in BATCH_AXES)
        raise UserError(
            f"mesh axes {axes} split the sequences of a batch, but batch_size={batch_size} is no multiple of {both}; "
            f"use batch_size={max(1, round(batch_size / both)) * both}"
        )


def _divides(axis: str, mesh: AnyMesh, **sizes: int | None) -> None:
    count = mesh.shape[axis]
    for name, size in sizes.items():
        if size is not None and size % count:
            divisors = [n for n in range(1, size + 1) if size % n == 0]
            fits = ", ".join(map(str, divisors[:12])) + (", ..." if len(divisors) > 12 else "")
            raise UserError(f"mesh axis {axis}={count} does not divide {name}={size}; use {axis}= one of {fits}")
