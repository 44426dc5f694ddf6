"""What tests/test_parallel.py runs once, in a process with eight simulated devices: it prints one JSON object."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from parallel_run import tiny_run

from minimoe import MoEConfig, MoELayer
from minimoe.model.paths import named_leaves
from minimoe.moe import load_balance_loss
from minimoe.parallel import (
    OnMesh,
    batch_sharding,
    collective_bytes,
    exchange_bytes,
    gathered,
    make_mesh,
    off_mesh,
    on_mesh,
    shard_model,
    step_bytes,
)
from minimoe.training import init_training, load_checkpoint, train, train_step

SIZES = {"d_model": 8, "d_expert": 6, "num_experts": 8, "score": "sigmoid"}
TOKENS = 256
# Name: the layer, the mesh, rows, and how much the router is tilted towards its first experts.
LAYERS = {
    "all to one device": ({"top_k": 1, "swiglu_limit": 0.5}, "expert=8", "mean", 9.0),
    "three axes, dropping": (
        {"top_k": 2, "dispatch": "capacity", "capacity_factor": 0.7},
        "data=2,expert=2,tensor=2",
        "mean",
        0.1,
    ),
    "experts choose": ({"top_k": 2, "select": "expert_choice"}, "data=4,expert=2", "all", 0.0),
}


def make_layer(changes: dict, tilt: float, **other: str) -> MoELayer:
    layer = MoELayer(MoEConfig(**SIZES | changes | other), rngs=nnx.Rngs(0))
    layer.router.kernel[...] = layer.router.kernel[...] * 30
    layer.router.bias[...] = tilt * jnp.linspace(1, 0, 8)
    return layer


def value_and_grad(layer: MoELayer, x: jax.Array, where: jax.Array):
    """Everything that a step needs of a layer, and the gradient of the parameters and of x."""
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    slope = nnx.Rngs(2).normal(x.shape)

    @jax.jit
    def run(params, x):
        def loss(params, x):
            y, routing = nnx.merge(graphdef, params, rest)(x, where=where)
            balance = load_balance_loss(routing.probs, routing.experts, where=where)
            return (y * slope).sum() + balance, (y, routing.load, routing.dropped, balance)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    (_, found), grads = run(params, x)
    return jax.device_get(found), jax.device_get(grads)


def difference(ours, theirs) -> float:
    """Largest difference, over the largest entry of the array."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        worst = max(worst, float(np.abs(np.asarray(a) - np.asarray(b)).max() / (np.abs(np.asarray(a)).max() + 1e-9)))
    return worst


def check_layers() -> dict:
    x = nnx.Rngs(1).normal((TOKENS, SIZES["d_model"]))
    where = jnp.arange(TOKENS) % 7 > 0
    report = {}
    for name, (changes, spec, rows, tilt) in LAYERS.items():
        plainest = {} if "dispatch" in changes else {"dispatch": "dense"}
        one = value_and_grad(make_layer(changes, tilt, **plainest), x, where)
        mesh = make_mesh(spec)
        layer = shard_model(on_mesh(make_layer(changes, tilt), mesh, rows=rows), mesh)
        many = value_and_grad(layer, jax.device_put(x, batch_sharding(mesh)), where)
        exchange = layer.experts._exchange(TOKENS)
        report[name] = {
            "values": difference(one[0], many[0]),
            "gradients": difference(one[1], many[1]),
            "load": many[0][1].tolist(),
            "dropped": float(many[0][2]),
            "rows": exchange.rows,
            "tokens": TOKENS // mesh.size,
            "held": layer.experts.down_proj.addressable_shards[0].data.shape[0],
            "kind": type(off_mesh(gathered(layer)).experts).__name__,
        }
    return report


def check_traffic() -> dict:
    """All-to-all of a layer with its gradient, counted and by formula, with a group limit and without."""
    mesh, report = make_mesh("expert=8"), {}
    for kept in (0, 2):
        limit = {"select": "group_limited", "num_groups": 8, "top_k_groups": kept} if kept else {}
        config = MoEConfig(d_model=64, d_expert=8, num_experts=32, top_k=4, **limit)
        layer = shard_model(on_mesh(MoELayer(config, rngs=nnx.Rngs(0)), mesh), mesh)
        graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

        def loss(params, x, graphdef=graphdef, rest=rest):
            return (nnx.merge(graphdef, params, rest)(x)[0] ** 2).sum()

        x = jax.device_put(jnp.ones((2048, 64)), batch_sharding(mesh))
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
        sent, again = collective_bytes(compiled), collective_bytes(compiled, loops=True)
        report[kept] = {"sent": sent, "again": again, "formula": exchange_bytes(config, 8, 256)}
    return report


def check_step_traffic() -> dict:
    """Everything that a device sends in a step of the tiny run, counted in the compiled program and by formula."""
    run, _, _ = tiny_run()
    report = {}
    for spec in ("data=2,expert=4", "data=8"):
        mesh = make_mesh(spec)
        model, optimizer = init_training(run)
        OnMesh(mesh).lay_out(model, optimizer, 0)
        batch = [jax.device_put(jnp.ones((8, 16), kind), batch_sharding(mesh)) for kind in (jnp.int32, jnp.int32, bool)]
        graphdef, state = nnx.split((model, optimizer))

        def step(state, *batch, graphdef=graphdef):
            model, optimizer = nnx.merge(graphdef, state)
            return train_step(model, optimizer, *batch, recipe=run.recipe), nnx.state((model, optimizer))

        compiled = jax.jit(step).lower(state, *batch, jax.random.key(0)).compile()
        report[spec] = {"sent": collective_bytes(compiled), "formula": step_bytes(run.model, mesh, 8, 16)}
    return report


def check_odd_tokens() -> float:
    """A number of tokens that the devices do not divide."""
    mesh = make_mesh("expert=8")
    x = nnx.Rngs(1).normal((13, SIZES["d_model"]))
    one = make_layer({"top_k": 2}, 0.0)
    many = shard_model(on_mesh(make_layer({"top_k": 2}, 0.0), mesh), mesh)
    run = jax.jit(lambda layer, x: layer(x)[0])
    return difference(run(one, x), jax.device_get(run(many, x)))


def check_training(folder: Path) -> dict:
    """The same run on one device and on eight; and what eight saved in the middle, gone on with on one."""
    losses, specs = {}, {}
    run, data, tokenizer = tiny_run()
    for name, mesh in (("one", None), ("eight", "data=2,expert=4")):
        result = train(run, data, [], tokenizer, out=folder / name, mesh=mesh)
        losses[name] = [[record["loss"], record["grad_norm"], *record["max_violation"]] for record in result.records]
        specs[name] = sorted({str(leaf.sharding) for leaf in jax.tree.leaves(nnx.state(result.model))})
    for name in ("again", "two"):
        shutil.copytree(folder / "eight", folder / name)
        shutil.rmtree(folder / name / "checkpoints" / str(run.recipe.steps))
    result = train(run, data, [], tokenizer, out=folder / "again", resume=True)
    losses["again"] = [[record["loss"], record["grad_norm"], *record["max_violation"]] for record in result.records]
    said = {name: described(folder / name, run.recipe.steps) for name in ("one", "eight")}
    weights = [nnx.state(load_checkpoint(folder / name)[0]) for name in ("one", "eight")]
    return {"losses": losses, "specs": specs, "files": said, "weights": difference(*weights)}


def described(folder: Path, step: int) -> list[str]:
    """What a run's folder says of itself: its config, and the names, shapes and places of the arrays that it holds."""
    inside = folder / "checkpoints" / str(step) / "default"
    files = (folder / "config.json", inside / "_METADATA", inside / "_sharding", inside / "array_metadatas/process_0")
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def check_state() -> dict:
    """The part of a model and of its moments that one device holds, before and after a step."""
    run, _, _ = tiny_run()
    mesh = make_mesh("data=2,expert=4")
    model, optimizer = init_training(run)
    OnMesh(mesh).lay_out(model, optimizer, 0)
    names = ("model layers.0.ffn.experts.down_proj", "model norm.scale")
    moments = ("layers.0.ffn.experts.down_proj", "layers.0.attention.q_proj.kernel", "norm.scale")
    names += tuple(f"optimizer opt_state.1.0.mu.{name}" for name in moments)

    def places() -> dict:
        both = {"model": named_leaves(model), "optimizer": named_leaves(optimizer)}
        arrays = {name: both[name.split()[0]][name.split()[1]][...] for name in names}
        return {name: array.sharding.shard_shape(array.shape) for name, array in arrays.items()}

    before = places()
    batch = [jax.device_put(jnp.ones((8, 16), kind), batch_sharding(mesh)) for kind in (jnp.int32, jnp.int32, bool)]
    train_step(model, optimizer, *batch, jax.random.key(0), recipe=run.recipe)
    return {"before": before, "after": places()}


if __name__ == "__main__":
    started = time.monotonic()
    found = {"layers": check_layers(), "odd": check_odd_tokens(), "devices": jax.device_count()}
    found["traffic"] = check_traffic()
    found["step traffic"] = check_step_traffic()
    found |= {"training": check_training(Path(sys.argv[1])), "state": check_state()}
    print(json.dumps(found | {"seconds": time.monotonic() - started}))
