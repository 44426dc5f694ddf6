"""Writing files and folders: whole or not at all, on the disk when the call returns, one clear line when it fails."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from minimoe.errors import UserError

UNFINISHED = ".saving-"  # names of files that are being written begin so
LOCK_FILE = ".lock"
LONGEST_TEXT = 2**27  # bytes of a file of settings
WINDOWS = sys.platform == "win32"

_ROOM = "make room or choose another folder"
# NumPy's `tofile` says so and not why: it loses the number of the error.
_CUT = re.compile(r"\d+ requested and \d+ written")
_SHORT = ("a file was cut short, as on a full disk or at a limit of file sizes", _ROOM)
# What went wrong, and what to do about it, for each error that a person can repair.
_REASONS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    getattr(errno, "EDQUOT", -1): ("the disk quota is used up", _ROOM),
    errno.EFBIG: (
        "the file would be larger than this process or this disk allows",
        "raise the limit (`ulimit -f`) or choose another folder",
    ),
    errno.EROFS: ("the file system is read-only", "choose another folder"),
    errno.EACCES: ("no permission", "change the permissions or choose another folder"),
    errno.EPERM: ("no permission", "change the permissions or choose another folder"),
    errno.ENOENT: ("the folder is gone", "make it again or choose another folder"),
    errno.ENOTDIR: ("a part of the path is a file", "choose another folder"),
    errno.EISDIR: ("it is a folder", "choose another name"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.EIO: ("the disk reports an error", "choose another disk"),
}


def named_path(path: str | os.PathLike[str]) -> Path:
    """A path that a person named. The empty one is refused: to the system it is the current folder, which nobody meant.

    Raises:
      UserError: for an empty path.

    Example:
      >>> named_path("")
      Traceback (most recent call last):
      minimoe.errors.UserError: the path '' is empty; name a file or a folder, "." for the current folder
    """
    if os.fspath(path) == "":
        raise UserError("the path '' is empty; name a file or a folder, \".\" for the current folder")
    return Path(path)


def read_text(path: Path) -> str:
    """The text of a file of settings, UTF-8.

    Raises:
      ValueError: if it is no UTF-8, or over 128 MiB, which is found out before anything is read.
      OSError: if it cannot be read.
    """
    size = path.stat().st_size
    if size > LONGEST_TEXT:
        raise ValueError(f"{size:,} bytes, where settings have at most {LONGEST_TEXT:,}")
    return path.read_text(encoding="utf-8")


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever keeps the block from writing becomes one line: the path, the reason, the repair.

    Other libraries' exceptions are understood too: see `disk_error`. All that is no failed system call passes through.

    Args:
      path: what the person named: the file or the folder that the block writes.

    Raises:
      UserError: if the block failed at the disk.

    Example:
      >>> with writing("runs/one"):
      ...     raise OSError(errno.ENOSPC, "No space left on device")
      Traceback (most recent call last):
      minimoe.errors.UserError: runs/one cannot be written: the disk is full; make room or choose another folder
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = disk_error(error)
        if found is None:
            raise
        unknown = _SHORT if _CUT.search(str(found)) else (found.strerror or str(found), "choose another folder")
        reason, repair = _REASONS.get(found.errno or 0, unknown)
        raise UserError(f"{path} cannot be written: {reason}; {repair}") from error


def disk_error(error: BaseException) -> OSError | None:
    """The failed system call behind an exception, None if there is none.

    It is the exception itself, one of its causes, or what a library that is not written in Python put into its message
    (safetensors: "os error 28"; TensorStore: "No space left on device").

    Example:
      >>> disk_error(RuntimeError("I/O error: No space left on device (os error 28)")).errno == errno.ENOSPC
      True
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        if isinstance(one, OSError):
            return one
        seen.add(id(one))
        number = re.search(r"\(os error (\d+)\)", str(one))
        known = [code for code in _REASONS if code > 0 and os.strerror(code) in str(one)]
        if number or known:
            code = int(number[1]) if number else known[0]
            return OSError(code, os.strerror(code))
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    return None


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Writes a file all or nothing: a reader, or a process that is killed, sees the old content or the new, never half.

    When it returns, the content is on the disk and not only in the memory of the system.

    Args:
      path: its folder is made if it is missing. content: text is written as UTF-8, line ends as they are.

    Raises:
      UserError: if the file cannot be written; then nothing was.
    """
    path = named_path(path)
    with writing(path), made_folder(path.parent), unfinished_file(path.parent) as (name, file):
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        finish(file, name)
        replace(name, path)
        sync_folder(path.parent)
    return path


@contextlib.contextmanager
def unfinished_file(folder: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file to write into, under a name that nobody else uses. It is deleted unless the block moves it away."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            yield Path(name), file
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def finish(file: IO[bytes], name: Path) -> None:
    """Brings what was written onto the disk, makes it readable for all as usual, and closes the file."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.chmod(name, 0o644)  # mkstemp makes files that only their owner can read


def replace(source: Path, target: Path) -> None:
    """Renames a file over another in one step. Windows refuses while somebody reads the other: it is tried for a while."""
    last = time.monotonic() + (5.0 if WINDOWS else 0.0)
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if time.monotonic() >= last:
                raise
            time.sleep(0.02)


def sync_folder(folder: Path) -> None:
    """Brings the names of a folder onto the disk, so that a rename outlives a power cut. Windows does so by itself."""
    if WINDOWS:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """The folder exists inside the block. If the block fails, the folders that were made for it vanish again."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for place in made:
                place.rmdir()
        raise


@contextlib.contextmanager
def only_writer(folder: Path, lock: Path | None = None) -> Iterator[bool]:
    """Holds the lock of a folder: of several processes, and of several threads, one writes. A kill releases it too.

    Args:
      folder: what is written; a file, if ``lock`` is given. lock: the file that stands for it; one in the folder.

    Yields:
      True; False where the file system knows no locks, so that nobody can be kept out.

    Raises:
      UserError: if another one holds it.

    Example:
      >>> with tempfile.TemporaryDirectory() as folder, only_writer(Path(folder)):
      ...     try:
      ...         with only_writer(Path(folder)):
      ...             pass
      ...     except UserError as error:
      ...         print(str(error).removeprefix(folder))
       is being written by another process; wait until it is done, or choose another folder
    """
    path = lock or folder / LOCK_FILE
    with writing(folder):
        handle, locked = _take(path)
    try:
        if locked is None:
            repair = f"wait until it is done, or choose another {'file' if lock else 'folder'}"
            raise UserError(f"{folder} is being written by another process; {repair}")
        yield locked
    finally:
        if WINDOWS:
            os.close(handle)
        if locked is not None:
            with contextlib.suppress(OSError):  # Windows: somebody else has opened it
                path.unlink()
        if not WINDOWS:
            os.close(handle)  # after the deletion, so that it was our own lock that was deleted


def check_free(folder: Path) -> None:
    """Refuses a folder whose lock another process holds; changes nothing.

    Raises:
      UserError: as `only_writer`.
    """
    if (folder / LOCK_FILE).exists():
        with only_writer(folder):
            pass


def _take(path: Path) -> tuple[int, bool | None]:
    """The opened lock file, and what `_lock` says of it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        locked = _lock(handle)
        with contextlib.suppress(FileNotFoundError):
            if not locked or os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle, locked
        os.close(handle)  # whoever had the lock has deleted its file since we opened it


def _lock(handle: int) -> bool | None:
    """True if the lock is ours now, None if another has it, False if the file system knows no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return None
    except OSError:
        return False
    return True


def check_folder(folder: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """Refuses a folder that must not be written into; changes nothing.

    Args:
      folder: may be new, empty, or hold what we wrote earlier. What a killed process left unfinished does not count.
      is_ours: whether a folder holds what we write.
      what: its name, for the message: "a training run".

    Raises:
      UserError: if it is a file, lies below one, cannot be written, or holds something else.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; name a folder that is new or empty")
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        if not nearest.is_dir():
            raise UserError(f"{folder} lies below {nearest}, which is a file; name another folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(f"{folder} cannot be written (no permission in {nearest}); name another folder")
        for part in folder.parts[len(nearest.parts) :]:
            with contextlib.suppress(FileNotFoundError):
                (nearest / part).stat()  # a name that is too long is another error than a missing one
        if not folder.is_dir() or is_ours(folder):
            return
        if any(not _is_unfinished(path.name) for path in folder.iterdir()):
            raise UserError(f"{folder} holds something that is not {what}; name a folder that is new or empty")
    except OSError as error:  # a name that is too long, a folder that may not be listed
        with writing(folder):
            raise error


def clear_unfinished(folder: Path) -> None:
    """Deletes the files that killed processes have left half written; for whoever holds the lock of the folder."""
    for path in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def check_file(path: Path) -> None:
    """Refuses a file that could not be written in the end of a long work; changes nothing.

    Raises:
      UserError: if it is a folder, lies below a file, or its folder cannot be written.
    """
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "")
        check_folder(path.parent, lambda folder: True, "")
        with contextlib.suppress(FileNotFoundError):
            path.stat()  # a name that is too long
        if path.parent.is_dir():
            with unfinished_file(path.parent):
                pass


def prepare_folder(folder: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """`check_folder`; then makes the folder and tries to write into it.

    Raises:
      UserError: as `check_folder`.
    """
    check_folder(folder, is_ours, what)
    with writing(folder), made_folder(folder), unfinished_file(folder):
        pass


def _is_unfinished(name: str) -> bool:
    return name.startswith(UNFINISHED) or name == LOCK_FILE
