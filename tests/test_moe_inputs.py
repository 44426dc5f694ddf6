"""The layer as others call it: any leading axes, what it refuses and in which words, transforms around it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minimoe
from minimoe import MoEConfig, MoELayer, UserError
from minimoe.layers import fan_in
from minimoe.moe import with_dispatch

CONFIG = MoEConfig(d_model=8, d_expert=6, num_experts=4, top_k=2, num_shared_experts=1, score="sigmoid")


@pytest.fixture(scope="module")
def layer() -> MoELayer:
    return MoELayer(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (2, 3, 4, 8))


def test_the_layer_is_at_the_top_level():
    assert minimoe.MoELayer is minimoe.moe.MoELayer
    assert "MoELayer" in minimoe.__all__


def test_any_leading_axes(layer, x):
    flat, by_token = layer(x.reshape(-1, 8), where=jnp.arange(24) % 5 != 0)
    for shape in ((2, 12), (2, 3, 4), (1, 24), (24,)):
        y, routing = layer(x.reshape(*shape, 8), where=(jnp.arange(24) % 5 != 0).reshape(shape))
        np.testing.assert_array_equal(y, flat.reshape(*shape, 8))
        for name, value in vars(by_token).items():
            np.testing.assert_array_equal(getattr(routing, name), value, err_msg=name)
    y, _ = layer(x, where=jnp.arange(24) % 5 != 0)  # a flat mask fits every leading shape
    np.testing.assert_array_equal(y.reshape(-1, 8), flat)


def test_one_token_and_no_token(layer, x):
    y, routing = layer(x[0, 0, 0])
    assert (y.shape, routing.experts.shape) == ((8,), (1, 2))
    np.testing.assert_allclose(y, layer(x[0, 0])[0][0], rtol=1e-5, atol=1e-6)
    y, routing = layer(jnp.zeros((0, 5, 8)))
    assert (y.shape, routing.experts.shape) == ((0, 5, 8), (0, 2))


@pytest.mark.parametrize("select", [name for name in minimoe.moe.SELECTORS if name != "hash"])
def test_no_token_by_every_selector(select):
    groups = {"num_groups": 2, "top_k_groups": 1} if select == "group_limited" else {}
    config = dataclasses.replace(CONFIG, select=select, score="softmax", **groups)
    y, routing = MoELayer(config, rngs=nnx.Rngs(0))(jnp.zeros((0, 8)))
    assert (y.shape, routing.experts.shape[0]) == ((0, 8), 0)


@pytest.mark.parametrize("dispatch", minimoe.moe.DISPATCHERS)
def test_numpy_arrays_will_do(dispatch, layer, x):
    layer = with_dispatch(layer, dispatch)
    np.testing.assert_array_equal(layer(np.asarray(x))[0], layer(x)[0])
    assert layer(np.asarray(x, np.float64))[0].dtype == jnp.float32  # JAX's own reading of float64


def test_hash_ids_come_in_the_leading_shape(x):
    hashed = MoELayer(dataclasses.replace(CONFIG, select="hash", hash_vocab_size=9), rngs=nnx.Rngs(0))
    ids = jnp.arange(24, dtype=jnp.int32).reshape(2, 3, 4) % 9
    here, there = hashed(x, tokens=ids), hashed(x, tokens=ids.reshape(-1))
    np.testing.assert_array_equal(here[0], there[0])


REFUSALS = """
import json
import jax, jax.numpy as jnp
from flax import nnx
from minimoe import MoEConfig, MoELayer
config = MoEConfig(8, 6, 4, 2)
layer, x = MoELayer(config, rngs=nnx.Rngs(0)), jnp.ones((2, 20, 8))
graphdef, params, rest = nnx.split(layer, nnx.Param, ...)


def of_weights(params):
    return nnx.merge(graphdef, params, rest)(x)[0]


calls = {
    "width": lambda: layer(x[..., :7]),
    "axes": lambda: layer(jnp.float32(1.0)),
    "ids": lambda: layer(jnp.ones((2, 8), jnp.int32)),
    "ragged": lambda: layer([[1.0], [1.0, 2.0]]),
    "where": lambda: layer(x, where=jnp.ones(20, bool)),
    "weights": lambda: layer(x, where=jnp.ones((2, 20))),
    "tokens": lambda: layer(x, tokens=jnp.ones((2, 3), jnp.int32)),
    "floats": lambda: layer(x, tokens=jnp.ones((2, 20))),
    "segments": lambda: layer(x, segments=jnp.ones((41,), jnp.int32)),
    "path": lambda: MoELayer(config, initializers={"experts.up": nnx.initializers.ones}, rngs=nnx.Rngs(0)),
    "forward mode": lambda: jax.jvp(lambda x: layer(x)[0], (x,), (x,)),
    "forward mode of jit": lambda: jax.jvp(jax.jit(lambda x: layer(x)[0]), (x,), (x,)),
    "jit of forward mode": lambda: jax.jit(lambda x: jax.jvp(lambda x: layer(x)[0], (x,), (x,)))(x),
    "jacfwd under vmap": lambda: jax.vmap(jax.jacfwd(lambda x: layer(x)[0]))(x),
    "linearize": lambda: jax.linearize(jax.jit(lambda x: layer(x)[0]), x)[1](x),
    "forward mode of weights": lambda: jax.jvp(jax.jit(of_weights), (params,), (params,)),
}
said = {}
for name, call in calls.items():
    try:
        call()
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
WORDS = {
    "width": "the last axis of x must be d_model=8, but x has shape [2, 20, 7]",
    "axes": "the last axis of x must be d_model=8, but x has shape []",
    "ids": "x has dtype int32 but must be float; embed ids first, and give them as tokens=",
    "ragged": "x is a list, but must be one array [..., 8]; pad sequences of unequal length",
    "where": "where has shape [20], but x has [2, 20] tokens; give one entry a token, of shape [2, 20] or [40]",
    "weights": "where has dtype float32 but must be bool",
    "tokens": "tokens has shape [2, 3], but x has [2, 20] tokens",
    "floats": "tokens has dtype float32 but must be whole numbers",
    "segments": "segments has shape [41], but x has [2, 20] tokens",
    "path": "initializers for ['experts.up'] are not used; the paths are router.kernel, experts.gate_up_proj",
    "forward mode": 'use another one: MoEConfig(dispatch="dense"), or with_dispatch(layer, "dense")',
    "forward mode of jit": 'use another one: MoEConfig(dispatch="dense"), or with_dispatch(layer, "dense")',
    "jit of forward mode": 'use another one: MoEConfig(dispatch="dense"), or with_dispatch(layer, "dense")',
    "jacfwd under vmap": 'use another one: MoEConfig(dispatch="dense"), or with_dispatch(layer, "dense")',
    "linearize": 'use another one: MoEConfig(dispatch="dense"), or with_dispatch(layer, "dense")',
    "forward mode of weights": 'use another one: MoEConfig(dispatch="dense"), or with_dispatch(layer, "dense")',
}


@pytest.fixture(scope="module")
def refusals() -> dict[str, str]:
    """From a process without a type checker, as users have."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", REFUSALS], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("what", WORDS)
def test_what_the_layer_refuses(what, refusals):
    assert refusals[what].startswith("UserError: ")
    assert WORDS[what] in refusals[what]
    assert "\n" not in refusals[what]


@pytest.mark.parametrize("dispatch", ["dense", "loop", "capacity"])
def test_forward_mode_agrees_with_reverse_mode(dispatch, layer, x):
    """The product of a tangent and a cotangent, both ways."""
    twin = with_dispatch(layer, dispatch)
    tangent, cotangent = (jax.random.normal(jax.random.key(i), x.shape) for i in (1, 2))
    forward = jax.jit(lambda x: jax.jvp(lambda x: twin(x)[0], (x,), (tangent,))[1])(x)
    backward = jax.jit(lambda x: jax.vjp(lambda x: layer(x)[0], x)[1](cotangent)[0])(x)
    if dispatch != "capacity":
        np.testing.assert_allclose((forward * cotangent).sum(), (backward * tangent).sum(), rtol=1e-4)
    assert bool(jnp.isfinite(forward).all())


def test_reverse_over_reverse_agrees_or_says_what_to_use(layer, x):
    """Eagerly the loop's turns are known; under jit and vmap they are not, and forward over reverse is the way."""
    dense = with_dispatch(layer, "dense")

    def gradient_size(one):
        return jax.grad(lambda x: (jax.grad(lambda x: (one(x)[0] ** 2).sum())(x) ** 2).sum())

    np.testing.assert_allclose(gradient_size(layer)(x), gradient_size(dense)(x), rtol=1e-3, atol=1e-3)
    for transform in (jax.jit, lambda f: lambda x: jax.vmap(f)(x[None])):
        with pytest.raises(UserError, match=r"differentiate jax\.grad forwards"):
            transform(gradient_size(layer))(x)
    hessians = [jax.jit(jax.hessian(lambda x, one=one: (one(x)[0] ** 2).sum()))(x[:3]) for one in (layer, dense)]
    np.testing.assert_allclose(*hessians, rtol=1e-3, atol=1e-3)


def test_the_mark_for_reverse_mode_changes_nothing_there(layer, x):
    """Gradients of inputs, of weights alone, under remat, vmap and jit, and forward over reverse."""
    dense = with_dispatch(layer, "dense")

    def scalar(layer):
        return lambda x: (layer(x)[0] ** 2).sum()

    for wrap in (jax.grad, lambda f: jax.jit(jax.grad(f)), lambda f: jax.grad(jax.checkpoint(jax.jit(f)))):
        np.testing.assert_allclose(wrap(scalar(layer))(x), wrap(scalar(dense))(x), rtol=1e-3, atol=1e-5)
        over = [jax.jit(jax.vmap(wrap(scalar(one))))(x[:, None]) for one in (layer, dense)]
        np.testing.assert_allclose(*over, rtol=1e-3, atol=1e-5)
    hvp = [jax.jit(lambda x, one=one: jax.jvp(jax.grad(scalar(one)), (x,), (x,))[1])(x) for one in (layer, dense)]
    np.testing.assert_allclose(*hvp, rtol=1e-3, atol=1e-4)

    def of_weights(one):
        graphdef, params, rest = nnx.split(one, nnx.Param, ...)
        return jax.jit(jax.grad(lambda params: (nnx.merge(graphdef, params, rest)(x)[0] ** 2).sum()))(params)

    for ours, theirs in zip(*map(jax.tree.leaves, (of_weights(layer), of_weights(dense))), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_metadata_of_initialisers_is_kept():
    axes = ("expert", None, None)
    own = {"experts.down_proj": nnx.with_partitioning(fan_in(), axes), "router.kernel": nnx.initializers.zeros_init()}
    own |= {"shared.down_proj": nnx.with_partitioning(fan_in(), (None, "model"))}
    with nnx.use_eager_sharding(False):
        annotated = MoELayer(CONFIG, initializers=own, rngs=nnx.Rngs(0))
    plain = MoELayer(CONFIG, rngs=nnx.Rngs(0))
    assert annotated.experts.down_proj.get_metadata()["out_sharding"] == axes
    assert annotated.shared.down_proj.kernel.get_metadata()["out_sharding"] == (None, "model")
    np.testing.assert_array_equal(annotated.experts.down_proj[...], plain.experts.down_proj[...])
    np.testing.assert_array_equal(annotated.router.kernel[...], 0.0)


def test_vmap_routes_each_row_by_itself(layer, x):
    rows = x.reshape(2, 12, 8)
    np.testing.assert_allclose(jax.vmap(lambda row: layer(row)[0])(rows), layer(rows)[0], rtol=1e-4, atol=1e-6)
