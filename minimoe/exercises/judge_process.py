"""The process that judges: it is started with clean settings, judges one answer, and ends.

It reads requests from its standard input and answers on its standard output, both framed by `send` and `receive`. On
Linux it is a nursery: it imports everything once, and forks a clean child for every request. Elsewhere it judges a single
request itself. `minimoe.exercises.judging` is the other end.

An answer may do what it likes to its process: change JAX's settings, end it, fill its memory. It cannot reach the next.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import os
import pickle
import select
import signal
import struct
import sys
from typing import Any, BinaryIO

MEMORY_LIMIT = 4 << 30  # bytes that an answer may take on top of what JAX itself has
CAN_FORK = sys.platform == "linux"  # where libraries of the system survive a fork
# Nine tenths of the time of an answer went into compiling some 25 tiny programs, each of which runs once or twice. These
# settings of XLA skip what makes a program fast and a compilation slow; what the program computes stays the same.
QUICK_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)


def send(stream: BinaryIO, message: Any) -> None:
    """Writes one message: its length in 8 bytes, then its pickle."""
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


def main() -> None:
    """Serves requests until standard input ends."""
    requests, answers = _own_streams()
    import cloudpickle  # noqa: F401
    import optax  # noqa: F401  (some answers use it)

    import minimoe.exercises.grade  # noqa: F401  (imports JAX, and starts no back end yet: a fork stays safe)

    if CAN_FORK:
        _adopt_orphans()
        _compile_quickly()
        gc.freeze()  # children share this memory: a collection in a child would copy it page by page
    while True:
        try:
            request = receive(requests)
        except EOFError:
            return
        if not CAN_FORK:
            send(answers, ("last", judge(request)))
            return
        _judge_in_child(request, answers, private=(requests, answers))


def _own_streams() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes, out of reach of what an answer reads and prints: that goes to nowhere and to standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, answers


def _compile_quickly() -> None:
    """Sets `QUICK_COMPILATION` for the children, if XLA knows these settings: an unknown one ends a process.

    A child tries them. This process has not asked XLA for anything yet, and what has been set counts from then on.
    """
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            os.environ["XLA_FLAGS"] = QUICK_COMPILATION
            import jax.numpy as jnp

            os._exit(0 if int(jnp.arange(3).sum()) == 3 else 1)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    if status == 0:
        os.environ["XLA_FLAGS"] = QUICK_COMPILATION


def _judge_in_child(request: dict[str, Any], answers: BinaryIO, private: tuple[BinaryIO, ...]) -> None:
    """Forks; tells the number of the child first, so that it can be ended from outside, and then how it ended.

    Args:
      private: streams to the caller, which are closed in the child: what an answer starts cannot hold them open.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        for descriptor in (read_end, *(pipe.fileno() for pipe in private)):
            os.close(descriptor)
        try:
            with os.fdopen(write_end, "wb") as verdict:
                send(verdict, judge(request))
        finally:
            os._exit(0)
    os.close(write_end)
    send(answers, ("child", child))
    with os.fdopen(read_end, "rb") as stream:
        status = _wait_for(child, stream)
        try:
            outcome: tuple[str, Any] | None = ("done", receive(stream))
        except (EOFError, pickle.UnpicklingError):
            outcome = None
    if status is None:
        _, status = os.waitpid(child, 0)
    _end_children()
    send(answers, outcome or ("ended", os.waitstatus_to_exitcode(status)))


def _wait_for(child: int, stream: BinaryIO) -> int | None:
    """Waits until the stream of a child has something to read; or the child has ended, then its status.

    The end of the child does not end the stream as long as processes hold it that the child has started. They are ended.
    """
    while not select.select([stream], [], [], 0.05)[0]:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            _end_children()
            return status
    return None


def _adopt_orphans() -> None:
    """Makes this process the parent of what its children leave behind, so that `_end_children` finds it."""
    import ctypes

    set_child_subreaper = 36  # <linux/prctl.h>
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


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


def judge(request: dict[str, Any]) -> Any:
    """What a request asks for: the ids of the answers in a file, or the `Result` of one answer, or a `UserError`.

    Args:
      request: ``file``, a student's, or ``pickled``, a function; ``id`` of the exercise (None: the ids of the file);
        ``time_limit`` of each call; ``modules``, the search path of the caller.
    """
    import cloudpickle

    from minimoe.errors import UserError
    from minimoe.exercises.grade import grade
    from minimoe.exercises.limits import end_process_when_stuck
    from minimoe.exercises.registry import CATALOGUE
    from minimoe.exercises.submission import load_answers

    sys.path[:] = request["modules"]
    end_process_when_stuck()
    _limit_memory(MEMORY_LIMIT)
    try:
        if "file" in request:
            answers = load_answers(request["file"])
            if request["id"] is None:
                return list(answers)
            answer = answers[request["id"]]
        else:
            answer = cloudpickle.loads(request["pickled"])
    except UserError as error:
        return error
    return grade(CATALOGUE[request["id"]], answer, time_limit=request["time_limit"])


def _limit_memory(extra: int) -> None:
    """An answer that asks for more gets a MemoryError; nothing is limited where the system has no such limit."""
    if not CAN_FORK:
        return
    import resource

    import jax

    jax.devices()  # the back end takes address space that it does not use
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = size + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
