"""The tensors of a Transformers folder, in one safetensors file or in several with an index; read one by one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minimoe.errors import UserError
from minimoe.files import read_text
from minimoe.hub.layouts.settings import COPY
from minimoe.hub.tensorfile import FileRecord, TensorFile

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
READABLE = ("float32", "bfloat16", "float16", "int64")  # the last for the tables of hash routing


class Shards:
    """The files of a folder, open until the end of the ``with``; nothing but their headers is in memory.

    Args:
      records: what must be true of a file, by its name; of one that is not there nothing is known.

    Attributes:
      shapes: of every tensor by its name. bytes: of all files.

    Raises:
      UserError: if a file is missing, cut short or broken, or a tensor is stored twice.
    """

    def __init__(self, folder: Path, records: Mapping[str, FileRecord] | None = None):
        self.folder = folder
        known = records or {}
        self._home: dict[str, TensorFile] = {}
        with contextlib.ExitStack() as stack:
            for path in tensor_files(folder):
                file = stack.enter_context(TensorFile(path, known.get(path.name), repair=COPY))
                twice = sorted(set(file.header) & set(self._home))
                if twice:
                    raise UserError(f"{folder} holds {twice[0]} in two files; {COPY}")
                self._home |= dict.fromkeys(file.header, file)
            self._open = stack.pop_all()
        self.shapes = {name: file.shape(name) for name, file in self._home.items()}
        self.bytes = sum(file.bytes for file in set(self._home.values()))

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def check_index(self) -> None:
        """Raises:
        UserError: if the index says of a tensor that it is where it is not.
        """
        for name, home in tensor_homes(self.folder).items():
            if name not in self._home or self._home[name].path.name != home:
                raise UserError(f"{self.folder / INDEX} says that {home} holds {name!r}, which it does not; {COPY}")

    def dtype(self, name: str) -> str:
        """Our name of a tensor's dtype."""
        return self._home[name].dtype(name)

    def raw(self, name: str) -> np.ndarray:
        """One tensor as it is stored, copied out of its file."""
        return self._home[name].read(name)

    def read(self, name: str) -> np.ndarray:
        """One tensor, copied out of its file.

        Raises:
          UserError: if it holds anything but the usual floats or int64.
        """
        dtype = self.dtype(name)
        if dtype not in READABLE:
            kinds, path = ", ".join(READABLE), self._home[name].path
            raise UserError(f"{path}: {name} is {dtype}, but only {kinds} are read; convert the model first")
        return self.raw(name)


def tensor_homes(folder: Path) -> dict[str, str]:
    """The file of each tensor as the index says; empty where no index counts: without one, and beside a single file."""
    index = folder / INDEX
    if not index.is_file() or (folder / SINGLE).is_file():
        return {}
    try:
        return dict(json.loads(read_text(index))["weight_map"])
    except Exception as error:
        raise UserError(f"{index} is broken ({type(error).__name__}: {error}); {COPY}") from error


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, all of them there; a single file goes before an index, as in Transformers."""
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not index.is_file():
        raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}; save the model as safetensors, or {COPY}")
    try:
        paths = [folder / name for name in sorted(set(tensor_homes(folder).values()))]
        inside = all(path.parent == folder for path in paths)
        missing = [path.name for path in paths if inside and not path.is_file()]
    except UserError:  # it is a ValueError
        raise
    except (TypeError, ValueError, OSError) as error:
        raise UserError(f"{index} is broken ({type(error).__name__}: {error}); {COPY}") from error
    if not inside:
        raise UserError(f"{index} names files outside its folder; {COPY}")
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names; {COPY}")
    return paths
