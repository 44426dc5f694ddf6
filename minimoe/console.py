"""What every command writes to the terminal: results on stdout, messages and progress bars on stderr.

Nothing here can fail because of the terminal. A character that stdout cannot encode becomes ``?``. When the reader of
a pipe goes away, the rest of the output goes nowhere and the work goes on. Text is never taken for markup, so that a
file called ``notes [draft].txt`` keeps its name.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from minimoe.errors import UserError

QUIET_SECONDS = 10.0  # between lines where there is no terminal to draw a bar on

ERRORS = {"stdout": "replace", "stderr": "backslashreplace"}  # what a character becomes that cannot be encoded


class Stream:
    """``sys.stdout`` or ``sys.stderr``, whichever object that is when something is written; writing cannot fail.

    A stream that is closed, or whose reader went away, is silent. A disk that is full is a `UserError`, since the
    result would be lost without a word.

    Args:
      name: ``"stdout"`` or ``"stderr"``.
    """

    def __init__(self, name: str):
        self.name = name

    @property
    def _file(self) -> Any:
        file = getattr(sys, self.name)
        return getattr(file, "rich_proxied_file", file)  # a progress bar puts a proxy in its place, which calls us

    @property
    def encoding(self) -> str:
        """Of the stream; UTF-8 where it is closed."""
        return getattr(self._file, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        with contextlib.suppress(AttributeError, ValueError):
            return bool(self._file.isatty())
        return False

    def fileno(self) -> int:
        """Number of the open file."""
        return self._file.fileno()

    def write(self, text: str) -> int:
        """Writes ``text``, with ``?`` (on stderr ``\\u....``) for what the encoding lacks."""
        if self._file is None or self._file.closed:
            return len(text)
        encodable = text.encode(self.encoding, ERRORS[self.name]).decode(self.encoding)
        self._guarded(lambda: self._file.write(encodable))
        return len(text)

    def flush(self) -> None:
        """Sends what was written to its reader."""
        if self._file is not None and not self._file.closed:
            self._guarded(self._file.flush)

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except BrokenPipeError:
            silence(self.name)
        except OSError as error:
            silence(self.name)
            if self.name == "stdout":
                raise UserError(
                    f"the output cannot be written ({error.strerror}); make room or send it elsewhere"
                ) from None


def silence(name: str) -> None:
    """From now on, what goes to ``sys.stdout`` or ``sys.stderr`` goes nowhere, buffered text included."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream without a file needs nothing
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, getattr(sys, name).fileno())
        os.close(nowhere)


def protect_streams() -> None:
    """Makes stdout and stderr safe for code that writes to them directly; once, where the command line begins.

    A closed one is opened on the null device: otherwise the next file that is opened would take its place, and get what
    libraries print.
    """
    for name in ("stdout", "stderr"):
        file = getattr(sys, name)
        if file is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(file, "reconfigure"):
            file.reconfigure(errors=ERRORS[name])


def make_console(name: str, **options: Any) -> Console:
    """A rich console on ``"stdout"`` or ``"stderr"`` that takes no text for markup, emoji codes or numbers to colour."""
    return Console(file=cast(IO[str], Stream(name)), markup=False, emoji=False, highlight=False, **options)


messages = make_console("stderr", soft_wrap=True)
_stdout = Stream("stdout")


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object on stdout; NaN and infinity, which JSON has not, become null."""
    write_out(json.dumps(_finite(values), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_out(text: str) -> None:
    """Plain text and a line feed on stdout, whatever its encoding can show."""
    _stdout.write(text + "\n")
    _stdout.flush()


def show(*parts: RenderableType) -> None:
    """Tables, and lines that wrap at the width of the terminal, on stdout."""
    console = make_console("stdout")
    for part in parts:
        console.print(part)
    _stdout.flush()


class Bar:
    """A progress bar on stderr with elapsed time and ETA; on anything but a terminal, a line every ten seconds.

    ``update(done, note)`` may be called as often as one likes.
    """

    def __init__(self, title: str, total: int, start: int = 0):
        self.title, self.total = title, total
        self._last = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._progress: Progress | None = None
        if messages.is_terminal and not messages.is_dumb_terminal:
            columns = (SpinnerColumn(), _text("{task.description}"), BarColumn(bar_width=24))
            times = (_text("{task.completed}/{task.total}"), TimeElapsedColumn(), _text("ETA"))
            notes = (TimeRemainingColumn(), _text("{task.fields[note]}"))
            self._progress = Progress(*columns, *times, *notes, console=messages, transient=False)
            self._task = self._progress.add_task(title, total=total, completed=start, note="")

    def __enter__(self) -> Bar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Shows that ``done`` of the total are done; ``total`` corrects the total where it was not known before."""
        self.total = self.total if total is None else total
        if self._progress:
            self._progress.update(self._task, completed=done, total=self.total, note=note)
            return
        now = time.monotonic()
        if self._first is None:  # the first unit of work holds the compilation: it says nothing of the others
            self._first = (done, now)
        if now - self._last >= QUIET_SECONDS or done == self.total:
            self._last = now
            since_done, since = self._first
            left = (now - since) / max(done - since_done, 1) * (self.total - done)
            eta = f", ETA {left:.0f} s" if since_done < done < self.total else ""
            messages.print(f"{self.title}: {done}/{self.total}{eta}  {note}".rstrip())


def _text(template: str) -> TextColumn:
    return TextColumn(template, markup=False)


def counter(bar: Bar) -> Callable[[int, int], None]:
    """An evaluation callback that moves ``bar``."""
    return lambda done, total: bar.update(done, total=total)


def start(title: str | None = None) -> None:
    """Common beginning of a command that computes: compilation cache on, an optional line on stderr."""
    from minimoe.process import keep_compiled_programs

    keep_compiled_programs()
    if title:
        messages.print(title)
