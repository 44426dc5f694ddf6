"""What tests/test_parallel.py runs once, in a process with eight simulated devices: it prints one JSON object."""

from __future__ import annotations

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe import MoEConfig, MoELayer
from minimoe.moe import load_balance_loss
from minimoe.parallel import batch_sharding, gathered, make_mesh, off_mesh, on_mesh, shard_model

SIZES = {"d_model": 8, "d_expert": 6, "num_experts": 8, "score": "sigmoid"}
TOKENS = 256
# Name: the layer, the mesh, rows, and how much the router is tilted towards its first experts.
LAYERS = {
    "balanced": ({"top_k": 2, "num_shared_experts": 1}, "data=2,expert=4", "mean", 0.0),
    "all to one device": ({"top_k": 1, "swiglu_limit": 0.5}, "expert=8", "mean", 9.0),
    "room for all": ({"top_k": 2}, "expert=4", "all", 9.0),
    "three axes, dropping": (
        {"top_k": 2, "dispatch": "capacity", "capacity_factor": 0.7},
        "data=2,expert=2,tensor=2",
        "mean",
        0.1,
    ),
    "experts choose": ({"top_k": 2, "select": "expert_choice"}, "data=4,expert=2", "mean", 0.0),
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


def check_odd_tokens() -> float:
    """A number of tokens that the devices do not divide."""
    mesh = make_mesh("expert=8")
    x = nnx.Rngs(1).normal((13, SIZES["d_model"]))
    one = make_layer({"top_k": 2}, 0.0)
    many = shard_model(on_mesh(make_layer({"top_k": 2}, 0.0), mesh), mesh)
    run = jax.jit(lambda layer, x: layer(x)[0])
    return difference(run(one, x), jax.device_get(run(many, x)))


if __name__ == "__main__":
    started = time.monotonic()
    found = {"layers": check_layers(), "odd": check_odd_tokens(), "devices": jax.device_count()}
    print(json.dumps(found | {"seconds": time.monotonic() - started}))
