"""A model of ours as a folder that Transformers loads: the table of `layout`, read from right to left.

out/config.json              as Transformers writes it, and the checksums of the other files
    model.safetensors        or model-00001-of-0000N.safetensors ... and model.safetensors.index.json
    tokenizer.json, tokenizer_config.json, generation_config.json, README.md (the model card)

Whether a family can express a model is not judged by a list of rules. Its config.json is made, read again as `read` would
read it, and compared with the model's own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from minimoe import checks
from minimoe.config import ModelConfig
from minimoe.data import Tokenizer, check_vocabulary
from minimoe.errors import UserError
from minimoe.files import check_folder, named_path
from minimoe.hub.layouts import coded_write
from minimoe.hub.layouts.card import README, readme
from minimoe.hub.layouts.coded_write import Coder, coding_of
from minimoe.hub.layouts.families import LAYOUTS
from minimoe.hub.layouts.layout import Layout
from minimoe.hub.layouts.settings import CONFIG_FILE, Settings
from minimoe.hub.layouts.shards import INDEX, SINGLE
from minimoe.hub.swap import publish, saved_file, staging
from minimoe.hub.tensorfile import FileRecord
from minimoe.model import MoETransformer
from minimoe.model.paths import named_leaves
from minimoe.quant import dequantize_model

DTYPES = ("float32", "bfloat16", *coded_write.DTYPES)
KEPT = re.compile(r"router\.bias$|\.(base|sink|place_bias)$|(^|\.)(attention_residual|ffn_residual|leave)\.")
NORMS = re.compile(r"router\.kernel$|\.scale$")
SHARD_BYTES = 5_000_000_000  # as Transformers has it


def to_transformers(
    model: MoETransformer,
    directory: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    dtype: str = "float32",
    card: str = "",
    provenance: Mapping[str, Any] | None = None,
    shard_bytes: Any = SHARD_BYTES,
) -> Path:
    """Writes a model in the layout of Transformers; all or nothing, like `minimoe.hub.save`.

    Args:
      model: a quantized one is written with the values that its codes stand for. A head for multi-token prediction is left
        out: Transformers has no place for it, and the next token does not depend on it.
      directory: new, empty, or holding an earlier export of this layout.
      tokenizer: goes along, as `transformers.AutoTokenizer` reads it.
      dtype: of the stored weights. "fp8" is DeepSeek's published layout, "fp4" that of V4's experts with the rest in FP8;
        see `minimoe.hub.layouts.codes`. What is no code is bfloat16 there, also in norms and
        routers, as in published files; in "bfloat16" those two stay float32.
      card: of the model, for README.md; a few lines are written if it is empty. Front matter and the sizes of all files are
        added (see `minimoe.hub.layouts.card`).
      provenance: where the model comes from, as `minimoe.hub.provenance_of` says; kept in config.json.
      shard_bytes: most bytes a file should hold; a larger tensor has a file of its own.

    Returns:
      The folder. `minimoe.hub.from_transformers` reads it, and so does ``AutoModelForCausalLM.from_pretrained``.

    Raises:
      UserError: if no family can express the model, with the reason of each; if the folder holds something else; for
        "fp4" of another family than deepseek_v4, and of matrices whose width 32 does not divide.

    Example:
      >>> import tempfile
      >>> from minimoe.hub import from_transformers
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     from_transformers(to_transformers(model, folder)).config.moe.num_experts
      8
    """
    directory, limit = named_path(directory), checks.whole("shard_bytes", shard_bytes)
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not written in this layout; choose one of {', '.join(DTYPES)}")
    layout, values = choose_layout(model.config)
    coder = Coder(model, coding_of(layout, dtype)) if dtype in coded_write.DTYPES else None
    check_folder(directory, is_export, "a model in the layout of Transformers")
    with staging(directory) as aside:
        names = write_shards(aside, tensors(model, layout, dtype, coder), limit)
        if coder is not None:
            values |= coder.coding.to_settings(coder.floats)
        names += _write_texts(aside, model.config, tokenizer, values)
        text = readme(aside, names, directory.name, layout, model.config, dtype, card, provenance or {})
        names += _written(aside, {README: text})
        values |= {"provenance": dict(provenance)} if provenance else {}
        files = {name: FileRecord.of(aside / name).to_dict() for name in names}
        old = _named(directory)
        publish(directory, aside, values | {"dtype": "float32" if dtype == "float32" else "bfloat16", "files": files})
        for name in old - set(files):  # of an earlier export
            (directory / name).unlink(missing_ok=True)
    return directory


def choose_layout(config: ModelConfig) -> tuple[Layout, dict[str, Any]]:
    """The first family that can express a model, and its config.json.

    Raises:
      UserError: if none can, with the reason of each.
    """
    reasons = []
    for layout in LAYOUTS.values():
        assert layout.write_config is not None
        try:
            values = layout.write_config(config)
            again = layout.read_config(Settings(values, CONFIG_FILE), config.param_dtype)
        except UserError as error:
            reasons.append(f"{layout.model_type}: {error}")
            continue
        lost = differences(config, again)
        if not lost:
            return layout, values
        reasons.append(f"{layout.model_type} has no {', '.join(lost)} like this")
    raise UserError(
        f"no family of Transformers can express this model ({'; '.join(reasons)}); save it in our own layout"
    )


def differences(config: ModelConfig, again: ModelConfig) -> list[str]:
    """The parts in which two configs describe different functions. How a layer is computed and trained is no such part."""
    if config.num_layers != again.num_layers:
        return ["num_layers"]
    pairs = [(_function(config), _function(again))]
    pairs += [(_function(a), _function(b)) for a, b in zip(config.layers, again.layers, strict=True)]
    found = [name for one, other in pairs for name in one if one[name] != other.get(name)]
    return list(dict.fromkeys(found))


HOW = {"dispatch", "capacity_factor", "dropout", "dtype", "param_dtype", "hash_vocab_size", "index_loss"}
ELSEWHERE = {"layers", "first_layers", "pattern", "attention", "moe", "mtp", "d_ff"}  # of a model: seen layer by layer


def _function(config: Any) -> dict[str, Any]:
    """The settings that decide what is computed, with those of the parts under dotted names."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "dispatch":  # all compute the same, but for the one that drops tokens
            found["dispatch"] = "capacity" if value == "capacity" else "exact"
        if field.name in HOW or (isinstance(config, ModelConfig) and field.name in ELSEWHERE):
            continue
        if field.name == "norm_eps" and not getattr(config, "qk_norm", True):  # there is no such norm
            continue
        if field.name == "rope_dim" and value is None:  # all of a head is turned
            value = config.head_dim
        if field.name == "select" and value == "noisy_topk":  # the noise is for training
            value = "noisy"
        if dataclasses.is_dataclass(value):
            found |= {f"{field.name}.kind": type(value).__name__}
            found |= {f"{field.name}.{name}": part for name, part in _function(value).items()}
        else:
            found[field.name] = value
    return found


def tensors(
    model: MoETransformer, layout: Layout, dtype: str, coder: Coder | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors one after the other, made from one array of ours at a time.

    Raises:
      UserError: where they have no tensor for an array that is not 0.
    """
    rows = layout.rows(model.config)
    for ours, leaf in named_leaves(dequantize_model(model)).items():
        if ours.startswith("mtp."):  # Transformers leaves this head out, and the next token does not depend on it
            continue
        array = np.asarray(jax.device_get(leaf[...]))
        if not rows[ours].names:
            if array.any():
                raise UserError(
                    f"{layout.model_type} has no tensor for {ours}, which is not 0 here; save it in our own layout"
                )
            continue
        num_experts = array.shape[0] if array.ndim else 0
        theirs = rows[ours].to_files(array, num_experts)
        plain = ((name, part, False) for name, part in theirs.items())
        for name, part, coded in plain if coder is None else coder.parts(ours, rows[ours], theirs, num_experts):
            yield name, np.ascontiguousarray(part if coded else _stored(part, ours, dtype))


def _stored(part: np.ndarray, ours: str, dtype: str) -> np.ndarray:
    """A float tensor in the dtype of the file.

    Beside codes all is bfloat16 but what DeepSeek keeps in float32: Transformers leaves what is no code in the dtype of the
    file, and cannot multiply a float32 norm with the rest.
    """
    if np.issubdtype(part.dtype, np.integer):
        return part.astype(np.int64)
    keeps = dtype == "float32" or bool(KEPT.search(ours)) or (dtype == "bfloat16" and bool(NORMS.search(ours)))
    return part.astype(np.float32 if keeps else ml_dtypes.bfloat16)


def write_shards(folder: Path, named: Iterator[tuple[str, np.ndarray]], limit: int) -> list[str]:
    """The tensors in one file, or in several with an index; one file's tensors are in memory.

    Returns:
      The names of the files.
    """
    parts: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    total = 0

    def close() -> None:
        save_file(held, folder / f"part-{len(parts)}", metadata={"format": "pt"})
        parts.append(list(held))
        held.clear()

    for name, array in named:
        if held and sum(each.nbytes for each in held.values()) + array.nbytes > limit:
            close()
        held[name] = array
        total += array.nbytes
    close()
    if len(parts) == 1:
        os.replace(folder / "part-0", folder / SINGLE)
        return [SINGLE]
    files = [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    for i, file in enumerate(files):
        os.replace(folder / f"part-{i}", folder / file)
    home = {name: file for file, names in zip(files, parts, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": home}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return [*files, INDEX]


def _write_texts(folder: Path, config: ModelConfig, tokenizer: Tokenizer | None, values: dict[str, Any]) -> list[str]:
    """Tokenizer and generation settings; adds the end-of-text token to ``values``, the config.json."""
    end = None if tokenizer is None else tokenizer.eot_id
    values |= {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    # Drawn at temperature 1, like `minimoe.generate` and the published files of GLM-4.5 and DeepSeek: without do_sample
    # `generate()` of Transformers would be greedy, and the most likely text of a small model repeats itself.
    generation = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "do_sample": True, "temperature": 1.0}
    texts = {"generation_config.json": json.dumps(generation, indent=1)}
    if tokenizer is not None:
        check_vocabulary(tokenizer, config.vocab_size)
        texts["tokenizer.json"] = content = tokenizer.to_json()
        token = next(one["content"] for one in json.loads(content)["added_tokens"] if one["id"] == end)
        special: dict[str, Any] = {f"{kind}_token": token for kind in ("bos", "eos", "pad")}
        special["split_special_tokens"] = True  # text that spells one is text, as it was in training
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        texts["tokenizer_config.json"] = json.dumps(
            kind | special | {"model_max_length": config.context_length}, indent=1
        )
    return _written(folder, texts)


def _written(folder: Path, texts: Mapping[str, str]) -> list[str]:
    """Writes texts, each with a line end at its end; returns their names."""
    for name, text in texts.items():
        (folder / name).write_text(text + "\n" * (not text.endswith("\n")), encoding="utf-8", newline="")
    return list(texts)


def is_export(folder: Path) -> bool:
    """Whether a folder holds what `to_transformers` wrote, every file as it was.

    Transformers carries what config.json says over to a model that was trained on: such a folder is somebody's work.
    """
    try:
        values = Settings.read(folder).values
        files = values["files"]
        same = all(
            FileRecord.of(saved_file(folder, name, one["sha256"])).to_dict() == one for name, one in files.items()
        )
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False
    return "model_type" in values and bool(files) and same


def _named(folder: Path) -> set[str]:
    if not is_export(folder):
        return set()
    return {name for name in Settings.read(folder).values["files"] if Path(name).name == name}
