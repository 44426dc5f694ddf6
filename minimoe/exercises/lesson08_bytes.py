"""Lesson 08, second exercise: the bytes that one decoding step of a sparse model reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minimoe.exercises.record import Case, Exercise, Mistake, Output


def step_bytes_oracle(
    batch: int, layers: int, experts: int, top_k: int, expert: float, dense: float, cache: float
) -> float:
    """Expert by expert: the chance that at least one of the tokens chooses it."""
    missed = 1.0
    for _ in range(batch):
        missed *= 1 - top_k / experts
    read = 0.0
    for _ in range(layers):
        for _ in range(experts):
            read += (1 - missed) * expert
    return dense + read + batch * cache


def reading(
    hit: Callable[[int, int, int], int | float] = lambda b, e, k: e * (1 - (1 - k / e) ** b),
    dense_times: Callable[[int], int] = lambda b: 1,
    cache_times: Callable[[int], int] = lambda b: b,
    every_layer: bool = True,
) -> Callable[..., Any]:
    """A mistaken count: other experts that are read, other weights or caches."""

    def outputs(batch: int, layers: int, experts: int, top_k: int, expert: float, dense: float, cache: float) -> float:
        layer = hit(batch, experts, top_k) * expert
        return dense_times(batch) * dense + (layers if every_layer else 1) * layer + cache_times(batch) * cache

    return outputs


# V4-Flash by its published sizes: 43 layers, experts of 3 matrices of 4096 x 2048 in FP4 (4.25 bits a number with scales).
FLASH = (43, 256, 6, 3 * 4096 * 2048 * 4.25 / 8, 8.2e9, 12e6)

STEP_BYTES = Exercise(
    id="hardware.step_bytes",
    lesson=8,
    title="The bytes that one decoding step reads",
    signature="step_bytes(batch, layers, experts, top_k, expert, dense, cache)",
    task=(
        "A model decodes one token for each of `batch` sequences in one step. How many bytes does it read, on average? It "
        "reads three things. The weights that every token uses, `dense` bytes, are read once. In each of `layers` sparse "
        "layers there are `experts` experts of `expert` bytes, and every token chooses `top_k` *different* ones, all choices "
        "of `top_k` being equally likely and tokens choosing independently: an expert is read once if at least one token "
        "chose it, else not at all. Each sequence reads its own cache of `cache` bytes. `batch`, `layers`, `experts` and "
        "`top_k` are ints, the others floats. Returns a float."
    ),
    difficulty=2,
    minutes=15,
    points=5,
    hints=(
        "With 8 experts and top-2: how likely is it that one token does *not* choose expert 5? That two tokens do not?",
        "An expert is read with probability 1 - (1 - K/E)^B. The expected number of experts that are read is the sum of "
        "these probabilities, also though the choices of one token depend on each other.",
        "Weights are shared by the batch, caches are not.",
    ),
    outputs=(Output("bytes", "float"),),
    oracle=step_bytes_oracle,
    cases=(
        Case("two tokens", lambda: (2, 3, 8, 2, 10.25, 100.5, 7.75)),
        Case("one token", lambda: (1, 3, 8, 2, 10.25, 100.5, 7.75)),
        Case("more tokens than experts", lambda: (20, 2, 4, 1, 10.0, 50.0, 3.0)),
        Case("all experts chosen", lambda: (3, 2, 4, 4, 10.0, 50.0, 3.0)),
        Case("no sparse layer", lambda: (5, 0, 4, 2, 10.0, 50.0, 3.0)),
        Case("the size of DeepSeek-V4-Flash, 64 sequences", lambda: (64, *FLASH)),
    ),
    mistakes=(
        Mistake(
            "no two tokens meet",
            "counts top-k new experts for every token. Tokens that choose independently often choose the same expert, and "
            "it is then read once.",
            reading(lambda b, e, k: b * k),
        ),
        Mistake(
            "all experts",
            "reads every expert at every step. One that nobody chose stays in memory.",
            reading(lambda b, e, k: e),
        ),
        Mistake(
            "the experts of one token",
            "reads top-k experts whatever the batch is. Other tokens choose other experts.",
            reading(lambda b, e, k: k),
        ),
        Mistake(
            "a token may choose an expert twice",
            "treats the top-k choices of a token as independent draws. They are different experts, so a token misses an "
            "expert with probability 1 - K/E exactly.",
            reading(lambda b, e, k: e * (1 - (1 - 1 / e) ** (b * k))),
        ),
        Mistake(
            "one choice a token",
            "lets every token choose a single expert: top_k is missing from the probability.",
            reading(lambda b, e, k: e * (1 - (1 - 1 / e) ** b)),
        ),
        Mistake(
            "the experts that nobody chose",
            "counts the experts that are *not* read.",
            reading(lambda b, e, k: e * (1 - k / e) ** b),
        ),
        Mistake(
            "one cache for all",
            "reads one cache. Every sequence has its own, and that is why the cache decides at large batches.",
            reading(cache_times=lambda b: 1),
        ),
        Mistake(
            "weights read once a sequence",
            "reads the dense weights for each sequence anew. The batch shares them, and that is why one batches.",
            reading(dense_times=lambda b: b),
        ),
        Mistake(
            "one sparse layer",
            "counts the experts of a single layer.",
            reading(every_layer=False),
        ),
    ),
    jit=False,
)
