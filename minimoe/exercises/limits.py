"""A wall-clock limit on somebody else's function that also works in notebooks and on Windows."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

GRACE = 5.0  # seconds for a late thread to end by itself, before its process is ended


class TimeLimitExceeded(Exception):
    """The function did not return in time."""


class Raised(Exception):
    """The function raised ``error``; wrapped, so that its ``exit()`` or Ctrl-C is not taken for the caller's."""

    def __init__(self, error: BaseException):
        super().__init__(type(error).__name__)  # its repr may raise
        self.error = error


class _Stop(BaseException):
    """Raised inside the thread that is to end; not an Exception, so that ``except Exception`` lets it through."""


def run_limited(function: Callable[[], Any], seconds: int | float) -> Any:
    """``function()`` in a daemon thread.

    A Python loop that runs too long is ended, so that it does not go on taking half of the processor. A loop inside
    compiled code cannot be ended; being a daemon it does not keep the process alive. Where `end_process_when_stuck` is in
    force, a loop that does not even let other threads run ends the process.

    Raises:
      TimeLimitExceeded: after ``seconds``.
      Raised: for anything that the function raised.
    """
    outcome: dict[str, Any] = {}

    def target() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=target, daemon=True, name="minimoe-exercise")
    with _alarm(seconds + GRACE):  # before the thread starts, which may never let this one run again
        thread.start()
        try:
            thread.join(seconds)
        finally:  # also after Ctrl-C
            late = thread.is_alive()
            if late:
                _end(thread)
    if late:
        raise TimeLimitExceeded
    if "error" in outcome:
        raise Raised(outcome["error"])
    return outcome["value"]


def _end(thread: threading.Thread) -> None:
    """Asks CPython to raise `_Stop` at the thread's next instruction; does nothing on other interpreters."""
    raise_in = getattr(getattr(ctypes, "pythonapi", None), "PyThreadState_SetAsyncExc", None)
    if raise_in is not None and thread.ident is not None:
        raise_in(ctypes.c_ulong(thread.ident), ctypes.py_object(_Stop))
        thread.join(0.2)


_ends_process = False


def end_process_when_stuck() -> None:
    """From now on `run_limited` ends this process, by SIGALRM, if its function is late and holds Python's lock.

    For a process that only judges. Does nothing where there is no SIGALRM (Windows).
    """
    global _ends_process
    _ends_process = hasattr(signal, "setitimer")


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    if not _ends_process:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)  # nobody handles SIGALRM: it ends the process without asking Python
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
