"""A saved model: one folder that holds everything needed to run it, float or quantized.

out/config.json         format, model config, how each quantized array is stored, provenance, sizes and checksums
    model.safetensors   codes, scales, zero points and float arrays, under the model's own names
    tokenizer.json      the tokenizer, if it needs a file

The folder is as small as its bits: 4-bit codes lie two in a byte, and what was bfloat16 stays bfloat16. `load` never
makes a float copy of the model: it builds the model without any array and then fills in one array after the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minimoe.config import ModelConfig
from minimoe.data import Tokenizer, check_vocabulary, load_tokenizer
from minimoe.data.tokenizer import TOKENIZER_FILE
from minimoe.errors import UserError
from minimoe.files import check_folder, named_path, read_text
from minimoe.hub.layouts import is_transformers_folder, load_transformers, to_transformers
from minimoe.hub.names import abstract_model, check_size, fill, named_arrays
from minimoe.hub.quantized import Quantization, describe
from minimoe.hub.swap import CONFIG_FILE, publish, saved_file, staging, state
from minimoe.hub.tensorfile import REPAIR, FileRecord, TensorFile, write_tensors
from minimoe.model import MoETransformer

FORMAT = "minimoe-model-1"
LAYOUTS = ("minimoe", "huggingface")
TENSOR_FILE = "model.safetensors"
FILES = (TENSOR_FILE, TOKENIZER_FILE, CONFIG_FILE)
SEAL = "sha256"  # config.json's own


def save(
    model: MoETransformer,
    directory: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    format: str | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
    dtype: str | None = None,
) -> Path:
    """Writes a model, float or quantized, into a folder that `load` reads.

    All or nothing, at any instant: whoever reads the folder finds the model that was there before or the new one, also
    after a kill or a power cut (see `minimoe.hub.swap`). An earlier save in the same folder is replaced; other files
    beside it stay.

    Args:
      model: what `minimoe.quant.quantize_model` returned, or any `MoETransformer`.
      directory: new, empty, or holding an earlier save.
      tokenizer: goes along, so that the folder can read and write text.
      format: the layout; None and "minimoe" are ours, "huggingface" is `minimoe.hub.to_transformers` with its defaults.
      provenance: where the model comes from, such as seed, hash of the data and versions; anything JSON can hold.
      dtype: of the weights in the layout "huggingface": "float32" (the default), "bfloat16", "fp8" or "fp4". Our own
        layout stores what the model has.

    Returns:
      The folder.

    Raises:
      UserError: if the folder holds something else, cannot be written or is being written by another process; if the
        tokenizer has more ids than the model; or for an unknown layout, or a dtype with ours.

    Example:
      >>> import tempfile
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = save(model, folder, load_tokenizer("bpe2048"))
      ...     again, tokenizer, config = load(folder)
      >>> config == model.config, tokenizer.name
      (True, 'bpe2048')
    """
    directory = named_path(directory)
    if format not in (None, *LAYOUTS):
        raise UserError(f"format {format!r} is not known; choose one of {', '.join(LAYOUTS)}")
    check_vocabulary(tokenizer, model.config.vocab_size)
    if format == "huggingface":
        return to_transformers(
            model, directory, tokenizer, dtype=dtype or "float32", provenance=_plain(provenance or {})
        )
    if dtype is not None:
        raise UserError(
            f"dtype={dtype!r} goes with format='huggingface'; for few bits here, use minimoe.quant.quantize_model"
        )
    provenance = _plain(provenance or {})
    quantization = describe(model)
    check_destination(directory)
    with staging(directory) as aside:
        files = {TENSOR_FILE: write_tensors(aside / TENSOR_FILE, named_arrays(model))}
        if tokenizer is not None and tokenizer.name != "byte":
            (aside / TOKENIZER_FILE).write_text(tokenizer.to_json(), encoding="utf-8", newline="")
            files[TOKENIZER_FILE] = FileRecord.of(aside / TOKENIZER_FILE)
        config = {
            "format": FORMAT,
            "model": model.config.to_dict(),
            "quantization": None if quantization is None else quantization.to_dict(),
            "tokenizer": None if tokenizer is None else _name(tokenizer),
            "files": {name: record.to_dict() for name, record in files.items()},
            "provenance": provenance,
        }
        publish(directory, aside, sealed(config))
        for name in set(FILES) - set(files) - {CONFIG_FILE}:  # the tokenizer of an earlier save
            (directory / name).unlink(missing_ok=True)
    return directory


def load(directory: str | os.PathLike[str]) -> tuple[MoETransformer, Tokenizer | None, ModelConfig]:
    """Reads what `save` wrote, in either layout, and what Transformers wrote. A quantized model stays quantized in memory.

    Returns:
      The model, its tokenizer (None if it was saved without), and its config.

    Raises:
      UserError: if the folder is missing or not a saved model, or a file in it is missing, cut short, altered or of
        another version. The message names the file, what is wrong with it, and the repair.
    """
    directory = named_path(directory)
    if is_transformers_folder(directory):
        return load_transformers(directory)
    failed = 0
    while True:
        before = state(directory)
        try:
            return _load(directory)
        except UserError:
            failed += 1
            if failed > 1 and state(directory) == before:
                raise  # and else somebody has saved another model meanwhile


def _load(directory: Path) -> tuple[MoETransformer, Tokenizer | None, ModelConfig]:
    values = read_config(directory)
    path = directory / CONFIG_FILE
    with _broken(path):
        config = ModelConfig.from_dict(values["model"])
        records = {name: FileRecord(**record) for name, record in values["files"].items()}
        record = records[TENSOR_FILE]
        named = values["tokenizer"]
        tokenizer_name = None if named is None else (str(named["name"]), str(named["fingerprint"]))
    with TensorFile(saved_file(directory, TENSOR_FILE, record.sha256), record) as file:
        check_size(config, file)
        with _broken(path):
            quantization = None
            if values["quantization"] is not None:
                quantization = Quantization.from_dict(values["quantization"])
            abstract = abstract_model(config, quantization)
        tokenizer_sha = records[TOKENIZER_FILE].sha256 if TOKENIZER_FILE in records else ""
        tokenizer = _load_tokenizer(saved_file(directory, TOKENIZER_FILE, tokenizer_sha), config, tokenizer_name)
        return fill(abstract, file), tokenizer, config


def read_config(directory: Path) -> dict[str, Any]:
    """The content of a saved folder's config.json, its format and its own checksum checked and nothing else.

    Raises:
      UserError: if it is missing, broken, of another format, or altered.
    """
    path = directory / CONFIG_FILE
    if not directory.exists():
        raise UserError(f"{directory} does not exist; name a folder made by minimoe.hub.save or `minimoe quantize`")
    if not path.is_file():
        raise UserError(f"{directory} is no saved model (no {CONFIG_FILE}); name one made by `minimoe quantize`")
    with _broken(path):
        values = json.loads(read_text(path))
        found = values["format"]
    if found != FORMAT:
        raise UserError(f"{path} has format {found!r}; this version reads {FORMAT!r}: save the model again with it")
    if SEAL in values and values != sealed(values):
        repair = f"copy the whole folder again, or delete its line {SEAL!r} if you meant to change it"
        raise UserError(f"{path} was altered: its content is not what was saved; {repair}")
    return values


def sealed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json with the sha256 of itself, so that a changed setting is noticed.

    The checksum is of the values, not of how they are spaced. Folders of earlier versions have none.

    Example:
      >>> sealed({"top_k": 2})["sha256"][:8], sealed({"top_k": 3})["sha256"][:8]
      ('10da5fe9', '7a59d0ef')
    """
    values = {name: value for name, value in config.items() if name != SEAL}
    content = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return values | {SEAL: hashlib.sha256(content.encode("utf-8")).hexdigest()}


def check_destination(directory: Path) -> None:
    """Refuses a folder that `save` must not write into; changes nothing.

    Raises:
      UserError: if it is a file, lies below one, cannot be written, or holds anything but an earlier save.
    """
    check_folder(directory, is_saved_folder, "a saved model")


def is_saved_folder(directory: Path) -> bool:
    """Whether its config.json says that `save` wrote it, in this format or a later one."""
    try:
        values = json.loads(read_text(directory / CONFIG_FILE))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and str(values.get("format")).startswith("minimoe-model-")


@contextlib.contextmanager
def _broken(path: Path) -> Iterator[None]:
    """Whatever a damaged ``path`` makes Python raise becomes one line that names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a key missing, a number too large for JAX, JSON a thousand levels deep, ...
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} is broken ({reason[:200]}); {REPAIR}") from error


def _name(tokenizer: Tokenizer) -> dict[str, str]:
    return {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint}


def _load_tokenizer(path: Path, config: ModelConfig, named: tuple[str, str] | None) -> Tokenizer | None:
    if named is None:
        return None
    name, fingerprint = named
    tokenizer = load_tokenizer("byte" if name == "byte" else path)
    if tokenizer.fingerprint != fingerprint:
        raise UserError(f"{path} was altered: its ids no longer mean what the model learned; {REPAIR}")
    check_vocabulary(tokenizer, config.vocab_size, REPAIR)
    return tokenizer


def _plain(provenance: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(provenance)))
    except (TypeError, ValueError) as error:
        raise UserError(f"provenance cannot be written as JSON ({error}); give plain values") from error
