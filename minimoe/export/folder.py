"""What the folders of all exports share: files with checksums, written together or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from minimoe.config import ModelConfig
from minimoe.data import Tokenizer, load_tokenizer
from minimoe.data.tokenizer import TOKENIZER_FILE
from minimoe.errors import UserError
from minimoe.files import check_folder
from minimoe.hub.swap import CONFIG_FILE, publish, saved_file, staging
from minimoe.hub.tensorfile import FileRecord, write_tensors


def needs(package: str) -> None:
    """Raises:
    UserError: if a package of the extra ``export`` is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(f'the package {package} is not installed; pip install "minimoe[export]" brings it')


def read_config(directory: Path, format: str) -> dict[str, Any]:
    """The content of config.json, which says that the folder is one of this format.

    Raises:
      UserError: if it is missing, broken, or of another format.
    """
    path = directory / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{directory} is no export ({CONFIG_FILE}: {type(error).__name__}); export again") from error
    if found != format:
        raise UserError(f"{path} has format {found!r}, and {format!r} is read here; export again")
    return values


class FolderWriter(contextlib.AbstractContextManager["FolderWriter"]):
    """Collects the files of an export and puts them in their folder together; see `minimoe.hub.swap`.

    Args:
      directory: new, empty, or holding an earlier export of this format.
      format: goes into config.json. what: the folder's content in a few words, for errors.

    Raises:
      UserError: if the folder holds something else or cannot be written.
    """

    def __init__(self, directory: Path, format: str, what: str):
        self.directory, self.format = directory, format
        check_folder(directory, self._is_ours, what)
        self._staging = staging(directory)
        self._files: dict[str, Any] = {}
        self._tokenizer: dict[str, str] | None = None

    def _is_ours(self, directory: Path) -> bool:
        try:
            return bool(read_config(directory, self.format))
        except UserError:
            return False

    def __enter__(self) -> FolderWriter:
        self._aside = self._staging.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._staging.__exit__(kind, value, trace)

    def add(self, name: str, content: bytes) -> None:
        """A file with this content."""
        (self._aside / name).write_bytes(content)
        self._files[name] = FileRecord.of(self._aside / name).to_dict()

    @contextlib.contextmanager
    def placing(self, name: str) -> Iterator[Path]:
        """A path for the caller to write this file to."""
        yield self._aside / name
        self._files[name] = FileRecord.of(self._aside / name).to_dict()

    def add_tensors(self, name: str, arrays: dict[str, Any]) -> None:
        """A safetensors file with these arrays."""
        self._files[name] = write_tensors(self._aside / name, arrays).to_dict()

    def add_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """The tokenizer, as a file if it needs one."""
        if tokenizer is None:
            return
        self._tokenizer = {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint}
        if tokenizer.name != "byte":
            self.add(TOKENIZER_FILE, tokenizer.to_json().encode("utf-8"))

    def publish(self, facts: dict[str, Any]) -> None:
        """Makes the files the content of the folder, with ``facts`` in its config.json."""
        config = {"format": self.format, **facts, "tokenizer": self._tokenizer, "files": self._files}
        publish(self.directory, self._aside, config)
        if TOKENIZER_FILE not in self._files:  # of an earlier export
            (self.directory / TOKENIZER_FILE).unlink(missing_ok=True)


class Export(NamedTuple):
    """What an export's folder holds: its checked files by name, and the whole of its config.json as ``facts``."""

    config: ModelConfig
    tokenizer: Tokenizer | None
    files: dict[str, Path]
    facts: dict[str, Any]


def read_folder(directory: Path, format: str, facts: Sequence[str] = ()) -> Export:
    """Reads config and tokenizer, and checks every file; ``facts`` are the keys of config.json that must be there.

    Raises:
      UserError: if it is no export of this format, or a file is missing or altered.
    """
    values = read_config(directory, format)
    files = {}
    try:
        for name, record in values["files"].items():
            path = saved_file(directory, name, str(record["sha256"]))
            found = FileRecord.of(path).sha256 if path.is_file() else "no file"
            if Path(name).name != name or found != record["sha256"]:
                raise UserError(f"{directory / name} is missing or was altered; export again")
            files[name] = path
        config = ModelConfig.from_dict(values["model"])
        named = values["tokenizer"]
        for fact in facts:
            values[fact]
        tokenizer = None
        if named is not None:
            tokenizer = load_tokenizer("byte" if named["name"] == "byte" else files[TOKENIZER_FILE])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{directory / CONFIG_FILE} is broken ({type(error).__name__}: {error}); export again"
        ) from error
    return Export(config, tokenizer, files, values)
