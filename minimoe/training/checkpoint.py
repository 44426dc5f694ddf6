"""Checkpoints of a training run: saved whole or not at all, and read back with errors a person can act on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from minimoe.data import Tokenizer
from minimoe.errors import UserError
from minimoe.model import MoETransformer
from minimoe.training.run_folder import STEPS_FOLDER, RunConfig, read_run_config, run_tokenizer

KEEP = 2  # checkpoints on disk: the last, and one before it


class CheckpointFolder:
    """The ``checkpoints`` of a run: saved atomically by Orbax, the last `KEEP` kept."""

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp  # half a second, and only needed once a file is touched

        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp = ocp
        self.path = (folder / STEPS_FOLDER).resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, enable_async_checkpointing=False, create=False)
        self._options = options
        self._manager: Any = None

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
        """Saves after ``step``; a kill in the middle leaves the earlier checkpoints as they were."""
        tree = {"model": _pure(model), "optimizer": _pure(optimizer)}
        manager = self._open(create=True)
        if step in self.steps():  # an interrupted run may stop twice at one step
            return
        manager.save(step, args=self._ocp.args.StandardSave(tree))
        manager.wait_until_finished()

    def restore(self, step: int, model: MoETransformer, optimizer: nnx.Optimizer | None = None) -> None:
        """Fills ``model`` (and ``optimizer``) with what was saved after ``step``.

        Raises:
          UserError: if the files are missing, damaged or of another model.
        """
        folder = self.path / str(step)
        try:
            saved = self._open(create=False).restore(step, args=self._ocp.args.StandardRestore())
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
            repair = f"delete the folder {folder} to fall back on an earlier checkpoint, or train again"
            raise UserError(f"checkpoint {folder} cannot be read ({reason}); {repair}") from error
        _fill(model, saved["model"], folder)
        if optimizer is not None:
            _fill(optimizer, saved["optimizer"], folder)

    def close(self) -> None:
        """Releases Orbax's resources."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None


def _pure(node: Any) -> dict[str, Any]:
    """Flat ``path -> array`` of a module's variables: the names on disk."""
    return {"/".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(nnx.state(node))}


def _fill(node: Any, saved: Mapping[str, Any], folder: Path) -> None:
    """Writes saved arrays into a module; every missing, unexpected or misshapen name is reported at once."""
    flat = {"/".join(map(str, path)): v for path, v in nnx.to_flat_state(nnx.state(node))}
    missing, unexpected = sorted(set(flat) - set(saved)), sorted(set(saved) - set(flat))
    wrong = [name for name in flat if name in saved and tuple(flat[name].shape) != tuple(saved[name].shape)]
    if missing or unexpected or wrong:
        raise UserError(
            f"checkpoint {folder} is of another model: missing {missing[:3]}, unexpected {unexpected[:3]}, "
            f"other shapes {wrong[:3]}; use the config.json it was trained with"
        )
    state = nnx.state(node)
    leaves = nnx.to_flat_state(state)
    filled = [v.replace(jax.numpy.asarray(saved["/".join(map(str, path))], v.dtype)) for path, v in leaves]
    nnx.update(node, nnx.from_flat_state([(path, v) for (path, _), v in zip(leaves, filled, strict=True)]))


def load_checkpoint(folder: Path | str) -> tuple[MoETransformer, Tokenizer, RunConfig]:
    """The model of a training folder's last checkpoint, its tokenizer and its config.

    Raises:
      UserError: for a folder that is missing, foreign, empty or damaged; the message says which and what to do.
    """
    folder = Path(folder)
    run = read_run_config(folder)
    checkpoints = CheckpointFolder(folder)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{folder} holds no finished checkpoint yet; continue it with `minimoe train --resume`")
    model = MoETransformer(run.model, rngs=nnx.Rngs(0))
    try:
        checkpoints.restore(steps[-1], model)
    finally:
        checkpoints.close()
    return model, run_tokenizer(folder, run), run
