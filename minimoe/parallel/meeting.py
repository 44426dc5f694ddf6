"""Several processes find each other before JAX connects them.

`jax.distributed` waits by itself, but where a process does not come, or the port is taken, it ends this process in C++,
without an error that Python could catch. So they meet here first, at the same address: the others send a line of JSON to
process 0, which says when all are there. Then the port is free again, for JAX.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from typing import Any

from minimoe.errors import UserError

LONGEST_LINE = 1000  # bytes of what they say to each other
PAUSE = 0.2  # seconds between two tries to reach process 0


def meet(coordinator: str, count: int, index: int, seconds: int | float) -> None:
    """Returns when all processes are there.

    Args:
      coordinator: ``HOST:PORT``. count: of processes. index: of this one. seconds: to wait at most.

    Raises:
      UserError: if one does not come in time, the port is taken, the host is not known, something else listens there, or
        another process has the same number or counts otherwise.
    """
    host, _, port = coordinator.rpartition(":")
    try:
        if index:
            _knock(host, int(port), {"process": index, "processes": count}, seconds)
        else:
            _wait_for_all(coordinator, int(port), count, seconds)
    except UserError as error:
        raise UserError(f"process {index} of {count}: {error}") from None
    except OSError as error:  # a host that is not known; a port that may not be opened or is none
        known = error.errno is not None and error.errno > 0  # of a host that is not known it is below 0
        reason = os.strerror(error.errno or 0) if known else error.strerror or str(error)
        raise UserError(
            f"process {index} of {count}: {coordinator} cannot be used ({reason}); choose another"
        ) from None


def _wait_for_all(coordinator: str, port: int, count: int, seconds: int | float) -> None:
    deadline, come = time.monotonic() + seconds, dict[int, socket.socket]()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_server(port))
        while missing := sorted({*range(1, count)} - set(come)):
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                peer = stack.enter_context(server.accept()[0])
            except TimeoutError:
                names = ", ".join(map(str, missing))
                said = f"--process {names} did not come to {coordinator} in {seconds:g} s"
                _tell(come.values(), {"refused": said})
                raise UserError(f"{said}; start it with the same command otherwise") from None
            hello = _heard(peer, 5.0)
            if "process" not in hello:
                continue  # whoever that was, it was none of us
            refused = _refused(hello, count, come)
            if refused:
                _tell([peer], {"refused": refused})
            else:
                come[hello["process"]] = peer
        _tell(come.values(), {"all": count})
        for peer in come.values():
            _heard(peer, 5.0)  # nothing: they close first, and so the port is free at once


def _refused(hello: dict[str, Any], count: int, come: dict[int, socket.socket]) -> str:
    if hello.get("processes") != count:
        return f"process 0 waits for --processes {count}, not {hello.get('processes')}; give all the same"
    if hello["process"] not in range(1, count) or hello["process"] in come:
        return f"another process is --process {hello['process']} already; give each its own number"
    return ""


def _knock(host: str, port: int, hello: dict[str, Any], seconds: int | float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise UserError(f"nobody listened at {host}:{port} for {seconds:g} s; start process 0 there")
        try:
            peer = socket.create_connection((host, port), timeout=left)
        except (ConnectionError, TimeoutError):
            time.sleep(PAUSE)
            continue
        with peer:
            if peer.getsockname() == peer.getpeername():  # by chance our end took the port that nobody listened at
                continue
            _tell([peer], hello)
            answer = _heard(peer, max(deadline - time.monotonic(), 0.01) + 5.0)  # process 0 may say why it gave up
        if "refused" in answer:
            raise UserError(str(answer["refused"]))
        if "all" not in answer:
            raise UserError(f"what listens at {host}:{port} is no process 0 that waits for others; choose another port")
        return


def _server(port: int) -> socket.socket:
    """Listens at every address of this machine, as JAX will."""
    if not 0 < port < 65536:
        raise UserError(f"port {port} is not in 1..65535; choose another")
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # IPv6 is switched off
                raise
    return socket.create_server(("", port))


def _tell(peers: Any, what: dict[str, Any]) -> None:
    for peer in peers:
        with contextlib.suppress(OSError):  # it is gone, and will not be missed before JAX misses it
            peer.sendall(json.dumps(what).encode() + b"\n")


def _heard(peer: socket.socket, seconds: int | float) -> dict[str, Any]:
    """One line of JSON; empty if it does not come, or is none."""
    deadline, line = time.monotonic() + seconds, b""
    try:
        while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
            peer.settimeout(max(deadline - time.monotonic(), 0.01))
            more = peer.recv(LONGEST_LINE)
            if not more:
                break
            line += more
        found = json.loads(line)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
