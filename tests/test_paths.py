"""Names of modules and arrays: one helper, used everywhere, and one walk over the sparse layers."""

from __future__ import annotations

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

import minimoe
from minimoe import MoETransformer
from minimoe.model.paths import filled_state, misfits, named_leaves, path_name
from minimoe.moe import sparse_layers
from minimoe.training import update_router_biases

ROOT = Path(minimoe.__file__).parent


def test_no_other_file_joins_a_path_by_itself():
    joins = re.compile(r"""["'][./]["']\.join\(\[?\*?map\(str""")
    found = [
        str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if joins.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_names_lead_back_to_the_same_leaves(tiny_model):
    names = named_leaves(tiny_model, "/")
    assert "layers/0/ffn/router/kernel" in names
    assert set(names) == {path_name(path, "/") for path, _ in nnx.to_flat_state(nnx.state(tiny_model))}
    twice = filled_state(nnx.state(tiny_model), lambda name, leaf: leaf.replace(2 * names[name][...]), "/")
    for name, leaf in named_leaves(twice, "/").items():
        np.testing.assert_array_equal(leaf[...], 2 * names[name][...])


def test_misfits_are_told_together_and_not_by_the_hundred():
    wanted = {f"w{i}": (1,) for i in range(9)}
    assert misfits(wanted, wanted) == ""
    assert misfits(wanted, {}) == "missing w0, w1, w2 and 6 more"
    assert misfits({}, {"nose": (1,)}) == "unexpected nose"


def test_each_bias_moves_by_the_load_of_its_own_layer(tiny_config):
    """More than ten layers, so that an order by text would show."""
    model = MoETransformer(tiny_config.replace(num_layers=12), rngs=nnx.Rngs(0))
    layers = sparse_layers(model)
    assert layers == [block.ffn for block in model.layers]
    _, routing = model(jnp.ones((1, 4), jnp.int32))
    update_router_biases(model, routing, 0.1)
    for layer, record in zip(layers, routing, strict=True):
        wanted = 0.1 * np.sign(np.mean(np.asarray(record.load)) - np.asarray(record.load))
        np.testing.assert_allclose(layer.router.bias[...], wanted, rtol=1e-6)
