"""Judges answers, each in a clean process of its own.

What an answer does to its process, and what the caller has set in its own (float64, `jax.disable_jit`, ``XLA_FLAGS``),
changes no verdict. `minimoe.exercises.judge_process` is the other end of the pipes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from minimoe.errors import UserError
from minimoe.exercises.judge_process import receive, send
from minimoe.exercises.record import Exercise, Result
from minimoe.exercises.registry import CATALOGUE

START_LIMIT = 120.0  # seconds for a judging process to import JAX, on a busy machine
FILE_LIMIT = 60.0  # seconds for running a student's file
CLEAN_LIMIT = 5.0  # seconds for ending what an answer has started

# With -I the interpreter looks in its own folders alone; the search path of the caller comes in as arguments.
BOOT = "import sys; sys.path[:] = sys.argv[1:]; from minimoe.exercises.judge_process import main; main()"


class Judges:
    """A judging process that is started on first use, and started again after it was ended.

    One at a time uses it; for several at once, make several.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: queue.Queue[Any] = queue.Queue()
        self._busy = threading.Lock()

    def answer(self, id: str, answer: Any, *, time_limit: int | float | None = None) -> Result:
        """The verdict on a function of this process, which is carried over with what it uses.

        Raises:
          UserError: if it uses something that cannot be carried over, such as an open file.
        """
        exercise = CATALOGUE[id]
        import cloudpickle  # functions of a notebook, with the globals and closures that they need

        try:
            pickled = cloudpickle.dumps(answer)
        except Exception as error:
            raise UserError(
                f"{id}: the answer cannot be carried to the process that judges it ({error}); "
                "let it use its arguments and imported modules alone"
            ) from error
        request = {"pickled": pickled, "id": id, "time_limit": time_limit}
        return self._verdict(exercise, request, time_limit)

    def file(self, path: Path, id: str, *, time_limit: int | float | None = None) -> Result:
        """The verdict on one answer of a student's file, which runs anew for it."""
        request = {"file": path.resolve(), "id": id, "time_limit": time_limit}
        return self._verdict(CATALOGUE[id], request, time_limit)

    def ids(self, path: Path) -> list[str]:
        """The ids of the answers in a student's file.

        Raises:
          UserError: if the file cannot be read or run, or has no usable ``ANSWERS``.
        """
        kind, value = self._ask({"file": path, "id": None, "time_limit": None}, FILE_LIMIT + 10)
        if kind == "done":
            return value
        how = f"did not finish within {FILE_LIMIT:g} s" if kind == "late" else f"ended its process ({_how(value)})"
        raise UserError(f"{path} {how} when run; run it with python first")

    def close(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def _verdict(self, exercise: Exercise, request: dict[str, Any], time_limit: int | float | None) -> Result:
        limit = exercise.time_limit if time_limit is None else time_limit
        kind, value = self._ask(request, FILE_LIMIT + 10 + limit * (2 * len(exercise.cases) + 1))
        if kind == "done":
            return value
        if kind == "late" or value == -getattr(signal, "SIGALRM", 14):
            words = f"took longer than {limit:g} s, and was stopped. Is there a loop that does not end?"
            return Result(exercise.id, False, 0, exercise.points, words, aspect="time")
        words = (
            f"ended the process that judges it ({_how(value)}). Does it call exit, or ask for more memory than there is? "
            "An answer returns its result and leaves the process alone."
        )
        return Result(exercise.id, False, 0, exercise.points, words, aspect="process")

    def _ask(self, request: dict[str, Any], limit: float) -> tuple[str, Any]:
        """``("done", value)``, ``("ended", exit code)`` or ``("late", None)``."""
        with self._busy:
            child = None
            try:
                stream = self._started()
                send(stream, request | {"modules": [entry or os.getcwd() for entry in sys.path]})
                kind, value = self._messages.get(timeout=START_LIMIT + limit)
                if kind == "child":
                    child = value
                    kind, value = self._messages.get(timeout=limit)
            except queue.Empty:
                self._stop(child)
                return "late", None
            except BaseException:  # Ctrl-C among them: what runs for nobody is ended
                self._stop(child)
                raise
            if kind == "gone":  # the process judged without forking, and the answer ended it
                code = self._process.wait() if self._process else None
                self.close()
                return "ended", code
            if kind == "last":  # such a process judges one answer
                self.close()
                kind = "done"
            if kind == "done" and isinstance(value, UserError):
                raise value
            return kind, value

    def _started(self) -> Any:
        """The pipe to the judging process."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            self._messages = queue.Queue()
            search = [str(Path(__file__).parents[2]), *(entry for entry in sys.path if entry and entry != os.getcwd())]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", BOOT, *search],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=clean_environment(),
                start_new_session=True,  # a Ctrl-C is for the caller, who ends it
            )
            threading.Thread(target=_listen, args=(self._process.stdout, self._messages), daemon=True).start()
        return self._process.stdin

    def _stop(self, child: int | None) -> None:
        """Ends the answer that is judged, and the process that judges it once that has ended what the answer started."""
        if child is not None:
            with contextlib.suppress(OSError, queue.Empty):
                os.kill(child, signal.SIGKILL)
                self._messages.get(timeout=CLEAN_LIMIT)
        self.close()


def clean_environment() -> dict[str, str]:
    """This environment without what changes a verdict: JAX's, XLA's, NNX's and Python's own variables; on the CPU."""
    dropped = ("JAX_", "XLA_", "NNX_", "FLAX_", "PYTHON", "MALLOC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"JAX_PLATFORMS": "cpu", "PYTHONUTF8": "1"}


def _listen(stream: Any, messages: queue.Queue[Any]) -> None:
    try:
        while True:
            messages.put(receive(stream))
    except (EOFError, OSError, ValueError):
        messages.put(("gone", None))


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return "exit code unknown" if code is None else f"exit code {code}"


_shared = Judges()
atexit.register(_shared.close)


def shared() -> Judges:
    """The judges of this process, which `minimoe.exercises.check` uses."""
    return _shared
