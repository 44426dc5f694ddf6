"""A folder that Transformers wrote, as a model of ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe.checks import dtype_name
from minimoe.config import ModelConfig
from minimoe.cost import count_params
from minimoe.data import Tokenizer, check_vocabulary, load_tokenizer
from minimoe.data.tokenizer import TOKENIZER_FILE
from minimoe.errors import UserError
from minimoe.files import named_path
from minimoe.hub.layouts.coded_read import CodedShards
from minimoe.hub.layouts.codes import Coding
from minimoe.hub.layouts.families import LAYOUTS
from minimoe.hub.layouts.kept_codes import with_codes
from minimoe.hub.layouts.layout import Layout, Row, same
from minimoe.hub.layouts.settings import CONFIG_FILE, COPY, Settings
from minimoe.hub.layouts.shards import INDEX, Shards
from minimoe.hub.layouts.source import check_file, records_of
from minimoe.hub.layouts.tokens import end_token
from minimoe.hub.names import abstract_model
from minimoe.model import MoETransformer
from minimoe.model.paths import filled_state, misfits, named_leaves
from minimoe.quant.report import STORED


def from_transformers(
    folder: str | os.PathLike[str], *, dtype: Any = "float32", keep_codes: bool = False
) -> MoETransformer:
    """Reads a local folder that ``save_pretrained`` of Transformers wrote, or that was published in its form.

    The tensors are read one after the other: beside the model, one array of it is in memory. A tokenizer is not read.
    Layers for multi-token prediction are left out: the next token does not depend on them.

    Codes become exactly the numbers that they stand for. Transformers rounds these numbers to bfloat16 while it loads, so
    logits differ by a few hundredths. They differ by more than 1 at a token where two experts are nearly tied and the
    rounding changes which one is chosen. With our choice of experts imposed on it, Transformers stays within hundredths there
    too. It happens to `nano` and `small` in FP8, in about two of a thousand choices, and not to `v4-nano` and `v4-small`.

    Args:
      folder: holds config.json and model.safetensors, or several safetensors files and their index.
      dtype: of the stored weights and of the matmuls; router weights and norms compute in float32 always.
      keep_codes: FP8 and FP4 weights stay the codes that the files hold, see `minimoe.hub.layouts.kept_codes`. They become
        floats otherwise.

    Returns:
      The model; its ``config`` says what it is.

    Raises:
      UserError: for an unknown ``model_type``; for a value of config.json that our models cannot express, naming it;
        for a file that is missing, broken or, in a folder that `to_transformers` wrote, altered; for tensors that are
        missing, unexpected or of a wrong shape, by name.

    Example:
      >>> from_transformers("no/such/folder")
      Traceback (most recent call last):
      minimoe.errors.UserError: no/such/folder does not exist; name a folder made by save_pretrained of Transformers
    """
    folder, dtype = named_path(folder), dtype_name("dtype", dtype, owner="from_transformers")
    layout, settings, config = read_config(folder, dtype)
    coding, records = Coding.read(settings), records_of(settings)
    check_file(folder, INDEX, records)
    with Shards(folder, records) if coding is None else CodedShards(folder, coding, records) as shards:
        _check_size(config, shards)
        config, rows, left = _tied(layout, config, shards)
        graphdef, state = abstract_model(config)
        _check(named_leaves(state), rows, shards, lambda name: name == left or layout.ignored(name, settings))
        shards.check_index()

        def read(name: str, leaf: Any) -> Any:
            return _filled(leaf, rows[name], shards, mark=keep_codes)

        model = nnx.merge(graphdef, filled_state(state, read))
        if not keep_codes:
            return model
        if coding is None or not isinstance(shards, CodedShards):
            raise UserError(f"{folder} holds plain floats, no codes to keep; leave keep_codes out")
        return with_codes(model, rows, shards, coding, lambda row, shape, tensor: _read(row, shards, shape, tensor))


def _filled(leaf: Any, row: Row, shards: Shards, mark: bool) -> Any:
    """The leaf with its array; ``mark`` says of what is bfloat16 in the files that it can be stored so again."""
    if not row.names:
        return leaf.replace(jnp.zeros(leaf.shape, leaf.dtype))
    dtypes = set()

    def tensor(name: str) -> np.ndarray:
        dtypes.add(shards.dtype(name))
        array = shards.read(name)
        if array.dtype.kind == "i" and jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(f"{shards.folder}: {name} holds whole numbers ({array.dtype}) in place of floats; {COPY}")
        return array

    new = leaf.replace(jnp.asarray(_read(row, shards, leaf.shape, tensor), leaf.dtype))
    if mark and dtypes == {"bfloat16"} and isinstance(leaf, nnx.Param):
        new.set_metadata(**{STORED: "bfloat16"})
    return new


def load_transformers(
    folder: Path, *, dtype: Any = "float32", keep_codes: bool = False
) -> tuple[MoETransformer, Tokenizer | None, ModelConfig]:
    """`from_transformers` with the tokenizer of the folder (None if it has no tokenizer.json) and the config.

    Raises:
      UserError: also for a tokenizer that is not byte-level BPE, or has more ids than the model.
    """
    model = from_transformers(folder, dtype=dtype, keep_codes=keep_codes)
    if not (folder / TOKENIZER_FILE).is_file():
        return model, None, model.config
    check_file(folder, TOKENIZER_FILE, records_of(Settings.read(folder)))
    try:
        tokenizer = load_tokenizer(folder / TOKENIZER_FILE, end_token(folder))
    except UserError as error:
        raise UserError(f"{error}; without that file the folder loads, and the model takes token ids") from None
    check_vocabulary(tokenizer, model.config.vocab_size, f"{folder}: {COPY}")
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


def _tied(layout: Layout, config: ModelConfig, shards: Shards) -> tuple[ModelConfig, dict[str, Row], str | None]:
    """What ``tie_word_embeddings: true`` comes to with the tensors that are there, as Transformers decides it.

    Embedding and head stored, and equal: tied, and the head is left out. Stored, and different: not tied, whatever
    config.json says. The head alone: it is the embedding too.

    Returns:
      The config, the rows of its model, and the name of a tensor that is left out.

    Raises:
      UserError: if there is no head, and the embedding is not said to be one.
    """
    apart = config.replace(tie_embeddings=False)
    rows, rows_apart = layout.rows(config), layout.rows(apart)
    kernel, (embed,) = rows_apart["head.kernel"], rows_apart["embed.embedding"].names
    head = next((name for name in kernel.names + kernel.files if name in shards.shapes), None)
    if head is None and not config.tie_embeddings:
        raise UserError(
            f"{shards.folder} has no {kernel.names[0]}, and its config.json does not say tie_word_embeddings: true; "
            f"write that where the embedding is the head too, else {COPY}"
        )
    if head is None or not config.tie_embeddings:
        return config, rows, None
    if embed not in shards.shapes:
        return config, rows | {"embed.embedding": same(head)}, None
    if shards.shapes[embed] == shards.shapes[head] and np.array_equal(shards.read(embed), shards.read(head)):
        return config, rows, head
    return apart, rows_apart, None


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


def _read(row: Row, shards: Shards, shape: tuple[int, ...], tensor: Callable[[str], np.ndarray]) -> np.ndarray:
    """One array of ours; ``tensor`` reads one of theirs by its name."""
    if _in_memory_form(row, shards):
        return row.from_memory(tensor)
    return row.from_files(tensor, num_experts=shape[0])


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
    # a tensor without elements is no part of a model: Transformers writes the matrices of no shared experts
    found = {n: shape for n, shape in shards.shapes.items() if n in wanted or (0 not in shape and not ignored(n))}
    said = misfits(wanted, found)
    if said:
        raise UserError(f"the tensors of {shards.folder} do not fit its {CONFIG_FILE}: {said}; {COPY}")
