"""A folder that Transformers wrote, as a model of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe.checks import dtype_name
from minimoe.config import ModelConfig
from minimoe.cost import count_params
from minimoe.data import Tokenizer, load_tokenizer
from minimoe.data.tokenizer import TOKENIZER_FILE
from minimoe.errors import UserError
from minimoe.hub.layouts.coded_read import CodedShards
from minimoe.hub.layouts.codes import Coding
from minimoe.hub.layouts.families import LAYOUTS
from minimoe.hub.layouts.layout import Layout, Row
from minimoe.hub.layouts.settings import CONFIG_FILE, COPY, Settings
from minimoe.hub.layouts.shards import Shards
from minimoe.hub.names import abstract_model
from minimoe.model import MoETransformer
from minimoe.model.paths import filled_state, misfits, named_leaves


def from_transformers(folder: str | os.PathLike[str], *, dtype: Any = "float32") -> MoETransformer:
    """Reads a local folder that ``save_pretrained`` of Transformers wrote, or that was published in its form.

    The tensors are read one after the other: beside the model, one array of it is in memory. A tokenizer is not read.
    Layers for multi-token prediction are left out: the next token does not depend on them.

    Args:
      folder: holds config.json and model.safetensors, or several safetensors files and their index.
      dtype: of the stored weights and of the matmuls; router weights and norms compute in float32 always.

    Returns:
      The model; its ``config`` says what it is.

    Raises:
      UserError: for an unknown ``model_type``; for a value of config.json that our models cannot express, naming it;
        for a file that is missing or broken; for tensors that are missing, unexpected or of a wrong shape, by name.

    Example:
      >>> from_transformers("no/such/folder")
      Traceback (most recent call last):
      minimoe.errors.UserError: no/such/folder does not exist; name a folder made by save_pretrained of Transformers
    """
    folder, dtype = Path(folder), dtype_name("dtype", dtype, owner="from_transformers")
    layout, settings, config = read_config(folder, dtype)
    coding = Coding.read(settings)
    with Shards(folder) if coding is None else CodedShards(folder, coding) as shards:
        _check_size(config, shards)
        graphdef, state = abstract_model(config)
        rows = layout.rows(config)
        _check(named_leaves(state), rows, shards, lambda name: layout.ignored(name, settings))

        def read(name: str, leaf: Any) -> Any:
            array = np.zeros(leaf.shape) if not rows[name].names else _read(rows[name], shards, leaf.shape)
            return leaf.replace(jnp.asarray(array, leaf.dtype))

        return nnx.merge(graphdef, filled_state(state, read))


def load_transformers(folder: Path, *, dtype: Any = "float32") -> tuple[MoETransformer, Tokenizer | None, ModelConfig]:
    """`from_transformers` with the tokenizer of the folder (None if it has no tokenizer.json) and the config.

    Raises:
      UserError: also for a tokenizer that is not byte-level BPE, or has more ids than the model.
    """
    model = from_transformers(folder, dtype=dtype)
    if not (folder / TOKENIZER_FILE).is_file():
        return model, None, model.config
    try:
        tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    except UserError as error:
        raise UserError(f"{error}; without that file the folder loads, and the model takes token ids") from None
    if tokenizer.vocab_size > model.config.vocab_size:
        many = f"{folder / TOKENIZER_FILE} has {tokenizer.vocab_size} ids but the model knows {model.config.vocab_size}"
        raise UserError(f"{many}; {COPY}")
    return model, tokenizer, model.config


def is_transformers_folder(folder: Path) -> bool:
    """Whether its config.json names a ``model_type``, as those of Transformers do and ours do not."""
    try:
        return "model_type" in Settings.read(folder).values
    except UserError:
        return False


def read_config(folder: Path, dtype: str) -> tuple[Layout, Settings, ModelConfig]:
    """What config.json says: the layout, the values as they stand there, and the config of our model."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; name a folder made by save_pretrained of Transformers")
    settings = Settings.read(folder)
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise UserError(f"{settings.source}: model_type={model_type!r} is not known; choose one of {known}")
    layout = LAYOUTS[model_type]
    try:
        return layout, settings, layout.read_config(settings, dtype)
    except UserError as error:
        said = str(error)
        raise error if said.startswith(settings.source) else UserError(f"{settings.source}: {said}") from error
    except Exception as error:  # a text where a number must be, a number without end, ...
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{settings.source} is broken ({reason[:200]}); {COPY}") from error


def _check_size(config: ModelConfig, shards: Shards) -> None:
    """Refuses a config of another size than the files, from counts alone: to build such a model could take all memory.

    Raises:
      UserError: if the files cannot hold so many parameters.
    """
    params = count_params(config).total
    room = 2 * shards.bytes if isinstance(shards, CodedShards) else shards.bytes  # four bits a value or more; two bytes
    if params > room:
        found = f"{params:,} parameters against {shards.bytes:,} bytes of tensors"
        raise UserError(f"the tensors of {shards.folder} do not fit its {CONFIG_FILE}: {found}; {COPY}")


def _in_memory_form(row: Row, shards: Shards) -> bool:
    """Whether the file has the tensors under the names that they have in memory."""
    return not row.files or all(name in shards.shapes for name in row.names)


def _read(row: Row, shards: Shards, shape: tuple[int, ...]) -> np.ndarray:
    if _in_memory_form(row, shards):
        return row.from_memory(shards.read)
    return row.from_files(shards.read, num_experts=shape[0])


def _check(leaves: dict[str, Any], rows: dict[str, Row], shards: Shards, ignored: Any) -> None:
    """Names and shapes of all tensors, before any is read."""
    if set(leaves) != set(rows):
        raise AssertionError(f"the table and the model differ in {sorted(set(leaves) ^ set(rows))}")
    wanted: dict[str, tuple[int, ...]] = {}
    for ours, row in rows.items():
        shape = leaves[ours].shape
        nothing = np.broadcast_to(np.int8(0), shape)  # takes no memory: only the shapes of its parts are wanted
        form = row.to_memory(nothing) if _in_memory_form(row, shards) else row.to_files(nothing, num_experts=shape[0])
        wanted |= {name: part.shape for name, part in form.items()}
    found = {name: shape for name, shape in shards.shapes.items() if name in wanted or not ignored(name)}
    said = misfits(wanted, found)
    if said:
        raise UserError(f"the tensors of {shards.folder} do not fit its {CONFIG_FILE}: {said}; {COPY}")
