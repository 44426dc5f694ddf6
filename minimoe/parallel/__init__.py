"""Parallel: a mesh of devices, rules that say what is where, and experts that are exchanged between devices.

JAX is the engine: ``jax.sharding``, ``jax.shard_map`` and ``jax.distributed`` lay out, send and join. This room says what
is wanted. Eight devices can be simulated on one CPU, for laws and for counting bytes, not for speed:

    XLA_FLAGS=--xla_force_host_platform_device_count=8 minimoe train --mesh data=2,expert=4 --out runs/eight

Several processes join by `minimoe.parallel.processes`, after they have found each other in `minimoe.parallel.meeting`.

In your own code:

    mesh = make_mesh("data=2,expert=4")
    model = shard_model(on_mesh(model, mesh), mesh)              # experts dealt out, arrays laid out
    optimizer = shard_state(nnx.Optimizer(model, tx, wrt=nnx.Param), mesh)        # moments split over the data axis
    batch = jax.device_put(batch, batch_sharding(mesh))          # sequences split over data and expert
    loss = train_step(model, optimizer, batch)                   # any jitted step: counts and losses are of all devices
"""

from minimoe.parallel.experts import MeshExperts, off_mesh, on_mesh
from minimoe.parallel.mesh import AXES, check_model, check_moe, make_mesh, parse_mesh
from minimoe.parallel.placement import OnMesh, Placement, placement
from minimoe.parallel.processes import join
from minimoe.parallel.reach import devices_per_token, rows_per_device
from minimoe.parallel.rules import (
    RULES,
    batch_sharding,
    gathered,
    pinned,
    put,
    shard_model,
    shard_state,
    shardings,
    spec_for,
    zero_spec,
)
from minimoe.parallel.step_traffic import step_bytes
from minimoe.parallel.traffic import KINDS, collective_bytes, exchange_bytes

__all__ = [
    "AXES",
    "KINDS",
    "RULES",
    "MeshExperts",
    "OnMesh",
    "Placement",
    "batch_sharding",
    "check_model",
    "check_moe",
    "collective_bytes",
    "devices_per_token",
    "exchange_bytes",
    "gathered",
    "join",
    "make_mesh",
    "off_mesh",
    "on_mesh",
    "parse_mesh",
    "pinned",
    "placement",
    "put",
    "rows_per_device",
    "shard_model",
    "shard_state",
    "shardings",
    "spec_for",
    "step_bytes",
    "zero_spec",
]
