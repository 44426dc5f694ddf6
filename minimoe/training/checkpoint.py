"""Checkpoints of a training run: saved whole or not at all, and read back with errors a person can act on."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from minimoe.config import ModelConfig
from minimoe.data import Tokenizer
from minimoe.errors import UserError
from minimoe.files import UNFINISHED, named_path, sync_folder, writing
from minimoe.model import MoETransformer, without_arrays
from minimoe.model.paths import filled_state, misfits, named_leaves
from minimoe.training.late_reports import reported_once
from minimoe.training.run_folder import STEPS_FOLDER, RunConfig, check_path, read_run_config, run_tokenizer

SUMS = "crc32"  # part of a checkpoint: a checksum of each array of the other parts, in the order of their names
KEEP = 2  # checkpoints on disk: the last, and one before it
Shapes = Mapping[str, tuple[int, ...]]  # of arrays, by name


class CheckpointFolder:
    """The ``checkpoints`` of a run: saved atomically by Orbax with a CRC-32 of each array, the last `KEEP` kept."""

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp  # half a second, and only needed once a file is touched

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails is raised too, and said once
        self._ocp = ocp
        check_path(folder)
        self.path = (folder / STEPS_FOLDER).resolve()
        settings: dict[str, Any] = {"max_to_keep": KEEP, "enable_async_checkpointing": False, "create": False}
        self._alone: dict[str, Any] = {}
        if jax.process_count() > 1:  # one process reads and writes: Orbax must not wait for the others
            here = jax.process_index()
            alone = ocp.options.MultiprocessingOptions(
                primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
            )
            self._alone = {"multiprocessing_options": alone}
        self._options = ocp.CheckpointManagerOptions(**settings, **self._alone)
        self._manager: Any = None
        self._saved = False

    def _open(self, create: bool) -> Any:
        if self._manager is None:
            if create:
                self.path.mkdir(parents=True, exist_ok=True)
            self._manager = self._ocp.CheckpointManager(self.path, options=self._options)
        return self._manager

    def steps(self) -> list[int]:
        """Steps that were saved completely, in order."""
        if not self.path.is_dir():
            return []
        return sorted(int(p.name) for p in self.path.iterdir() if p.name.isdigit() and p.is_dir())

    def save(self, step: int, model: MoETransformer, optimizer: nnx.Optimizer) -> None:
        """Saves after ``step``; a kill in the middle leaves the earlier checkpoints as they were.

        It counts as saved once the names and shapes that are on disk were read back.

        Raises:
          UserError: if the disk is full or fails in another way; the earlier checkpoints are as they were.
        """
        if step in self.steps():  # an interrupted run may stop twice at one step
            return
        tree = {"model": _pure(model), "optimizer": _pure(optimizer)}
        tree[SUMS] = {part: _sums(arrays) for part, arrays in tree.items()}
        with writing(self.path), reported_once():
            try:
                if not self._saved:  # what a killed run left takes the room of a checkpoint
                    self._remove_unfinished()
                self._save(step, tree)
                self._saved = True
            except BaseException:
                self._remove_unfinished()
                raise

    def _save(self, step: int, tree: dict[str, dict[str, Any]]) -> None:
        if _is_pattern(self.path):
            self._save_elsewhere(step, tree)
            return
        manager = self._open(create=True)
        manager.save(step, args=self._ocp.args.StandardSave(tree))
        manager.wait_until_finished()
        self._read_back(self.path, step, tree)

    def _remove_unfinished(self) -> None:
        """Gives the room of saves that failed, or were killed, back to a disk that may be full."""
        with contextlib.suppress(OSError):
            for path in self.path.iterdir():
                if UNFINISHED in path.name or ".orbax-checkpoint-tmp" in path.name:
                    shutil.rmtree(path, ignore_errors=True)

    def _save_elsewhere(self, step: int, tree: dict[str, dict[str, Any]]) -> None:
        """For a path that Orbax would take for a pattern of names: saved in a temporary folder, then moved here."""
        self.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            with self._ocp.CheckpointManager(scratch, options=self._options) as manager:
                manager.save(step, args=self._ocp.args.StandardSave(tree))
                manager.wait_until_finished()
                self._read_back(Path(scratch), step, tree)
            arriving = self.path / f"{UNFINISHED}{step}"
            shutil.rmtree(arriving, ignore_errors=True)
            shutil.copytree(Path(scratch, str(step)), arriving)
        os.replace(arriving, self.path / str(step))
        sync_folder(self.path)
        for old in self.steps()[:-KEEP]:
            shutil.rmtree(self.path / str(old))

    def _read_back(self, folder: Path, step: int, tree: dict[str, dict[str, Any]]) -> None:
        """What is on disk must have the names and shapes that were to be saved."""
        saved = self._shapes(folder, step)
        for part, arrays in tree.items():
            there = saved.get(part, {})
            if there != {name: tuple(array.shape) for name, array in arrays.items()}:
                shutil.rmtree(folder / str(step), ignore_errors=True)
                raise UserError(
                    f"the checkpoint of step {step} in {self.path} is not what was saved ({part}: {len(there)} of "
                    f"{len(arrays)} arrays); the disk may be failing, choose another folder"
                )

    def _shapes(self, folder: Path, step: int) -> Mapping[str, Shapes]:
        """Names and shapes of each part of a checkpoint, as they are on disk."""
        with self._ocp.StandardCheckpointer(**self._alone) as reader:
            found = reader.metadata(folder / str(step) / "default").item_metadata
        return {part: {name: tuple(one.shape) for name, one in dict(ones).items()} for part, ones in found.tree.items()}

    def check(self, step: int, config: ModelConfig) -> None:
        """Compares names and shapes with those of a config's model, which is not built for it.

        Raises:
          UserError: if they differ; a config that asks for thousands of layers is told so at once.
        """
        folder = self.path / str(step)
        with _readable(folder):
            there = self._shapes(self.path, step)["model"]
        layers = len({name.split("/")[1] for name in there if name.startswith("layers/")})
        if layers != config.num_layers:
            raise UserError(
                f"the config says num_layers={config.num_layers}, but checkpoint {folder} holds {layers}; "
                "use the config.json it was trained with"
            )
        _check_names(_named_shapes(without_arrays(config)), there, folder)

    def restore(self, step: int, model: MoETransformer, optimizer: nnx.Optimizer | None = None) -> None:
        """Fills ``model`` (and ``optimizer``) with what was saved after ``step``.

        Raises:
          UserError: if the files are missing, damaged or of another model.
        """
        folder = self.path / str(step)
        with _readable(folder):
            saved = self._open(create=False).restore(step, args=self._ocp.args.StandardRestore())
        for part, node in (("model", model), ("optimizer", optimizer)):
            if node is not None:
                _check_sums(part, saved, folder)
                _fill(node, saved[part], folder)

    def close(self) -> None:
        """Releases Orbax's resources."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None


def _is_pattern(path: Path) -> bool:
    """Whether Orbax, which looks for files by patterns, would take the path itself for one."""
    return any(character in str(path) for character in "*?[")


def _pure(node: Any) -> dict[str, Any]:
    """Flat ``path -> array`` of a module's variables: the names on disk."""
    arrays = {name: variable[...] for name, variable in named_leaves(node, "/").items()}
    # Among several processes Orbax takes a JAX array for a part of one, but a NumPy array for a whole one.
    return arrays if jax.process_count() == 1 else jax.device_get(arrays)


def _sums(arrays: Mapping[str, Any]) -> np.ndarray:
    """CRC-32 of the bytes of each array, in the order of names. TensorStore notices some damage to its files, not all."""
    bytes_of = (np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8) for name in sorted(arrays))
    return np.array([zlib.crc32(one.data) for one in bytes_of], np.uint32)


def _check_sums(part: str, saved: Mapping[str, Any], folder: Path) -> None:
    """Raises:
    UserError: if an array is not what was saved. Checkpoints from before there were sums pass.
    """
    if part not in saved.get(SUMS, {}):
        return
    there, wanted = _sums(saved[part]), np.asarray(saved[SUMS][part])
    if there.shape != wanted.shape or (there != wanted).any():
        wrong = [name for name, a, b in zip(sorted(saved[part]), there, wanted, strict=False) if a != b]
        named = f"{part} {wrong[0].replace('/', '.')}" if wrong else part
        raise UserError(f"checkpoint {folder} is damaged: {named} is not what was saved; {_repair(folder)}")


def _repair(folder: Path) -> str:
    return f"delete the folder {folder} to fall back on an earlier checkpoint, or train again"


def _fill(node: Any, saved: Mapping[str, Any], folder: Path) -> None:
    """Writes saved arrays into a module; every missing, unexpected or misshapen name is reported at once."""
    _check_names(_named_shapes(node), {name: tuple(array.shape) for name, array in saved.items()}, folder)

    def read(name: str, variable: Any) -> Any:
        return variable.replace(jax.numpy.asarray(saved[name], variable.dtype))

    nnx.update(node, filled_state(nnx.state(node), read, "/"))


def _named_shapes(node: Any) -> Shapes:
    """Of a module's variables, abstract ones too."""
    return {name: tuple(variable.shape) for name, variable in named_leaves(node, "/").items()}


def _check_names(wanted: Shapes, saved: Shapes, folder: Path) -> None:
    said = misfits(wanted, saved)
    if said:
        raise UserError(f"checkpoint {folder} is of another model: {said}; use the config.json it was trained with")


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise for a damaged file, which is of many kinds, into one line."""
    try:
        with reported_once():
            yield
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        if isinstance(error, AttributeError):  # Orbax found no description of the arrays and went on with None
            reason = "its description of the arrays, _METADATA or a file beside it, is missing or damaged"
        raise UserError(f"checkpoint {folder} cannot be read ({reason}); {_repair(folder)}") from error


def load_checkpoint(folder: Path | str) -> tuple[MoETransformer, Tokenizer, RunConfig]:
    """The model of a training folder's last checkpoint, its tokenizer and its config.

    Raises:
      UserError: for a folder that is missing, foreign, empty or damaged; the message says which and what to do.
    """
    folder = named_path(folder)
    run = read_run_config(folder)
    checkpoints = CheckpointFolder(folder)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{folder} holds no finished checkpoint yet; continue it with `minimoe train --resume`")
    try:
        checkpoints.check(steps[-1], run.model)
        model = without_arrays(run.model)  # random weights would be made only to be written over
        checkpoints.restore(steps[-1], model)
    finally:
        checkpoints.close()
    return model, run_tokenizer(folder, run), run
