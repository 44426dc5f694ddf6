"""One rule for every ``where`` of the package: boolean, of the exact shape; checked while JAX traces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from minimoe import UserError
from minimoe.layers import as_mask

# name: (call with a mask, shape that the mask must have). Evaluated in a process without a type checker, as users have.
CALLS = """
import json
import jax, jax.numpy as jnp
from flax import nnx
from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, MoELayer, MoETransformer
from minimoe.distill import *
from minimoe.distill.losses import masked_mean
from minimoe.moe import *
from minimoe.quant import INT8_CHANNEL, quantize
from minimoe.quant.calibrate import summary
from minimoe.quant.report import routing_changes
from minimoe.training.evaluate import eval_step
from minimoe.training.step import lm_loss, router_losses, sequence_loss

p, ids = jnp.full((6, 4), 0.25), jnp.tile(jnp.array([[0, 2]]), (6, 1))
config = MoEConfig(8, 4, 4, 2)
x, layer = jnp.ones((6, 8)), MoELayer(config, rngs=nnx.Rngs(0))
sizes = ModelConfig(19, 8, 1, GroupedQueryConfig(2, 1, 4), context_length=16, moe=config)
model = MoETransformer(sizes, rngs=nnx.Rngs(0))
rows, logits = jnp.zeros((2, 4), jnp.int32), jnp.zeros((2, 4, 19))
_, routing = model(rows)
best = logits[..., :2], jnp.tile(jnp.arange(2), (2, 4, 1)), jnp.zeros((2, 4))
CALLS = {
    "load_balance_loss": (lambda w: load_balance_loss(p, ids, where=w), (6,)),
    "sequence_balance_loss": (lambda w: sequence_balance_loss(p, ids, ids[:, 0], 3, where=w), (6,)),
    "global_balance_loss": (lambda w: global_balance_loss(p, jnp.ones(4), where=w), (6,)),
    "importance_loss": (lambda w: importance_loss(p[:, :2], ids, 4, where=w), (6,)),
    "z_loss": (lambda w: z_loss(p, where=w), (6,)),
    "expert_load": (lambda w: expert_load(ids, 4, w), (6,)),
    "select_expert_choice": (lambda w: select_expert_choice(p, 2, where=w), (6,)),
    "Router": (lambda w: layer.router(x, where=w), (6,)),
    "MoELayer": (lambda w: layer(x, where=w), (6,)),
    "MoETransformer": (lambda w: model(rows, where=w), (2, 4)),
    "lm_loss": (lambda w: lm_loss(logits, rows, w), (2, 4)),
    "router_losses": (lambda w: router_losses(routing, w), (8,)),
    "eval_step": (lambda w: eval_step(model, rows, rows, w), (2, 4)),
    "routing_changes": (lambda w: routing_changes(model, model, rows, where=w), (2, 4)),
    "summary": (lambda w: summary(x, w), (6,)),
    "quantize": (lambda w: quantize(x, INT8_CHANNEL, where=w), (6, 8)),
    "forward_kl": (lambda w: forward_kl(logits, logits, where=w), (2, 4)),
    "reverse_kl": (lambda w: reverse_kl(logits, logits, where=w), (2, 4)),
    "generalized_jsd": (lambda w: generalized_jsd(logits, logits, where=w), (2, 4)),
    "hinton_kd": (lambda w: hinton_kd(logits, logits, rows, where=w), (2, 4)),
    "topk_kl": (lambda w: topk_kl(logits, *best, where=w), (2, 4)),
    "hidden_state_matching": (lambda w: hidden_state_matching(logits, logits, where=w), (2, 4)),
    "masked_mean": (lambda w: masked_mean(logits[..., 0], w), (2, 4)),
}

def said(name, call, where):
    try:
        if name in ("routing_changes", "eval_step"):  # compiled by themselves
            call(where)
        else:
            jax.eval_shape(call, where)
    except Exception as error:
        return type(error).__name__ + ": " + str(error)
    return "accepted"

found = {}
for name, (call, shape) in CALLS.items():
    masks = {
        "right": jnp.ones(shape, bool),
        "int": jnp.ones(shape, jnp.int32),
        "float": jnp.ones(shape),
        "scalar": jnp.array(True),
        "last": jnp.ones(shape[-1:] if len(shape) > 1 else (1,), bool),
        "more": jnp.ones((*shape, 1), bool),
    }
    found[name] = {kind: said(name, call, mask) for kind, mask in masks.items()}
print(json.dumps(found))
"""
NAMES = [line.split('"')[1] for line in CALLS.splitlines() if line.startswith('    "')]


@pytest.fixture(scope="module")
def messages() -> dict[str, dict[str, str]]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_every_where_follows_one_rule(name, messages):
    found = messages[name]
    assert found["right"] == "accepted"
    for dtype, shown in (("int", "int32"), ("float", "float32")):
        assert found[dtype].startswith("UserError: "), found
        assert f"where has dtype {shown} but must be bool; compare first, as in where != 0" in found[dtype]
    for shape in ("scalar", "last", "more"):
        assert found[shape].startswith("UserError: "), found
        assert "where has shape [" in found[shape]


def test_a_mask_is_returned_as_an_array():
    np.testing.assert_array_equal(as_mask([True, False], (2,), "me"), [True, False])
    np.testing.assert_array_equal(as_mask(np.array([True, False]), (2,), "me"), [True, False])
    np.testing.assert_array_equal(as_mask(None, (2, 1), "me"), [[True], [True]])


def test_the_message_names_both_shapes():
    wanted = (
        r"me: where has shape \[4\] but must have \[2, 4\], one entry a position; expand it, as in jnp\.broadcast_to"
    )
    with pytest.raises(UserError, match=wanted):
        as_mask(jnp.ones(4, bool), (2, 4), "me")
