"""What comes back from the process that runs an answer: lines of JSON, since reading JSON runs nobody's code.

One line is one `Reply`. An answer that gets hold of the pipe can write into it what it likes: it still has to know the
right numbers, and what is no reply is refused.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np

from minimoe.exercises.messages import Fault

MOST_BYTES = 1 << 20  # of an array that is sent; a larger one has the wrong shape, and its shape alone is sent
MOST_WORDS = 10_000  # characters of a message, or of what an answer printed
LONGEST_LINE = 64 << 20  # bytes: several arrays and gradients of the largest size
NUMBERS = {
    dtype.name: dtype
    for dtype in map(np.dtype, ("bool", *"bhilBHIL", "int64", "uint64", "float16", "float32", "float64", jnp.bfloat16))
}
Arrays = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Reply:
    """What one call of an answer gave: values and gradients, or the fault that ended it, and what was printed."""

    values: Arrays = ()
    gradients: Arrays = ()
    fault: Fault | None = None
    printed: str = ""


def dump(reply: Reply) -> bytes:
    """One line."""
    fault = reply.fault and [reply.fault.aspect, reply.fault.message[:MOST_WORDS], reply.fault.mistake]
    content = {
        "values": [_pack(value) for value in reply.values],
        "gradients": [_pack(value) for value in reply.gradients],
        "fault": fault,
        "printed": reply.printed[:MOST_WORDS],
    }
    return json.dumps(content).encode() + b"\n"


def load(content: Any) -> Reply:
    """The reply that a decoded line holds.

    Raises:
      ValueError: if it is none.
    """
    try:
        fault = content["fault"]
        if fault is not None:
            aspect, message, mistake = fault
            if not all(isinstance(text, str) for text in (aspect, message, mistake or "")):
                raise TypeError("a fault is text")
            fault = Fault(aspect, message, mistake)
        values, gradients = (tuple(map(_unpack, content[name])) for name in ("values", "gradients"))
        return Reply(values, gradients, fault, str(content["printed"]))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError("not a reply") from error


def check_number(name: str, value: Any, where: str) -> None:
    """Refuses what `dump` could not send.

    Raises:
      Fault: if ``value`` holds anything but numbers.
    """
    dtype = np.dtype(value.dtype) if hasattr(value, "dtype") else np.asarray(value).dtype
    if dtype.name not in NUMBERS:
        raise Fault("dtype", f"{name} holds {dtype}, not numbers ({where}).")


def _pack(value: Any) -> Any:
    if not hasattr(value, "dtype"):
        return value  # a Python number
    shape = [int(size) for size in value.shape]
    packed = {"dtype": np.dtype(value.dtype).name, "shape": shape}
    if hasattr(value, "__array__") and int(np.prod(shape)) * np.dtype(value.dtype).itemsize <= MOST_BYTES:
        packed["bytes"] = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return packed


def _unpack(packed: Any) -> Any:
    """The array; one without bytes is all zeros and takes no memory."""
    if isinstance(packed, int | float):
        return packed
    dtype, shape = NUMBERS[packed["dtype"]], tuple(packed["shape"])
    if "bytes" in packed:
        return np.frombuffer(base64.b64decode(packed["bytes"]), dtype).reshape(shape)
    return np.broadcast_to(np.zeros((), dtype), shape)
