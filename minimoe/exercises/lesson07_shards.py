"""Lesson 07, third exercise: which file of several a tensor goes into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from minimoe.exercises.record import Case, Exercise, Mistake, Output

Ints = tuple[int, ...]


def shards_oracle(sizes: Ints, limit: int) -> Int[np.ndarray, "_"]:
    """Tensor by tensor, the open file as a list."""
    files: list[list[int]] = [[]]
    numbers = []
    for size in sizes:
        if files[-1] and sum(files[-1]) + size > limit:
            files.append([])
        files[-1].append(size)
        numbers.append(len(files) - 1)
    return np.array(numbers, np.int32)


def filling(
    full: Callable[[int, int, int], bool] = lambda held, size, limit: held + size > limit,
    first: int = 0,
    empty_files: bool = False,
    keeps_count: bool = False,
) -> Callable[..., Any]:
    """A mistaken plan: another moment at which a file is full, or another count."""

    def outputs(sizes: Ints, limit: int) -> np.ndarray:
        number, held, begun, numbers = 0, 0, False, []
        for size in sizes:
            if (begun or empty_files) and full(held, size, limit):
                number, held = number + 1, held if keeps_count else 0
            begun, held = True, held + size
            numbers.append(number + first)
        return np.array(numbers, np.int32)

    return outputs


def first_fit(sizes: Ints, limit: int) -> np.ndarray:
    """Into the first file that has room, an earlier one too."""
    held: list[int] = []
    numbers = []
    for size in sizes:
        found = next((i for i, total in enumerate(held) if total + size <= limit), len(held))
        held += [0] * (found == len(held))
        held[found] += size
        numbers.append(found)
    return np.array(numbers, np.int32)


def by_bytes(sizes: Ints, limit: int) -> np.ndarray:
    """As if the tensors were one stream, cut every ``limit`` bytes."""
    starts = np.cumsum([0, *sizes])[:-1]
    return np.array(starts // limit, np.int32)


def largest_first(sizes: Ints, limit: int) -> np.ndarray:
    order = np.argsort([-size for size in sizes], kind="stable")
    numbers = np.zeros(len(sizes), np.int32)
    numbers[order] = shards_oracle(tuple(sizes[i] for i in order), limit)
    return numbers


SHARDS = Exercise(
    id="weights.shards",
    lesson=7,
    title="Which file a tensor goes into",
    signature="shards(sizes, limit)",
    task=(
        "Large models are stored in several files, *shards*, with an index that says which tensor is where. Make the plan. "
        "Tensors come in order, `sizes` has their bytes, a tuple of ints; `limit` is the most bytes that a file should hold, "
        "an int. A tensor goes into the file that is open. If the file would then hold more than `limit`, the file is closed "
        "and the tensor begins the next one. A tensor is never cut: one that is larger than `limit` has a file of its own. "
        "No file is empty. Returns the number of each tensor's file, from 0, `[len(sizes)]` int32."
    ),
    difficulty=2,
    minutes=15,
    points=5,
    hints=(
        "Do it on paper for sizes 4, 3, 3, 9, 1 and a limit of 7. Which tensors share a file?",
        "Two numbers are enough: the file that is open and the bytes that it holds.",
        "A file that holds nothing is never closed. That one rule covers the tensor that is too large, at the beginning too.",
    ),
    outputs=(Output("numbers", "int32"),),
    oracle=shards_oracle,
    cases=(
        Case("four files", lambda: ((5, 4, 5, 1, 3), 6)),
        Case("a file that is exactly full", lambda: ((5, 5, 1, 9, 10), 10)),
        Case("a tensor that is too large, in the middle", lambda: ((3, 20, 2, 2), 10)),
        Case("a tensor that is too large, first", lambda: ((11, 4, 4), 10)),
        Case("all in one file", lambda: ((1, 2, 3), 100)),
        Case("small tensors between large ones", lambda: ((8, 1, 9, 1, 8, 2, 1, 7), 10)),
        Case("one tensor", lambda: ((12,), 10)),
        Case("no tensor", lambda: ((), 10)),
    ),
    mistakes=(
        Mistake(
            "a full file not used to its end",
            "begins a new file when the old one would be exactly full. It may hold `limit` bytes, not more.",
            filling(lambda held, size, limit: held + size >= limit),
        ),
        Mistake(
            "an empty file",
            "closes a file that holds nothing, before a tensor that is too large. The index would name a file of nothing.",
            filling(empty_files=True),
        ),
        Mistake(
            "closed one tensor late",
            "looks at what the file holds already, without the tensor that is to be added.",
            filling(lambda held, size, limit: held > limit),
        ),
        Mistake(
            "closed when full, one tensor late",
            "looks whether the file is full already, without the tensor that is to be added.",
            filling(lambda held, size, limit: held >= limit),
        ),
        Mistake(
            "the count goes on",
            "does not begin again at 0 bytes with a new file: from the second file on, each tensor has its own.",
            filling(keeps_count=True),
        ),
        Mistake(
            "counted from 1",
            "gives the first file the number 1.",
            filling(first=1),
        ),
        Mistake(
            "back into an earlier file",
            "puts a tensor into an earlier file that still has room. Files are written one after the other and then closed.",
            first_fit,
        ),
        Mistake(
            "tensors cut at the limit",
            "cuts the stream of bytes every `limit` bytes. A tensor is never cut, so a file may end before it is full.",
            by_bytes,
        ),
        Mistake(
            "largest first",
            "sorts the tensors by size. They come in the order that is given.",
            largest_first,
        ),
    ),
    jit=False,
)
