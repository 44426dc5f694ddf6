"""A training folder: what is in it, what decides the run there, and who may continue it.

out/config.json       model, recipe, data, method, versions: everything a resumed run must agree with
    tokenizer.json    the tokenizer, if it needs a file
    checkpoints/N/    weights, optimiser and router biases after step N, see `minimoe.training.checkpoint`
    metrics.jsonl     one JSON object a line, see `minimoe.training.loop`
    curve.png         the run as a picture, drawn by the command line
    sampled/          what a teacher wrote for the run to read, if it did
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minimoe import __version__, files
from minimoe.config import ModelConfig
from minimoe.data import Tokenizer, load_tokenizer
from minimoe.data.tokenizer import TOKENIZER_FILE
from minimoe.errors import UserError
from minimoe.files import write_atomically
from minimoe.training.method import Method
from minimoe.training.recipe import Recipe

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
CURVE_FILE = "curve.png"
STEPS_FOLDER = "checkpoints"
TEXTS_FOLDER = "sampled"
FORMAT = "minimoe-training-1"
PLAIN = Method().to_dict()
DESCRIBED = ("model", "recipe", "tokenizer", "data")  # what a caller says of a run
PARTS = (*DESCRIBED, "method", "fingerprints")  # with what `minimoe.training.train` finds out
# How often a run is looked at and saved: free to change on the way, since no weight depends on it.
WATCHING = frozenset({"recipe log_every", "recipe eval_every", "recipe checkpoint_every"})


def installed_versions() -> dict[str, str]:
    """Versions of the packages whose numbers a run depends on."""
    names = ("jax", "flax", "optax")
    return {"minimoe": __version__} | {name: importlib.metadata.version(name) for name in names}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run.

    Args:
      model, recipe: what is trained, and how.
      data: says in words what the text is: the corpus name or path, its hash, the share of reasoning problems.
      tokenizer: its name.
      versions: of the packages used.
      method: `minimoe.training.Method.to_dict`. `train` fills it in.
      fingerprints: of the training tokens (``data``), the tokenizer, and the weights that the run began from
        (``start``, if any were given). `train` fills them in.
    """

    model: ModelConfig
    recipe: Recipe
    data: Mapping[str, Any]
    tokenizer: str
    versions: Mapping[str, str] = dataclasses.field(default_factory=installed_versions)
    method: Mapping[str, Any] = dataclasses.field(default_factory=PLAIN.copy)
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        parts = ("data", "method", "fingerprints", "versions")
        return {
            "format": FORMAT,
            "model": self.model.to_dict(),
            "recipe": self.recipe.to_dict(),
            "tokenizer": self.tokenizer,
            **{part: dict(getattr(self, part)) for part in parts},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_dict`. Reads the files of earlier versions too, which knew no method."""
        if values["format"] != FORMAT:
            raise UserError(f"format {values['format']!r} is not known; this version reads {FORMAT!r}")
        if "method" not in values:
            values = {**values, **_from_before_methods(values["data"])}
        model, recipe = ModelConfig.from_dict(values["model"]), Recipe.from_dict(values["recipe"])
        rest = (values.get("versions", {}), values["method"], values["fingerprints"])
        return cls(model, recipe, values["data"], values["tokenizer"], *rest)


def _from_before_methods(data: Mapping[str, Any]) -> dict[str, Any]:
    """Earlier files described distillation within ``data``, and nothing by its fingerprint."""
    rest = {name: value for name, value in data.items() if name not in ("distillation", "teacher", "student")}
    if "distillation" not in data:
        return {"data": data, "method": PLAIN, "fingerprints": {}}
    method = {"name": "distillation", "recipe": data["distillation"], "teacher": data["teacher"]}
    began_from_weights = re.fullmatch("[0-9a-f]{64}", str(data.get("student")))
    return {"data": rest, "method": method, "fingerprints": {"start": data["student"]} if began_from_weights else {}}


def prepare_folder(out: Path) -> None:
    """Makes ``out`` ready to be written: new, empty, or holding a training run already.

    Raises:
      UserError: if it is a file, cannot be written, or holds something else.
    """
    files.prepare_folder(out, _is_ours, "a training run")


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()


def _is_ours(folder: Path) -> bool:
    """Whether a run is there, or what a teacher wrote for one that did not begin yet."""
    return _is_run(folder) or [path.name for path in folder.iterdir() if path.is_dir()] == [TEXTS_FOLDER]


def write_run_config(out: Path, run: RunConfig, tokenizer: Tokenizer) -> None:
    """Writes ``config.json`` and, where the tokenizer needs one, its file; of a run that is there, what is missing.

    ``config.json`` comes first: it makes the folder a run's. A run that was killed before the other file is continued.
    """
    new = not _is_run(out)
    if new:
        write_atomically(out / CONFIG_FILE, json.dumps(run.to_dict(), indent=1) + "\n")
    if tokenizer.name != "byte" and (new or not (out / TOKENIZER_FILE).is_file()):
        tokenizer.save(out / TOKENIZER_FILE)


def read_run_config(folder: Path) -> RunConfig:
    """Reads ``config.json`` of a training folder.

    Raises:
      UserError: if the folder is missing, is not a training folder, or its config is broken.
    """
    path = folder / CONFIG_FILE
    if not folder.exists():
        raise UserError(f"checkpoint {folder} does not exist; train one with `minimoe train --out {folder}`")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a training folder, a saved folder or a model of the package")
    if not path.is_file():
        raise UserError(f"{folder} is not a training folder (no {CONFIG_FILE}); name one made by `minimoe train`")
    try:
        return RunConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is broken ({type(error).__name__}: {error}); restore the file or train again"
        ) from error


def run_tokenizer(folder: Path, run: RunConfig) -> Tokenizer:
    """The tokenizer that a training folder was made with."""
    return load_tokenizer("byte" if run.tokenizer == "byte" else folder / TOKENIZER_FILE)


def check_folder(out: Path, run: RunConfig, *, resume: bool, parts: Sequence[str] = DESCRIBED) -> None:
    """Whether ``run`` can be trained in ``out``; changes nothing.

    Args:
      out: new, empty, or a training folder. run: of which ``parts`` are compared with those of the run there.
      resume: whether a run that is there is to be continued.

    Raises:
      UserError: if ``out`` cannot be written, or holds something else, or a run although ``resume`` is off, or another
        run.
    """
    check_path(out)
    files.check_folder(out, _is_ours, "a training run")
    if not _is_run(out):
        return
    if not resume:
        raise UserError(f"{out} already holds a run; resume it (--resume) or name another folder")
    _check_same_run(out, run, parts)


def check_path(folder: Path) -> None:
    """Refuses a path below which Orbax does not find its own files again.

    Raises:
      UserError: if the whole path, links followed, is not UTF-8 or, except on Windows, has a backslash.
    """
    path = os.path.realpath(folder)  # unlike Path.resolve, no error for a link that leads to itself
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{str(folder)!r} is not UTF-8, which checkpoints need; name another folder") from error
    if "\\" in path and not files.WINDOWS:
        raise UserError(f"{folder} has a backslash in its path, which checkpoints cannot have; name another folder")


def _check_same_run(out: Path, run: RunConfig, parts: Sequence[str]) -> None:
    """Refuses to continue the run in ``out`` as another one.

    Everything must be equal but the versions, and how often the run is logged, scored and saved. What an earlier
    version of minimoe did not write into its file is not compared.

    Raises:
      UserError: naming the first field that differs, and both values.
    """
    there = read_run_config(out)
    ours, theirs = _fields(run, parts), _fields(there, parts)
    lenient = ("method", "fingerprints") if "data" not in there.fingerprints else ()
    for name in {**ours, **theirs}:
        if name in WATCHING or (name.startswith(lenient) and not (name in ours and name in theirs)):
            continue
        value, was = ours.get(name), theirs.get(name)
        if value != was:
            raise UserError(
                f"{name}={_short(value)}, but the run in {out} was started with {name}={_short(was)}; "
                "use the same or name another folder"
            )


def _fields(run: RunConfig, parts: Sequence[str]) -> dict[str, Any]:
    """From ``"model moe.top_k"`` and so on to the values."""
    values = json.loads(json.dumps(run.to_dict()))
    flat: dict[str, Any] = {}
    for part in parts:
        _flatten(part, values[part], " ", flat)
    return flat


def _flatten(name: str, value: Any, joint: str, flat: dict[str, Any]) -> None:
    if not isinstance(value, dict):
        flat[name] = value
        return
    for key, inner in value.items():
        _flatten(f"{name}{joint}{key}", inner, ".", flat)


def _short(value: Any) -> str:
    """A value for a message; of a fingerprint, its beginning."""
    return f"'{value[:12]}...'" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else repr(value)
