"""Damage to a checkpoint of training: whatever byte of a file changes, nothing but what was saved is ever loaded."""

from __future__ import annotations

import os
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx

from minimoe import MoETransformer, UserError
from minimoe.model.paths import named_leaves
from minimoe.training import Recipe, checkpoint
from minimoe.training.checkpoint import CheckpointFolder
from minimoe.training.optim import optimizer_for


@pytest.fixture
def trained(tiny_config):
    """A model and its optimizer, moments and all away from zero."""
    model = MoETransformer(tiny_config, rngs=nnx.Rngs(1))
    optimizer = optimizer_for(model, Recipe(steps=4, batch_size=1))
    for node in (model, optimizer):
        nnx.update(node, jax.tree.map(lambda a: a + np.ones((), a.dtype), nnx.state(node)))
    return model, optimizer


def arrays(node):
    return {name: np.asarray(leaf[...]) for name, leaf in named_leaves(node).items()}


def test_a_changed_byte_is_refused_or_changes_nothing(trained, tiny_config, tmp_path):
    model, optimizer = trained
    folder = CheckpointFolder(tmp_path)
    folder.save(1, model, optimizer)
    saved = arrays(model) | {f"optimizer {name}": value for name, value in arrays(optimizer).items()}
    untouched = MoETransformer(tiny_config, rngs=nnx.Rngs(2))
    untouched = untouched, optimizer_for(untouched, Recipe(steps=4, batch_size=1))
    refusals = []
    for path in tmp_path.rglob("d/*"):
        whole = path.read_bytes()
        for part in (1, 4, 6):
            place = part * len(whole) // 8
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
            other, its = nnx.clone(untouched)
            reader = CheckpointFolder(tmp_path)
            try:
                reader.restore(1, other, its)
            except UserError as error:
                refusals.append(str(error))
                continue
            finally:
                reader.close()
            found = arrays(other) | {f"optimizer {name}": value for name, value in arrays(its).items()}
            for name, value in saved.items():
                np.testing.assert_array_equal(found[name], value, err_msg=name)
        path.write_bytes(whole)
    assert refusals
    assert all(f"delete the folder {tmp_path / 'checkpoints' / '1'}" in said for said in refusals)


def test_reads_that_end_after_the_loop_was_closed_print_nothing_and_all_else_does(trained, tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: printed.append(str(unraisable.exc_value)))
    ours = sys.unraisablehook
    folder = CheckpointFolder(tmp_path)
    folder.save(1, *trained)
    folder.restore(1, *trained)
    assert sys.unraisablehook is ours
    for _ in range(2):
        for path in tmp_path.rglob("d/*"):
            os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(UserError, match="cannot be read"):
            CheckpointFolder(tmp_path).restore(1, *trained)
        for said in ("Event loop is closed", "something else"):
            sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(said)))
    assert printed == ["something else"] * 2


def test_the_array_that_is_not_what_was_saved_is_named(trained, tiny_config, tmp_path, monkeypatch):
    """What a file system gives back wrong: the sums are those of other weights."""
    model, optimizer = trained
    real = checkpoint._sums
    wrong = dict(checkpoint._pure(model))
    wrong["norm/scale"] = wrong["norm/scale"] + np.float32(1)
    monkeypatch.setattr(checkpoint, "_sums", lambda arrays: real(wrong if "norm/scale" in arrays else arrays))
    CheckpointFolder(tmp_path).save(1, model, optimizer)
    monkeypatch.setattr(checkpoint, "_sums", real)
    with pytest.raises(UserError, match=r"checkpoints/1 is damaged: model norm\.scale is not what was saved; delete"):
        CheckpointFolder(tmp_path).restore(1, MoETransformer(tiny_config, rngs=nnx.Rngs(2)))


def test_a_checkpoint_from_before_there_were_sums_still_loads(trained, tiny_config, tmp_path, monkeypatch):
    model, optimizer = trained
    monkeypatch.setattr(checkpoint, "_sums", lambda arrays: np.zeros(1, np.uint32))
    monkeypatch.setattr(checkpoint, "SUMS", "of another kind")
    CheckpointFolder(tmp_path).save(1, model, optimizer)
    monkeypatch.undo()
    other = MoETransformer(tiny_config, rngs=nnx.Rngs(2))
    CheckpointFolder(tmp_path).restore(1, other)
    for name, value in arrays(model).items():
        np.testing.assert_array_equal(arrays(other)[name], value)
