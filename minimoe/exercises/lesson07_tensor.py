"""Lesson 07, first exercise: one tensor out of a safetensors file, from its bytes.

Axes: N bytes of the file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from minimoe.exercises.record import Arguments, Case, Exercise, Mistake, Output

Ints = tuple[int, ...]


def tensor_oracle(data: UInt8[np.ndarray, "N"], begin: int, end: int, shape: Ints) -> Float[np.ndarray, "..."]:
    """Byte by byte: length of the header, then pairs of bytes as the upper half of a float32."""
    raw = [int(byte) for byte in data]
    header = sum(byte * 256**place for place, byte in enumerate(raw[:8]))
    place = 8 + header + begin
    values = []
    while place < 8 + header + end:
        values.append(struct.unpack("<f", bytes([0, 0, raw[place], raw[place + 1]]))[0])
        place += 2
    return np.array(values, np.float32).reshape(shape)


def reading(
    start: Callable[[int], int] = lambda header: 8 + header,
    value: Callable[[np.ndarray], np.ndarray] = lambda pairs: (pairs.astype(np.uint32) << 16).view(np.float32),
    order: str = "C",
    big: bool = False,
) -> Callable[..., Any]:
    """A mistaken reader: another place where the tensors begin, another meaning of two bytes, another order of axes."""

    def outputs(data: np.ndarray, begin: int, end: int, shape: Ints) -> np.ndarray:
        first = start(int(data[:8].view("<u8")[0]))
        raw = np.array(data[first + begin : first + end]).view(">u2" if big else "<u2")
        with np.errstate(all="ignore"):
            return np.asarray(np.reshape(value(raw.astype(np.uint16)), shape, order=order), np.float32)  # type: ignore[call-overload]

    return outputs


def file_arguments(seed: int, shape: Ints, before: int = 0, spaces: int = 0) -> Arguments:
    """A file with a tensor of ``before`` values, then the wanted one, then another; its header padded by ``spaces``."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    values = rng.normal(size=before + count + 3) * 2.0 ** rng.integers(-40, 40, before + count + 3)
    bits = (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    begin, end = 2 * before, 2 * (before + count)
    offsets = {"first": ([before], 0, begin), "wanted": (list(shape), begin, end), "last": ([3], end, end + 6)}
    header = json.dumps(
        {name: {"dtype": "BF16", "shape": s, "data_offsets": [a, b]} for name, (s, a, b) in offsets.items()}
    )
    packed = header.encode() + b" " * (-len(header) % 8 + spaces)
    data = np.frombuffer(struct.pack("<Q", len(packed)) + packed + bits.tobytes(), np.uint8)
    return data, begin, end, shape


TENSOR = Exercise(
    id="weights.tensor",
    lesson=7,
    title="One tensor out of a file of weights",
    signature="tensor(data, begin, end, shape)",
    task=(
        "Read one bfloat16 tensor from the bytes of a safetensors file. `data` uint8 `[N]` is the *whole* file: eight bytes "
        "with the length n of the header, an unsigned little-endian integer; then n bytes of JSON; then the tensors. The "
        "JSON has been read for you: it says `data_offsets: [begin, end]` and `shape`, a tuple of ints. Offsets count from "
        "the *end of the header*. A bfloat16 is two bytes, the lower one first: they are the upper half of a float32 whose "
        "lower half is zero. The last axis varies fastest. Returns float32 of that shape."
    ),
    difficulty=3,
    minutes=20,
    points=10,
    hints=(
        "Where does the first tensor begin, counted from the first byte of the file? What stands before it?",
        "np.frombuffer or .view read many bytes as one type: the length as '<u8', the values as '<u2'.",
        "Widen the 16 bits to 32, shift them left by 16 places, and look at the same bits as float32: .view, not .astype.",
    ),
    outputs=(Output("tensor", "float32"),),
    oracle=tensor_oracle,
    cases=(
        Case("the first tensor of a file", lambda: file_arguments(701, (3, 4)), exact=True),
        Case("a tensor behind another", lambda: file_arguments(702, (4, 2), before=5), exact=True),
        Case("three axes", lambda: file_arguments(703, (2, 3, 2), before=1), exact=True),
        Case("a header of more than 255 bytes", lambda: file_arguments(704, (1, 4), before=2, spaces=200), exact=True),
        Case("one number", lambda: file_arguments(705, (), before=4), exact=True),
        Case("no number at all", lambda: file_arguments(706, (0, 3), before=4), exact=True),
    ),
    mistakes=(
        Mistake(
            "offsets from the start of the file",
            "takes the offsets from the first byte of the file. The header and its length stand before the tensors.",
            reading(start=lambda header: 0),
        ),
        Mistake(
            "the eight bytes of the length",
            "skips the header, but not the eight bytes that say how long it is.",
            reading(start=lambda header: header),
        ),
        Mistake(
            "only the length skipped",
            "skips the eight bytes of the length, but not the header itself.",
            reading(start=lambda header: 8),
        ),
        Mistake(
            "a header of one byte's length",
            "reads the length from the first byte alone. It fills eight, and a header is often longer than 255 bytes.",
            reading(start=lambda header: 8 + header % 256),
        ),
        Mistake(
            "bytes the other way round",
            "takes the upper byte first. Little-endian: the lower byte comes first.",
            reading(big=True),
        ),
        Mistake(
            "half precision",
            "reads float16. bfloat16 has the eight exponent bits of float32 and seven of fraction; float16 has five and ten.",
            reading(value=lambda pairs: pairs.view(np.float16).astype(np.float32)),
        ),
        Mistake(
            "whole numbers",
            "takes the two bytes as a whole number. They are bits of sign, exponent and fraction.",
            reading(value=lambda pairs: pairs.astype(np.float32)),
        ),
        Mistake(
            "the lower half",
            "puts the 16 bits into the lower half of a float32, where they are a tiny fraction. They are its upper half.",
            reading(value=lambda pairs: pairs.astype(np.uint32).view(np.float32)),
        ),
        Mistake(
            "a shifted number instead of shifted bits",
            "shifts the bits and converts the whole number to a float. The bits themselves are the float: look at them anew.",
            reading(value=lambda pairs: (pairs.astype(np.uint32) << 16).astype(np.float32)),
        ),
        Mistake(
            "first axis fastest",
            "fills the columns first. In the file the last axis varies fastest.",
            reading(order="F"),
        ),
    ),
    jit=False,
)
