"""The head for multi-token prediction where blocks are walked: calibration, smoothing, GPTQ, 8-bit training, folders."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe import MoETransformer
from minimoe.config import MTPConfig
from minimoe.hub import load, save
from minimoe.quant import (
    QuantExperts,
    QuantLinear,
    collect,
    gptq_model,
    qat_transform,
    quantize_model,
    smooth,
    with_fp8_training,
)
from minimoe.quant.fp8_training import Fp8Experts, Fp8Linear
from minimoe.training.muon import muon_labels

BLOCKS = ("layers.0", "mtp.block")
TOKENS = jnp.asarray(np.random.default_rng(0).integers(19, size=(2, 8)), jnp.int32)


@pytest.fixture(scope="module")
def model(tiny_config):
    moe = dataclasses.replace(tiny_config.moe, dispatch="dense")
    return MoETransformer(tiny_config.replace(num_layers=1, moe=moe, mtp=MTPConfig()), rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def calibration(model):
    return collect(model, [TOKENS])


@nnx.jit
def both(model):
    output = model.forward(TOKENS[:, :-1], next_tokens=TOKENS[:, 1:])
    return output.logits, output.mtp_logits


def test_calibration_sees_its_matrices(model, calibration):
    """A window of 8 has 7 places with a next token."""
    own = {name for name in calibration.matrices if name.startswith("mtp.")}
    block = {name.removeprefix("layers.0.") for name in calibration.matrices if name.startswith("layers.0.")}
    assert own == {"mtp.join_proj"} | {f"mtp.block.{name}" for name in block}
    assert calibration["layers.0.attention.q_proj"].rows == 16
    assert calibration["mtp.block.attention.q_proj"].rows == calibration["mtp.join_proj"].rows == 14
    assert calibration["mtp.block.ffn.experts.down_proj"].rows.sum() == 14 * model.config.moe.top_k


def test_smoothing_changes_its_norms_and_not_what_it_says(model, calibration):
    smoothed = smooth(model, calibration, power_of_two=True)
    for found, want in zip(both(smoothed), both(model), strict=True):
        np.testing.assert_allclose(found, want, atol=1e-5)
    before, after = (m.mtp.block.attention_norm.scale[...] for m in (model, smoothed))
    assert bool((before != after).any())


def test_gptq_rounds_its_experts(model, calibration):
    plain, better = quantize_model(model, "int4"), gptq_model(model, calibration, "int4", min_rows=0)
    for one in (plain, better):
        assert isinstance(one.mtp.block.ffn.experts, QuantExperts)
        assert isinstance(one.mtp.join_proj, QuantLinear)
    codes = [np.asarray(one.mtp.block.ffn.experts.gate_up.codes) for one in (plain, better)]
    assert (codes[0] != codes[1]).any()


def test_it_trains_with_8_bit_products_as_the_blocks_do(model):
    block = with_fp8_training(model).mtp.block
    assert isinstance(block.attention.q_proj, Fp8Linear)
    assert isinstance(block.ffn.experts, Fp8Experts)
    assert type(with_fp8_training(model).mtp.join_proj) is nnx.Linear, "attention and feed-forward layers alone"


@pytest.mark.parametrize("recipe", [None, "v4"])
def test_a_folder_holds_it(recipe, model, tmp_path):
    kept = model if recipe is None else quantize_model(model, recipe)
    again, _, config = load(save(kept, tmp_path / "saved"))
    assert config == model.config
    assert jax.tree.structure(nnx.state(again)) == jax.tree.structure(nnx.state(kept))
    for found, want in zip(*(jax.tree.leaves(nnx.state(m)) for m in (again, kept)), strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(want))


def test_rounding_in_training_takes_its_experts(model):
    targets = {".".join(map(str, path)) for path, *_ in qat_transform(model, "mxfp4").targets}
    assert targets == {f"{block}.ffn.experts.{name}_proj" for block in BLOCKS for name in ("down", "gate_up")}


def test_muon_takes_its_matrices(model):
    labels = muon_labels(nnx.state(model, nnx.Param))
    assert labels["mtp.join_proj.kernel"] == labels["mtp.block.ffn.experts.down_proj"] == "muon"
    assert labels["mtp.norm.scale"] == "adamw"
