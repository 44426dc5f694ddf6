"""What the commands share: where messages go, the progress bar, JSON, and the choice of text."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer

messages = Console(stderr=True, highlight=False, soft_wrap=True)
QUIET_SECONDS = 10.0  # between lines where there is no terminal to draw a bar on


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(values, indent=1) + "\n")


def write_out(text: str) -> None:
    """Plain text on stdout, whatever its encoding can show."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")


class Bar:
    """A progress bar on stderr with elapsed time and ETA; on anything but a terminal, a line every ten seconds.

    ``update(done, note)`` may be called as often as one likes.
    """

    def __init__(self, title: str, total: int, start: int = 0):
        self.title, self.total = title, total
        self._last = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._progress: Progress | None = None
        if messages.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24))
            times = (TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn(), TextColumn("ETA"))
            notes = (TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
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
            messages.print(f"{self.title}: {done}/{self.total}{eta}  {note}".rstrip(), markup=False)


def start(title: str | None = None) -> None:
    """Common beginning of a command that computes: compilation cache on, an optional line on stderr."""
    from minimoe.process import keep_compiled_programs

    keep_compiled_programs()
    if title:
        messages.print(title, markup=False)


def choose_documents(text: Path | None) -> list[Document]:
    """The bundled corpus, or the user's own file or folder."""
    from minimoe.data import documents, load_text

    return documents() if text is None else load_text(text)


def describe_data(text: Path | None, documents: list[Document]) -> dict[str, str]:
    """Name and hash of the text, to be recorded with a run; the bundled corpus (``text`` None) has a hash of its own."""
    import hashlib

    from minimoe.data import corpus_hash

    if text is None:
        return {"name": "minimoe-corpus", "sha256": corpus_hash()}
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.domain}\0{document.split}\0{document.key}\0{document.text}\0".encode())
    return {"name": text.name, "sha256": digest.hexdigest()}


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of a prompt, the end-of-text token first, as documents begin in training."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not UTF-8 text at character {error.start}; type it again") from error
    return [tokenizer.eot_id, *tokenizer.encode(prompt)]


def counter(bar: Bar) -> Callable[[int, int], None]:
    """An evaluation callback that moves ``bar``."""
    return lambda done, total: bar.update(done, total=total)
