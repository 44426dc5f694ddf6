"""What a file that is being graded may not do to the machine, and where it may not look.

`keep_out` watches a process through Python's audit events, from then on and for good. It keeps answers honest and keeps
mistakes harmless: no look at the solutions, no writing outside of a folder that goes away, no ending of other processes,
no other programs, no network. It is no prison: code that calls the system past Python gets through. Grade strangers'
files in a container.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = os.path.dirname(os.path.realpath(__file__))
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

NO_PROGRAMS = "a file that is being graded may not start other programs"
NO_NETWORK = "a file that is being graded may not use the network"
REFUSED = {
    **dict.fromkeys(("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile"), NO_PROGRAMS),
    **dict.fromkeys(("socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg"), NO_NETWORK),
}
# Events that change the file system: where their paths stand, and the folders that these are relative to.
CHANGES = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, -1),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "shutil.rmtree": ((0, 1),),
}


def keep_out(folder: str) -> None:
    """Watches this process until it ends.

    Args:
      folder: where it may write.
    """
    own = os.path.join(os.path.realpath(folder), "")

    def check_change(path: Any, directory: Any = None) -> None:
        place = _place(path, directory)
        if place is not None and place != os.devnull and not os.path.join(place, "").startswith(own):
            raise PermissionError(f"a file that is being graded writes into its own folder alone, not to {place}")

    def check_open(path: Any, mode: Any, flags: Any) -> None:
        place = _place(path)
        if place is None:
            return
        if isinstance(flags, int) and flags & WRITES:
            check_change(path)
        if holds_solutions(place):
            raise PermissionError("a file that is being graded may not read the solutions")

    def check_kill(number: Any, *rest: Any) -> None:
        if number != os.getpid():
            raise PermissionError("a file that is being graded may not end other processes")

    checks: dict[str, Callable[..., None]] = {"open": check_open, "os.kill": check_kill, "os.killpg": check_kill}

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in REFUSED:
            raise PermissionError(REFUSED[event])
        if event in checks:
            checks[event](*arguments)
        elif event in CHANGES:
            for at, relative_to in CHANGES[event]:
                check_change(arguments[at], arguments[relative_to] if 0 <= relative_to < len(arguments) else None)

    sys.addaudithook(watch)


def holds_solutions(place: str) -> bool:
    """Whether a real path is a lesson's file here, compiled or not, or the memory or the pipe of another process."""
    folder, name = os.path.split(place)
    if folder.startswith(HERE) and name.startswith("lesson"):
        return True
    parts = Path(place).parts
    return len(parts) > 3 and parts[1] == "proc" and parts[2].isdigit() and parts[2] != str(os.getpid())


def _place(path: Any, directory: Any = None) -> str | None:
    """The real path that an event speaks of; None for the number of a file that is open already."""
    if isinstance(path, int) or path is None:
        return None
    text = os.fsdecode(path)
    if isinstance(directory, int) and directory >= 0:
        text = os.path.join(f"/proc/self/fd/{directory}", text)
    return os.path.realpath(text)


class Quiet:
    """Stands for `check`, `hint`, `status` and `exercises` in a file that is being graded: takes all, does nothing."""

    def __call__(self, *arguments: Any, **options: Any) -> Quiet:
        return self

    def __getitem__(self, key: Any) -> Quiet:
        return self

    def __getattr__(self, name: str) -> Quiet:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __str__(self) -> str:
        return ""


def hide_judge() -> None:
    """Takes the modules that judge out of reach: who imports and changes one has a copy that nobody uses."""
    import minimoe.exercises

    for name in [name for name in sys.modules if name.startswith("minimoe.exercises.")]:
        del sys.modules[name]
        vars(minimoe.exercises).pop(name.rpartition(".")[2], None)
    for name in minimoe.exercises.__all__:
        setattr(minimoe.exercises, name, Quiet())
