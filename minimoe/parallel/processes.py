"""Several processes, on one machine or on several, that train one model: each is told where the first one listens.

    minimoe train --mesh data=2 --out runs/two --coordinator 127.0.0.1:7777 --processes 2 --process 0 &
    minimoe train --mesh data=2 --out runs/two --coordinator 127.0.0.1:7777 --processes 2 --process 1

Nothing but these three values differs from a run in one process. `jax.distributed` does the rest: afterwards
`jax.devices` holds the devices of all processes, and each computes its share of every step.
"""

from __future__ import annotations

import re

import jax

from minimoe import checks
from minimoe.errors import UserError
from minimoe.parallel.meeting import meet

WAIT_SECONDS = 120  # for the other processes to come


def join(coordinator: str | None, processes: int | None, process: int | None, mesh: str | None) -> bool:
    """Joins this process to the others; does nothing if none of the three values is given.

    Call it before anything that asks JAX for a device.

    Args:
      coordinator: ``HOST:PORT`` at which process 0 listens and where the others find it.
      processes: how many there are, at least 2. process: which of them this one is, from 0.
      mesh: of all their devices; needed, since without one every process would train a model of its own.

    Returns:
      Whether this process is the one that reads and writes files: process 0, or the only one.

    Raises:
      UserError: if a value is missing or outside its range, or if the processes do not find each other in time.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return True
    if missing:
        raise UserError(f"--{missing[0]} is missing; several processes need --coordinator, --processes and --process")
    if re.fullmatch(r"[^\s:]+:[0-9]{1,5}", str(coordinator)) is None:
        raise UserError(f"--coordinator {coordinator!r} is not HOST:PORT; write for example 127.0.0.1:7777")
    count = checks.whole("--processes", processes, 2)
    index = checks.whole("--process", process, 0, count - 1)
    if mesh is None:
        raise UserError("--processes train one model over a mesh; give --mesh too, such as --mesh data=2")
    meet(str(coordinator), count, index, WAIT_SECONDS)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # what CPUs send through; others ignore it
    try:
        jax.distributed.initialize(
            coordinator, num_processes=count, process_id=index, initialization_timeout=WAIT_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())[:200]
        raise UserError(f"process {index} of {count} did not meet the others at {coordinator}: {words}") from None
    return index == 0
