"""The process that runs answers: it is started with clean settings, runs one answer after another, and judges none.

It reads requests from its standard input, as `receive` does, and writes frames to its standard output, as `frame` makes
them. On Linux it is a nursery: it imports everything once, and forks a clean child for every request. Elsewhere it
serves a single request itself. `minimoe.exercises.judging` is the other end.

An answer may do what it likes to its process: change JAX's settings, end it, fill its memory. It cannot reach the next,
and it finds no solutions: this process does not import them.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import json
import os
import pickle
import select
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Callable
from typing import Any, BinaryIO

MEMORY_LIMIT = 4 << 30  # bytes that an answer may take on top of what JAX itself has
FILE_SIZE_LIMIT = 1 << 28  # bytes of a file that it writes
CAN_FORK = sys.platform == "linux"  # where libraries of the system survive a fork
CHUNK = 1 << 16  # bytes that are passed on at a time
# Nine tenths of the time of an answer went into compiling some 25 tiny programs, each of which runs once or twice. These
# settings of XLA skip what makes a program fast and a compilation slow; what the program computes stays the same.
QUICK_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)

Say = Callable[[bytes], None]


def send(stream: BinaryIO, message: Any) -> None:
    """Writes one request: its length in 8 bytes, then its pickle."""
    content = pickle.dumps(message)
    stream.write(struct.pack("<Q", len(content)) + content)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Reads what `send` wrote.

    Raises:
      EOFError: if the other end is gone.
    """
    header = stream.read(8)
    if len(header) < 8:
        raise EOFError("the other process is gone")
    (length,) = struct.unpack("<Q", header)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError("the other process is gone")
    return pickle.loads(content)


def frame(kind: bytes, content: bytes) -> bytes:
    """What this process writes; no pickle, which could run code at the other end.

    Args:
      kind: ``c``, the number of a child, 0 if this process itself runs the answer; ``s``, a piece of what it says;
        ``e``, its exit code: it is gone.
    """
    return struct.pack("<cI", kind, len(content)) + content


def read_frame(stream: BinaryIO) -> tuple[bytes, bytes]:
    """Reads what `frame` made.

    Raises:
      EOFError: if the other end is gone, or writes something else.
    """
    header = stream.read(5)
    kind, length = struct.unpack("<cI", header) if len(header) == 5 else (b"", 0)
    content = stream.read(min(length, CHUNK))
    if kind not in (b"c", b"s", b"e") or len(content) < length:
        raise EOFError("the other process is gone")
    return kind, content


def main() -> None:
    """Serves requests until standard input ends."""
    requests, answers = _own_streams()
    sys.dont_write_bytecode = True
    import cloudpickle  # noqa: F401
    import optax  # noqa: F401  (some answers use it)

    import minimoe.exercises.calls
    import minimoe.exercises.guard
    import minimoe.exercises.submission  # noqa: F401  (imports JAX, and starts no back end yet: a fork stays safe)

    if CAN_FORK:
        _call_system("prctl", 36, 1)  # PR_SET_CHILD_SUBREAPER: what children leave behind is found by `_end_children`
        _compile_quickly()
        gc.freeze()  # children share this memory: a collection in a child would copy it page by page
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            request = receive(requests)
            if not CAN_FORK:
                _write(answers, frame(b"c", b"0"))
                with _own_folder() as folder:
                    serve(request, folder, lambda content: _write(answers, frame(b"s", content)))
                return
            _serve_in_child(request, requests, answers)


def _own_streams() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes, out of reach of what an answer reads and prints: that goes to nowhere."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, answers


def _write(stream: BinaryIO, content: bytes) -> None:
    stream.write(content)
    stream.flush()


def _compile_quickly() -> None:
    """Sets `QUICK_COMPILATION` for the children, if XLA knows these settings: an unknown one ends a process.

    A child tries them. This process has not asked XLA for anything yet, and what has been set counts from then on.
    """
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            _be_silent()
            os.environ["XLA_FLAGS"] = QUICK_COMPILATION
            import jax.numpy as jnp

            os._exit(0 if int(jnp.arange(3).sum()) == 3 else 1)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    if status == 0:
        os.environ["XLA_FLAGS"] = QUICK_COMPILATION


def _be_silent() -> None:
    """What this process writes past Python goes to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


@contextlib.contextmanager
def _own_folder() -> Any:
    """A new folder that an answer works in and may write into, deleted afterwards; none where there is no room for one."""
    folder = None
    try:
        with contextlib.suppress(OSError):
            folder = tempfile.mkdtemp(prefix="minimoe-answer-")
        yield folder or os.sep + "nowhere"
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _serve_in_child(request: dict[str, Any], requests: BinaryIO, answers: BinaryIO) -> None:
    """Forks; tells the number of the child first, so that it can be ended from outside, then what it says, then its end.

    If the caller goes away meanwhile, the child is ended.
    """
    with _own_folder() as folder:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                # What an answer starts cannot hold the pipes open, and a signal to its group does not leave it.
                for descriptor in (read_end, requests.fileno(), answers.fileno()):
                    os.close(descriptor)
                os.setpgid(0, 0)
                _call_system("prctl", 1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with this process
                _be_silent()
                with os.fdopen(write_end, "wb") as stream:
                    serve(request, folder, lambda content: _write(stream, content))
            finally:
                os._exit(0)
        os.close(write_end)
        try:
            _write(answers, frame(b"c", str(child).encode()))
            status = _pass_on(child, read_end, requests, answers)
        finally:
            os.close(read_end)
            _end_children()
    _write(answers, frame(b"e", str(os.waitstatus_to_exitcode(status)).encode()))


def _pass_on(child: int, stream: int, requests: BinaryIO, answers: BinaryIO) -> int:
    """Passes on what a child says until it has ended; returns its status.

    Its end is asked for, since the pipe stays open as long as processes hold it that the child has started.
    """
    watched: list[Any] = [stream, requests]
    ended = status = 0
    while True:
        if not ended:  # asked before reading: what it said before its end is read below
            ended, status = os.waitpid(child, os.WNOHANG)
        ready, _, _ = select.select(watched, [], [], 0 if ended else 0.05 if stream in watched else 0.002)
        content = os.read(stream, CHUNK) if stream in ready else b""
        if content:
            _write(answers, frame(b"s", content))
        elif ended:
            return status
        elif stream in ready:  # it has closed its end, and will be gone in a moment
            watched.remove(stream)
        if requests in ready:  # no request comes before the answer to the last: the caller is gone
            raise EOFError("the caller is gone")


def _call_system(name: str, *arguments: int) -> None:
    """A function of the C library; nothing where there is none of that name."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        getattr(ctypes.CDLL(None), name)(*arguments, *([0] * (5 - len(arguments))))


def _end_children() -> None:
    """Ends all processes that an answer left behind. The children of one that ends become ours, and are ended next."""
    while children := _children():
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _children() -> list[int]:
    """The children of this process; none where the system does not tell."""
    found: list[int] = []
    for path in glob.glob("/proc/self/task/*/children"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            found += [int(number) for number in file.read().split()]
    return found


def serve(request: dict[str, Any], folder: str, say: Say) -> None:
    """Says what a request asks for, a line of JSON each: the ids of a file's answers, or the replies of one answer.

    Before the replies it says ``{"loaded": true}``. The last line is ``{"done": true}``; or ``{"error": words}`` for a file
    of no use.

    Args:
      request: ``file``, a student's, or ``pickled``, a function; ``exercise`` without its solutions, and ``steps`` (None:
        the ids of the file); ``time_limit`` of each call; ``modules``, the search path of the caller.
      folder: where the answer works.
    """
    from minimoe.errors import UserError
    from minimoe.exercises.calls import replies
    from minimoe.exercises.guard import hide_judge, keep_out
    from minimoe.exercises.limits import end_process_when_stuck
    from minimoe.exercises.submission import load_answers
    from minimoe.exercises.wire import dump

    def tell(**values: Any) -> None:
        say(json.dumps(values).encode() + b"\n")

    sys.path[:] = request["modules"]
    end_process_when_stuck()
    _limit_memory(MEMORY_LIMIT)
    _work_in(folder)
    keep_out(folder)
    hide_judge()
    try:
        answers = load_answers(request["file"]) if "file" in request else None
        answer = _carried(request["pickled"]) if answers is None else None
    except UserError as error:
        tell(error=str(error))
        return
    exercise = request["exercise"]
    if answers is not None and exercise is None:
        tell(ids=[str(id) for id in answers])
    else:
        answer = answer if answers is None else answers[exercise.id]
        tell(loaded=True)
        for reply in replies(exercise, answer, request["steps"], time_limit=request["time_limit"]):
            say(dump(reply))
    tell(done=True)


def _carried(pickled: bytes) -> Any:
    """A function from the caller's process, with what it uses."""
    import cloudpickle

    from minimoe.errors import UserError
    from minimoe.exercises.messages import words_of

    try:
        return cloudpickle.loads(pickled)
    except Exception as error:
        words = f"{type(error).__name__}: {words_of(error)}"
        raise UserError(f"the answer cannot be loaded ({words}); let it use its arguments alone") from error


def _work_in(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.chdir(folder)
    tempfile.tempdir = os.environ["TMPDIR"] = folder


def _limit_memory(extra: int) -> None:
    """An answer that asks for more gets a MemoryError; nothing is limited where the system has no such limit."""
    if not CAN_FORK:
        return
    import resource

    import jax

    jax.devices()  # the back end takes address space that it does not use
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    for limit, wanted in ((resource.RLIMIT_AS, size + extra), (resource.RLIMIT_FSIZE, FILE_SIZE_LIMIT)):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
