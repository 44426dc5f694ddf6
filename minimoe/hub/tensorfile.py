"""One safetensors file: written with its checksum, read back one array at a time, every way of being broken named.

The file is 8 bytes with the length of a JSON header, the header (dtype, shape and place of each array by name), then
the arrays' bytes. The ``safetensors`` library writes it and judges whether a header is sound. The bytes of an array we
fetch ourselves, because the library's NumPy side knows no 8-bit floats.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minimoe.errors import UserError

# The names of the format's own header, both ways.
DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
}
REPAIR = "save the model again, or copy the whole folder again"


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """What must be true of a file: its size in bytes and the sha256 of its content."""

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if type(self.bytes) is not int or type(self.sha256) is not str:
            raise UserError(f"bytes={self.bytes!r} and sha256={self.sha256!r} must be a number and a text; {REPAIR}")

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Of the file as it is now."""
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> FileRecord:
    """Writes arrays (NumPy or JAX) under their names.

    Returns:
      What `TensorFile` will check.

    Raises:
      UserError: for a dtype that the format has no name for here.
    """
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    strange = sorted({str(a.dtype) for a in arrays.values()} - {str(d) for d in DTYPES.values()})
    if strange:
        raise UserError(f"arrays of {', '.join(strange)} cannot be saved; cast them to one of {', '.join(_known())}")
    save_file(arrays, path, metadata={"format": "minimoe"})
    return FileRecord.of(path)


class TensorFile:
    """A safetensors file that was checked when it was opened; nothing but its header is in memory.

    It stays open until the end of its ``with``: what is read is what was checked, even if somebody saves meanwhile.

    Args:
      path: the file.
      record: what `write_tensors` returned for it. A file of another size or content is refused: before anything is
        computed with wrong weights. None for a file of somebody else, of which nothing is known.
      repair: ends every error.

    Attributes:
      header: ``name -> {"dtype", "shape", "data_offsets"}``.

    Raises:
      UserError: if it is missing, cut short, altered, or no safetensors file; the message says which.
    """

    def __init__(self, path: Path, record: FileRecord | None = None, *, repair: str = REPAIR):
        self.path, self._repair = path, repair
        try:
            if not path.is_file():
                raise UserError(f"{path} is missing; {repair}")
            self._file = path.open("rb")
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error}); {repair}") from error
        try:
            self.header = self._check(record)
        except BaseException:
            self._file.close()
            raise

    def _check(self, record: FileRecord | None) -> dict[str, dict[str, Any]]:
        """Size, content, then what the library thinks of the header; returns that."""
        path, file, repair = self.path, self._file, self._repair
        self.bytes = found = os.fstat(file.fileno()).st_size
        if record is not None and found != record.bytes:
            what = "cut short" if found < record.bytes else "too long"
            raise UserError(f"{path} is {what}: {found:,} bytes where config.json says {record.bytes:,}; {repair}")
        try:
            altered = record is not None and hashlib.file_digest(file, "sha256").hexdigest() != record.sha256
            with safe_open(path, framework="np"):
                pass  # the library has now judged the header: its length, its JSON, and that the places fit the file
        except (SafetensorError, OSError, MemoryError) as error:
            raise UserError(f"{path} is no readable safetensors file ({error}); {repair}") from error
        if altered:
            raise UserError(f"{path} was altered: its sha256 is not the one in config.json; {repair}")
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        self._start = 8 + length
        return header

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def dtype(self, name: str) -> str:
        """Our name of an array's dtype, such as ``"float32"``."""
        stored = self.header[name]["dtype"]
        return str(DTYPES.get(stored, stored))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])

    def read(self, name: str) -> np.ndarray:
        """One array, copied out of the file."""
        entry = self.header[name]
        dtype, shape = DTYPES[entry["dtype"]], self.shape(name)
        self._file.seek(self._start + entry["data_offsets"][0])
        return np.fromfile(self._file, dtype, count=math.prod(shape)).reshape(shape)


def _known() -> list[str]:
    return [str(dtype) for dtype in DTYPES.values()]
