"""Programs for other back ends: lowered for four, reloaded, run on this one with the answers of the model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe import ModelConfig, MoETransformer, UserError
from minimoe.export import PLATFORMS, StableHLOModel, export_stablehlo
from minimoe.hub import load_pretrained
from minimoe.inference import generate
from minimoe.model import copy_model
from minimoe.model.paths import named_leaves
from minimoe.training import Recipe
from minimoe.training.optim import optimizer_for
from minimoe.training.step import train_step

RECIPE = Recipe.preset("nano", steps=10)


@pytest.fixture(scope="module")
def model() -> MoETransformer:
    config = ModelConfig.preset("nano")
    moe = dataclasses.replace(config.moe, d_model=24, d_expert=8)
    config = config.replace(vocab_size=37, d_model=24, num_layers=2, context_length=19, moe=moe)
    return MoETransformer(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def exported_folder(model, tmp_path_factory) -> Path:
    return export_stablehlo(model, tmp_path_factory.mktemp("stablehlo") / "out", batch=2, recipe=RECIPE)


@pytest.fixture(scope="module")
def exported(exported_folder) -> StableHLOModel:
    return StableHLOModel(exported_folder)


def test_each_program_is_lowered_for_every_back_end(exported):
    assert set(exported.programs) == {"forward", "decode_step", "train_step"}
    assert all(program.platforms == PLATFORMS for program in exported.programs.values())


def test_forward_gives_the_logits_of_the_model_for_shorter_texts_too(model, exported):
    for length in (19, 4):
        tokens = np.random.default_rng(0).integers(0, 37, (2, length))
        np.testing.assert_allclose(exported.logits(tokens), nnx.jit(model)(tokens)[0], rtol=1e-5, atol=1e-6)


def test_decoding_step_by_step_writes_the_text_of_generate(model, exported):
    wanted = generate(model, jnp.array([[1, 2, 3]]), 12, temperature=0)[0].tolist()
    assert exported.generate([1, 2, 3], 12) == wanted


def test_three_steps_of_training_leave_the_weights_of_our_own(model, exported):
    rng = np.random.default_rng(1)
    ours = copy_model(model)
    optimizer, state = optimizer_for(ours, RECIPE), exported.initial_state()
    for seed in range(3):
        tokens = rng.integers(0, 37, (2, 20)).astype(np.int32)
        where = rng.random((2, 19)) < 0.9
        args = (tokens[:, :-1], tokens[:, 1:], where)
        state, found = exported.programs["train_step"].call(state, *args, np.uint32(seed))
        wanted = train_step(ours, optimizer, *map(jnp.asarray, args), jax.random.key(seed), recipe=RECIPE)
        np.testing.assert_allclose(found["loss"], wanted.loss, rtol=1e-5)
    for name, leaf in named_leaves(nnx.state(ours)).items():
        np.testing.assert_allclose(state[f"model.{name}"], leaf[...], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_shipped_model_for_one_back_end(tmp_path):
    model, tokenizer, _ = load_pretrained("nano")
    again = StableHLOModel(export_stablehlo(model, tmp_path / "out", tokenizer, length=12, platforms=["cpu", "tpu"]))
    ids = tokenizer.encode("In the beginning")
    assert again.generate(ids, 6) == generate(model, jnp.asarray([ids]), 6, temperature=0)[0].tolist()
    with pytest.raises(UserError, match="no training step"):
        again.initial_state()


def test_wrong_settings_leave_nothing(model, tmp_path):
    for options, said in (
        ({"platforms": ["ascend"]}, r"\['ascend'\] must be some of cpu, cuda, rocm, tpu"),
        ({"platforms": []}, "must be some of"),
        ({"length": 20}, "length=20"),
        ({"batch": 0}, "batch=0"),
    ):
        with pytest.raises(UserError, match=said):
            export_stablehlo(model, tmp_path / "out", **options)
    assert not any(tmp_path.iterdir())


def test_a_program_for_other_back_ends_alone_says_so(model, tmp_path):
    folder = export_stablehlo(model, tmp_path / "out", length=3, platforms=["cuda", "rocm"])
    with pytest.raises(UserError, match="lowered for cuda, rocm, and this is cpu"):
        StableHLOModel(folder)


def test_an_altered_program_is_not_run(model, tmp_path):
    folder = export_stablehlo(model, tmp_path / "out", length=3, platforms=["cpu"])
    (folder / "forward.jax").write_bytes(b"\0" * 99)
    with pytest.raises(UserError, match=r"forward\.jax is missing or was altered"):
        StableHLOModel(folder)


@pytest.mark.parametrize("fact", ["batch", "length", "platforms", "programs", "model", "files"])
def test_a_config_that_lacks_a_fact_is_one_line(exported_folder, fact, tmp_path):
    folder = shutil.copytree(exported_folder, tmp_path / "copy")
    values = json.loads((folder / "config.json").read_text())
    del values[fact]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"config\.json is broken \(KeyError: '{fact}'\); export again"):
        StableHLOModel(folder)


def test_text_of_the_wrong_shape_is_refused(exported):
    with pytest.raises(UserError, match=r"\[1, 4\].* 2 rows of at most 19"):
        exported.logits([[1, 2, 3, 4]])
    with pytest.raises(UserError, match=r"outside 1\.\.19"):
        exported.generate([1, 2], 18)
