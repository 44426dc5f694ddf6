"""Replacing the files of a saved model together: a reader finds the old model or the new one, never a mixture, never none.

Only config.json decides. It holds the sha256 of every other file, and a rename puts it in place in one step:

1. new files are written aside and brought onto the disk; each is then named after its content, ``.saving-<sha>-<name>``;
2. config.json is renamed over the old one: from here on the new model is the saved one;
3. the new files get their usual names, over the old ones.

A reader takes ``.saving-<sha>-<name>`` if it is there, else ``<name>``, and checks its sha256. So a process that is
killed leaves a folder that reads as the old model (before 2) or as the new one (after it). The next save clears up.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minimoe.errors import UserError
from minimoe.files import UNFINISHED, made_folder, only_writer, read_text, replace, sync_folder, writing

CONFIG_FILE = "config.json"


@contextlib.contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """A folder to write new files into, inside ``directory``. Nobody else saves there meanwhile.

    If the block fails, everything that was made vanishes again.

    Raises:
      UserError: if it cannot be written, or another process is saving into it.
    """
    with writing(directory), made_folder(directory), only_writer(directory) as locked:
        _finish(directory)
        if locked:  # then whoever made the rest is dead
            _clear(directory)
        aside = Path(tempfile.mkdtemp(dir=directory, prefix=UNFINISHED))
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def publish(directory: Path, aside: Path, config: Mapping[str, Any]) -> None:
    """Makes the files in ``aside`` the saved model: the last thing to do in `staging`.

    Args:
      config: content of config.json; ``config["files"]`` has the sha256 of each file in ``aside``.
    """
    for name in (*config["files"], CONFIG_FILE):  # found out now: afterwards the new config would stand beside it
        if (directory / name).is_dir():
            raise UserError(f"{directory / name} is a folder and cannot be replaced; move it away")
    staged = {name: _staged(directory, name, record["sha256"]) for name, record in config["files"].items()}
    try:
        for name, path in staged.items():
            _sync(aside / name)
            replace(aside / name, path)
        (aside / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        _sync(aside / CONFIG_FILE)
        sync_folder(directory)
        replace(aside / CONFIG_FILE, directory / CONFIG_FILE)
    except BaseException:
        for path in set(staged.values()) - set(_named_files(directory)):
            path.unlink(missing_ok=True)
        raise
    _finish(directory)


def saved_file(directory: Path, name: str, sha256: str) -> Path:
    """Where the file of this name and content is now, or would be."""
    staged = _staged(directory, name, sha256)
    return staged if staged.exists() else directory / name


def state(directory: Path) -> tuple[int, ...]:
    """Changes when somebody saves, even the same model: a reader that failed looks whether it is still the same."""
    try:
        found = (directory / CONFIG_FILE).stat()
    except OSError:
        return ()
    waiting = sum(path.exists() for path in _named_files(directory))
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, waiting


def _staged(directory: Path, name: str, sha256: str) -> Path:
    return directory / f"{UNFINISHED}{sha256[:16]}-{name}"


def _named_files(directory: Path) -> dict[Path, str]:
    """The files that config.json names, as they are called before they have their usual names, and those."""
    try:
        files = json.loads(read_text(directory / CONFIG_FILE))["files"]
        return {_staged(directory, name, str(record["sha256"])): name for name, record in files.items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}


def _finish(directory: Path) -> None:
    """Step 3. Windows may refuse it while somebody reads; then the folder is read as it is, and a later save does it."""
    named = _named_files(directory)
    if not named:
        return
    sync_folder(directory)  # config.json first: without it the new files would be read as damaged old ones
    for path, name in named.items():
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.replace(path, directory / name)
    sync_folder(directory)


def _clear(directory: Path) -> None:
    """Deletes what killed saves have left."""
    kept = _named_files(directory)
    for path in directory.glob(f"{UNFINISHED}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path not in kept:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    os.chmod(path, 0o644)
    with path.open("r+b") as file:
        os.fsync(file.fileno())
