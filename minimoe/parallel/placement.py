"""Where a training run keeps its arrays: on one device, or laid out over a mesh, in one process or several.

The loop of `minimoe.training` asks a placement wherever the two differ, and is otherwise the same code. Checkpoints hold
whole arrays, so they do not depend on it: a run saved on eight devices goes on on two, or on one.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from minimoe.config import ModelConfig
from minimoe.parallel.experts import off_mesh, on_mesh
from minimoe.parallel.mesh import check_model, make_mesh
from minimoe.parallel.rules import batch_sharding, gathered, put, shard_model, shard_state

Node = TypeVar("Node")


class Placement:
    """One device: everything stays where it is. `OnMesh` is the other one."""

    writes = True  # whether this process writes the run's files

    def lay_out(self, model: nnx.Module, optimizer: nnx.Optimizer, step: int) -> int:
        """Puts both where they are to be, in place, as they are after ``step`` steps; returns that step."""
        return step

    def batch(self, array: Any) -> jax.Array:
        """``[B, ...]``, ready for a step."""
        return jnp.asarray(array)

    def whole(self, node: Node) -> Node:
        """Module or record with whole arrays on one device. All processes must ask for it."""
        return node

    def any(self, here: bool) -> bool:
        """Whether it is so in some process."""
        return here


class OnMesh(Placement):
    """Laid out over a mesh by `minimoe.parallel.rules`, experts exchanged between devices.

    Args:
      mesh: from `make_mesh`. rows: of the exchange, see `on_mesh`.
    """

    def __init__(self, mesh: Mesh, rows: str = "mean"):
        self.mesh, self.rows = mesh, rows
        self.several = jax.process_count() > 1
        self.writes = jax.process_index() == 0

    def lay_out(self, model: nnx.Module, optimizer: nnx.Optimizer, step: int) -> int:
        """Everything is taken from the process that writes, which alone has read the checkpoint."""
        if self.several:
            state = jax.tree.map(np.asarray, nnx.state((model, optimizer)))
            state, step = multihost_utils.broadcast_one_to_all((state, step))
            nnx.update((model, optimizer), state)
        shard_model(on_mesh(model, self.mesh, rows=self.rows), self.mesh)
        shard_state(optimizer, self.mesh)
        return int(step)

    def batch(self, array: Any) -> jax.Array:
        return put(array, batch_sharding(self.mesh))

    def whole(self, node: Node) -> Node:
        copy: Any = gathered(node)
        if isinstance(copy, nnx.Module):
            off_mesh(copy)
        return copy

    def any(self, here: bool) -> bool:
        return bool(multihost_utils.process_allgather(np.array(here)).any()) if self.several else here


def placement(mesh: Mesh | str | None, config: ModelConfig, batch_size: int) -> Placement:
    """The placement of a run, after a check that it fits.

    Args:
      mesh: a mesh, text such as ``"data=2,expert=4"``, or None for one device.
      config, batch_size: of the run.

    Raises:
      UserError: naming the axis that does not fit, and why.
    """
    if mesh is None:
        return Placement()
    mesh = make_mesh(mesh) if isinstance(mesh, str) else mesh
    check_model(config, mesh, batch_size)
    return OnMesh(mesh)
