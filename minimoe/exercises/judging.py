"""Judges answers, each in a clean process of its own.

What an answer does to its process, and what the caller has set in its own (float64, `jax.disable_jit`, ``XLA_FLAGS``),
changes no verdict. The answer runs there and is judged here: nothing over there knows what is right.
`minimoe.exercises.judge_process` is the other end of the pipes.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from minimoe import checks
from minimoe.errors import UserError
from minimoe.exercises.calls import Step
from minimoe.exercises.grade import verdict
from minimoe.exercises.judge_process import read_frame, send
from minimoe.exercises.messages import Fault
from minimoe.exercises.record import Exercise, Result
from minimoe.exercises.registry import CATALOGUE
from minimoe.exercises.wire import LONGEST_LINE, Reply, load

START_LIMIT = 120.0  # seconds for the other process to import JAX, on a busy machine
FILE_LIMIT = 60.0  # seconds for running a student's file
CALL_MARGIN = 10.0  # seconds beside the limit of a call, for what comes before and after it
EXIT_LIMIT = 1.0  # seconds for the process of an answer to end when all is said
CLEAN_LIMIT = 5.0  # seconds for ending what an answer has started
MARK = "MINIMOE_JUDGED_BY"  # the environment variable by which processes that an answer started are found

# With -I the interpreter looks in its own folders alone; the search path of the caller comes in as arguments.
BOOT = "import sys; sys.path[:] = sys.argv[1:]; from minimoe.exercises.judge_process import main; main()"

ALONE = "An answer returns its result and leaves the process alone."


class Late(Exception):
    """The other process did not say anything in time."""


class Ended(Exception):
    """The process of an answer ended before it had said all; ``code`` as of `subprocess.Popen`, None if unknown."""

    def __init__(self, code: int | None):
        super().__init__(code)
        self.code = code


class JudgeFailed(UserError):
    """No answer could be run, through no fault of an answer: it says nothing about one."""


class Judges:
    """The other process, started on first use, and started again after it was ended.

    One at a time uses it; for several at once, make several.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._frames: queue.Queue[tuple[bytes, bytes]] = queue.Queue()
        self._mark = ""
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
        return self._verdict(exercise, {"pickled": pickled}, time_limit)

    def file(self, path: Path, id: str, *, time_limit: int | float | None = None) -> Result:
        """The verdict on one answer of a student's file, which runs anew for it."""
        return self._verdict(CATALOGUE[id], {"file": path.absolute()}, time_limit)

    def ids(self, path: Path) -> list[str]:
        """The ids of the answers in a student's file.

        Raises:
          UserError: if the file cannot be read or run, or has no usable ``ANSWERS``.
        """
        request = {"file": path.absolute(), "exercise": None, "steps": (), "time_limit": None}
        try:
            with contextlib.closing(self._lines(request, [FILE_LIMIT + CALL_MARGIN])) as lines:
                found = [line["ids"] for line in lines]
            ids = [str(id) for id in found[0]]
        except JudgeFailed:
            raise
        except UserError as error:
            raise UserError(str(error).replace(str(path.absolute()), str(path))) from None
        except Late:
            raise UserError(
                f"{path} did not finish within {FILE_LIMIT:g} s when run; run it with python first"
            ) from None
        except Ended as error:
            how = f"ended its process ({_how(error.code)}) when run"
            raise UserError(f"{path} {how}; run it with python first") from None
        except (LookupError, TypeError, ValueError):
            raise UserError(f"{path} wrote to the process that judges it when run; it must leave that alone") from None
        for id in ids:
            _ = CATALOGUE[id]
        return ids

    def close(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        _end_marked(self._mark)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _verdict(self, exercise: Exercise, request: dict[str, Any], time_limit: int | float | None) -> Result:
        limit = exercise.time_limit
        if time_limit is not None:
            limit = checks.number("time_limit", time_limit, 0, 86_400, ends="(]", hint="it is in seconds, of a call")
        request = request | {"exercise": exercise.public(), "time_limit": limit}
        return verdict(exercise, lambda steps: self._replies(request, limit, steps))

    def _replies(self, request: dict[str, Any], limit: int | float, steps: tuple[Step, ...]) -> Iterator[Reply]:
        """What the answer gives for each step.

        Raises:
          Fault: if its process ended or took too long, or something else came back.
        """
        # An answer that takes NumPy arrays or JAX arrays may be called twice in one step.
        waits = [FILE_LIMIT + CALL_MARGIN] + [2 * limit + CALL_MARGIN] * len(steps)
        try:
            with contextlib.closing(self._lines(request | {"steps": steps}, waits)) as lines:
                yield from map(load, lines)
        except UserError:  # it is a ValueError
            raise
        except ValueError:
            raise Fault("process", f"wrote to the process that judges it. {ALONE}") from None
        except Late:
            raise Fault("time", _too_long(limit)) from None
        except Ended as ended:
            if ended.code == -getattr(signal, "SIGALRM", 14):
                raise Fault("time", _too_long(limit)) from None
            words = f"ended its process ({_how(ended.code)}). Does it call exit, or ask for more memory than there is? "
            raise Fault("process", words + ALONE) from None

    def _lines(self, request: dict[str, Any], waits: list[float]) -> Generator[Any, None, None]:
        """What the other process says, line by line, decoded; whatever happens, its child is gone afterwards.

        Args:
          waits: seconds for each line, the last of them also for the line that says that all is said.

        Raises:
          Late, Ended, JudgeFailed: see there. UserError: the file or the function is of no use. ValueError: what came is
            no JSON.
        """
        with self._busy:
            child: int | None = None
            text, count, clean, reached = b"", 0, False, False
            try:
                send(self._started(), request | {"modules": [entry or os.getcwd() for entry in sys.path]})
                deadline = time.monotonic() + START_LIMIT + waits[0]
                while True:
                    kind, content = self._next(deadline)
                    if kind == b"c":
                        child, reached, deadline = int(content) or None, True, time.monotonic() + waits[0]
                    if kind == b"e":
                        clean = True
                        raise Ended(int(content))
                    if kind == b"gone":
                        child = None  # it ends with its parent
                        raise Ended(self._code())
                    text += content if kind == b"s" else b""
                    *lines, text = text.split(b"\n")
                    if len(text) > LONGEST_LINE:
                        raise ValueError("too long a line")
                    for line in lines:
                        said = json.loads(line)
                        if said == {"done": True}:
                            clean = self._has_ended(EXIT_LIMIT)
                            return
                        if "error" in said:
                            raise UserError(str(said["error"]))
                        count += 1
                        deadline = time.monotonic() + waits[min(count, len(waits) - 1)]
                        if said != {"loaded": True}:
                            yield said
            except (Ended, Late, OSError) as error:
                if not reached:
                    raise JudgeFailed(
                        "the process that runs answers ended before it ran one, or did not start; is the memory used up?"
                    ) from error
                if isinstance(error, OSError):  # the pipe broke
                    raise Ended(self._code()) from None
                raise
            except (RecursionError, TypeError):
                raise ValueError("no JSON that was asked for") from None
            finally:
                if not clean:
                    self._stop(child)

    def _next(self, deadline: float) -> tuple[bytes, bytes]:
        try:
            return self._frames.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            raise Late from None

    def _code(self) -> int | None:
        """How the other process ended."""
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(CLEAN_LIMIT)
        return None

    def _started(self) -> Any:
        """The pipe to the other process."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            self._frames, self._mark = queue.Queue(maxsize=64), uuid.uuid4().hex
            search = [str(Path(__file__).parents[2]), *(entry for entry in sys.path if entry and entry != os.getcwd())]
            command = [sys.executable, "-I", "-c", BOOT, *search]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=clean_environment() | {MARK: self._mark},
                    start_new_session=True,  # a Ctrl-C is for the caller, who ends it
                )
            except OSError as error:
                raise JudgeFailed(
                    f"answers are judged in a process of their own, and {sys.executable} cannot be started "
                    f"({error.strerror}); run minimoe with an interpreter that you may start"
                ) from error
            threading.Thread(target=_listen, args=(self._process.stdout, self._frames), daemon=True).start()
        return self._process.stdin

    def _stop(self, child: int | None) -> None:
        """Ends the answer, and waits until the other process has ended what it started; else ends that process too."""
        with contextlib.suppress(ProcessLookupError):
            if child is not None:
                os.kill(child, signal.SIGKILL)
        if child is None or not self._has_ended(CLEAN_LIMIT):
            self.close()

    def _has_ended(self, patience: float) -> bool:
        """Waits until the other process says that the answer's process is gone; what it says meanwhile is dropped."""
        deadline = time.monotonic() + patience
        with contextlib.suppress(Late):
            while True:
                kind, _ = self._next(deadline)
                if kind in (b"e", b"gone"):
                    return kind == b"e"
        return False


def _too_long(limit: int | float) -> str:
    return f"took longer than {limit:g} s, and was stopped. Is there a loop that does not end?"


def _end_marked(mark: str) -> None:
    """Ends the processes that carry a mark in their environment; only Linux shows it."""
    found = True
    while found:
        found = False
        for path in glob.glob("/proc/[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() in Path(path).read_bytes():
                    os.kill(int(path.split("/")[2]), signal.SIGKILL)
                    found = True
        time.sleep(0.01 if found else 0)  # until they are gone


def clean_environment() -> dict[str, str]:
    """This environment without what changes a verdict: JAX's, XLA's, NNX's and Python's own variables; on the CPU."""
    dropped = ("JAX_", "XLA_", "NNX_", "FLAX_", "PYTHON", "MALLOC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"JAX_PLATFORMS": "cpu", "PYTHONUTF8": "1"}


def _listen(stream: Any, frames: queue.Queue[tuple[bytes, bytes]]) -> None:
    try:
        while True:
            frames.put(read_frame(stream))
    except (EOFError, OSError, ValueError):
        frames.put((b"gone", b""))


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return "exit code unknown" if code is None else f"exit code {code}"


_shared = Judges()
atexit.register(_shared.close)


def shared() -> Judges:
    """The judges of this process, which `minimoe.exercises.check` uses."""
    return _shared
