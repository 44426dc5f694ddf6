"""Lesson 06, first exercise: the bytes that a compressed cache holds for one sequence.

A layer is named by its ratio: the number of tokens that share one compressed entry, or 0 for a layer without any.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from minimoe.exercises.record import Case, Exercise, Mistake, Output

Ints = tuple[int, ...]


def cache_bytes_oracle(context: int, ratios: Ints, indexed: Ints, window: int, entry: int, key: int) -> int:
    """Layer by layer: the recent tokens, and the entries with their keys."""
    total = 0
    for ratio, has_index in zip(ratios, indexed, strict=True):
        total += entry * min(context, window)
        if ratio:
            total += context // ratio * (entry + key * has_index)
    return total


def counting(
    *,
    recent: Callable[[int, int, int], int] = lambda context, window, ratio: min(context, window),
    number: Callable[[int, int], int | float] = lambda context, ratio: context // ratio,
    keys: Callable[[int, int, int], int | float] = lambda context, ratio, index: context // ratio * index,
    halves: int = 1,
) -> Callable[..., int | float]:
    """A mistaken count: other recent tokens, other compressed entries, other keys of the indexer, keys beside values."""

    def outputs(context: int, ratios: Ints, indexed: Ints, window: int, entry: int, key: int) -> int | float:
        total: int | float = 0
        for ratio, index in zip(ratios, indexed, strict=True):
            total += halves * entry * recent(context, window, ratio)
            if ratio:
                total += halves * entry * number(context, ratio) + key * keys(context, ratio, index)
        return total

    return outputs


V4_PRO = (1_048_576, (128, *(4, 128) * 30), (0, *(1, 0) * 30), 128, 584, 68)
V4_FLASH = (1_048_576, (0, 0, 4, *(128, 4) * 20), (0, 0, 1, *(0, 1) * 20), 128, 584, 68)

CACHE_BYTES = Exercise(
    id="cache.bytes",
    lesson=6,
    title="The bytes of a compressed cache",
    signature="cache_bytes(context, ratios, indexed, window, entry, key)",
    task=(
        "Count the bytes that the attention layers of DeepSeek-V4 keep for one sequence of `context` tokens. Every layer "
        "keeps an entry for each of its last `window` tokens, or for all while there are fewer. A layer of ratio r > 0 "
        "*also* keeps one compressed entry for every r tokens; r tokens that are not complete yet have none. An entry is "
        "key and value in one and weighs `entry` bytes, compressed or not. A layer with an indexer adds `key` bytes to "
        "each *compressed* entry. (The raw numbers of a block that is not complete yet are left aside here.)\n\n"
        "`ratios` has one int a layer, 0 where nothing is compressed; `indexed` has a 1 for each layer with an indexer, "
        "else 0, always with a ratio above 0; the others are ints. Returns one int."
    ),
    difficulty=2,
    minutes=15,
    points=5,
    hints=(
        "Do one layer on paper: 10 tokens, ratio 4, window 3. Which tokens are in the window? How many blocks of four are "
        "complete?",
        "The recent tokens and the compressed entries overlap in what they tell, not in what they store: both are kept.",
        "Ten tokens in blocks of four make two entries: whole division. The index key belongs to the compressed entry, so "
        "it is counted as often as that entry is.",
    ),
    outputs=(Output("bytes", "int"),),
    oracle=cache_bytes_oracle,
    cases=(
        Case("a length that no ratio divides", lambda: (43, (0, 4, 8, 5), (0, 1, 0, 1), 6, 10, 3)),
        Case("one layer of each kind", lambda: (40, (0, 4, 8), (0, 1, 0), 6, 10, 3)),
        Case("shorter than the window", lambda: (5, (0, 2, 8), (0, 1, 0), 6, 10, 3)),
        Case("one token more than the window", lambda: (7, (0, 0, 7), (0, 0, 1), 6, 11, 2)),
        Case("no layer compresses", lambda: (50, (0, 0), (0, 0), 6, 10, 3)),
        Case("DeepSeek-V4-Flash at 1,048,576 tokens", lambda: V4_FLASH),
        Case("DeepSeek-V4-Pro at 1,048,576 tokens", lambda: V4_PRO),
    ),
    mistakes=(
        Mistake(
            "only ratio 0 has a window",
            "leaves the window out where a layer compresses. Every layer keeps its last tokens: a compressed entry says "
            "nothing about a block that is not complete yet.",
            counting(recent=lambda context, window, ratio: 0 if ratio else min(context, window)),
        ),
        Mistake(
            "no window",
            "counts the compressed entries alone. Each layer keeps its last tokens uncompressed too.",
            counting(recent=lambda context, window, ratio: 0),
        ),
        Mistake(
            "every token kept",
            "keeps an entry for every token. Only the last `window` tokens are kept uncompressed: that is what makes the "
            "cache small.",
            counting(recent=lambda context, window, ratio: context),
        ),
        Mistake(
            "a window of tokens that do not exist",
            "counts a full window for a sequence that is shorter than it.",
            counting(recent=lambda context, window, ratio: window),
        ),
        Mistake(
            "a key for every token",
            "gives the indexer one key a token. It chooses among compressed entries, so it has one key for each of those.",
            counting(keys=lambda context, ratio, index: context * index),
        ),
        Mistake(
            "an index in every layer",
            "adds index keys wherever a layer compresses. A layer that compresses heavily has so few entries that it reads "
            "them all: it chooses nothing and needs no index.",
            counting(keys=lambda context, ratio, index: context // ratio),
        ),
        Mistake(
            "no index keys",
            "leaves out the keys of the indexer. They are stored beside the entries that they help to choose.",
            counting(keys=lambda context, ratio, index: 0),
        ),
        Mistake(
            "keys and values counted apart",
            "counts each entry twice. Here one vector is both the key and the value.",
            counting(halves=2),
        ),
        Mistake(
            "an entry for a block that is not complete",
            "rounds the number of entries up. An entry is made when the last token of its block has come.",
            counting(
                number=lambda context, ratio: math.ceil(context / ratio),
                keys=lambda context, ratio, index: math.ceil(context / ratio) * index,
            ),
        ),
        Mistake(
            "parts of an entry",
            "divides without rounding, so a block that has begun counts as a part of an entry. Entries are whole.",
            counting(
                number=lambda context, ratio: context / ratio,
                keys=lambda context, ratio, index: context / ratio * index,
            ),
        ),
    ),
    jit=False,
)
