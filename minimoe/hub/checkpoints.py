"""A CHECKPOINT, everywhere: a training folder, a saved folder, or the name of a model that comes with the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from minimoe.config import ModelConfig
from minimoe.data import Tokenizer
from minimoe.errors import UserError
from minimoe.files import named_path
from minimoe.hub.folder import TENSOR_FILE, is_saved_folder, load, read_config
from minimoe.hub.layouts import is_transformers_folder, source_of
from minimoe.hub.pretrained import WEIGHTS, shipped
from minimoe.model import MoETransformer
from minimoe.training.checkpoint import CheckpointFolder, load_checkpoint
from minimoe.training.run_folder import read_run_config


def resolve(checkpoint: str | os.PathLike[str]) -> tuple[MoETransformer, Tokenizer | None, ModelConfig, str]:
    """Loads any checkpoint. A folder goes before a shipped model of the same name.

    Args:
      checkpoint: a training folder (its last step), a folder made by `minimoe.hub.save` or by
        Transformers, or a name in `shipped`.

    Returns:
      Model, tokenizer (None if a saved folder has none), config, and one line that says what it is.

    Raises:
      UserError: if there is no such thing, listing the shipped names; or if it is damaged.
    """
    folder = named_path(checkpoint)
    if not folder.exists():
        names = shipped()
        if str(checkpoint) in names:
            return *names[str(checkpoint)](), f"shipped model {checkpoint}"
        listed = ", ".join(names) or "none yet"
        known = f"there is no such folder, and the models that come with the package are: {listed}"
        raise UserError(f"checkpoint {checkpoint} does not exist: {known}; train one with `minimoe train --out FOLDER`")
    if is_transformers_folder(folder):
        return *load(folder), f"folder {folder} in the layout of Transformers"
    if _is_saved(folder):
        stored = read_config(folder)["quantization"]
        model, tokenizer, config = load(folder)
        return model, tokenizer, config, f"saved folder {folder} ({stored['recipe'] if stored else 'not quantized'})"
    model, tokenizer, run = load_checkpoint(folder)
    return model, tokenizer, run.model, f"training folder {folder}, step {CheckpointFolder(folder).steps()[-1]}"


def resolve_with_tokenizer(checkpoint: str | os.PathLike[str]) -> tuple[MoETransformer, Tokenizer, ModelConfig, str]:
    """`resolve` for whoever needs text.

    Raises:
      UserError: also if it was saved without its tokenizer.
    """
    model, tokenizer, config, description = resolve(checkpoint)
    if tokenizer is None:
        raise UserError(f"{description} holds no tokenizer, so it cannot read text; save it again with its tokenizer")
    return model, tokenizer, config, description


def provenance_of(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """Where a checkpoint comes from, as its folder tells: step, training recipe, data with its hash, versions."""
    folder = named_path(checkpoint)
    if not folder.is_dir():
        made = read_config(WEIGHTS / str(checkpoint))["provenance"] if str(checkpoint) in shipped() else {}
        return {"shipped": str(checkpoint), **made}
    if is_transformers_folder(folder):
        return source_of(folder)
    if _is_saved(folder):
        return dict(read_config(folder)["provenance"])
    run = read_run_config(folder)
    step = max(CheckpointFolder(folder).steps(), default=0)
    return {
        "step": step,
        "recipe": run.recipe.to_dict(),
        "data": dict(run.data),
        "versions": dict(run.versions),
    }


def _is_saved(folder: Path) -> bool:
    return (folder / TENSOR_FILE).is_file() or is_saved_folder(folder)
