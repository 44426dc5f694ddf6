"""What a folder for Transformers is: its format, its files with their checksums, and what it says of its own past."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minimoe.errors import UserError
from minimoe.hub.layouts.codes import Coding
from minimoe.hub.layouts.settings import CONFIG_FILE, Settings
from minimoe.hub.layouts.shards import tensor_files
from minimoe.hub.swap import saved_file
from minimoe.hub.tensorfile import FileRecord

CHANGED = f"copy the whole folder again, or delete 'files' from its {CONFIG_FILE} if you changed it on purpose"


def source_of(folder: Path) -> dict[str, Any]:
    """Plain values for the provenance of a model that is read from the folder.

    Returns:
      ``transformers``: name of the folder. ``format``: model type, dtype and codes. ``files``: bytes and sha256 of each
      file that is read. ``source``: the provenance that its config.json has, if any.
    """
    settings = Settings.read(folder)
    coding = Coding.read(settings)
    codes = None if coding is None else settings.get("quantization_config") | {"fp4_experts": coding.fp4_experts}
    kind = {"model_type": settings.get("model_type"), "dtype": settings.get("dtype", None), "codes": codes}
    names = [
        CONFIG_FILE,
        *(path.name for path in tensor_files(folder)),
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    files = {name: FileRecord.of(folder / name).to_dict() for name in names if (folder / name).is_file()}
    found = {"transformers": folder.name, "format": kind, "files": files}
    past = settings.get("provenance", None)
    return found | ({"source": past} if past else {})


def records_of(settings: Settings) -> dict[str, FileRecord]:
    """What must be true of the files beside a config.json that `minimoe.hub.to_transformers` wrote; empty for others.

    Transformers carries our entries over when it saves a model that was trained on. It adds its version, and its files are
    not the ones that we wrote.
    """
    files = settings.get("files", None)
    if not isinstance(files, dict) or "transformers_version" in settings.values:
        return {}
    try:
        return {name: FileRecord(**record) for name, record in files.items()}
    except TypeError as error:
        raise UserError(f"{settings.source}: its entry 'files' is broken; {CHANGED}") from error


def check_file(folder: Path, name: str, records: dict[str, FileRecord]) -> None:
    """Refuses a file that is not the one that was written.

    Raises:
      UserError: naming it.
    """
    record, path = records.get(name), folder / name
    if record is None:
        return
    path = saved_file(folder, name, record.sha256)
    if not path.is_file() or FileRecord.of(path) != record:
        raise UserError(f"{folder / name} is not what was written: {CONFIG_FILE} has another sha256; {CHANGED}")
