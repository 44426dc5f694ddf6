"""Lesson 08, third exercise: who sends how many rows to whom when experts live on several devices.

Axes: T tokens, K experts a token, P devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from minimoe.exercises.record import Arguments, Case, Exercise, Mistake, Output


def rows_sent_oracle(experts: Int[np.ndarray, "T K"], num_experts: int, devices: int) -> Int[np.ndarray, "P P"]:
    """Token by token: the set of devices that need its row."""
    rows = np.zeros((devices, devices), np.int32)
    for token, chosen in enumerate(experts):
        home = token // (len(experts) // devices)
        for device in {int(expert) // (num_experts // devices) for expert in chosen}:
            if device != home:
                rows[home, device] += 1
    return rows


def sending(
    once: bool = True,
    keeps_own: bool = False,
    token_home: Callable[[np.ndarray, int, int], np.ndarray] = lambda token, tokens, p: token // (tokens // p),
    expert_home: Callable[[np.ndarray, int, int], np.ndarray] = lambda expert, experts, p: expert // (experts // p),
    columns: slice = slice(None),
    seen: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
) -> Callable[..., Any]:
    """A mistaken count: rows sent twice or to oneself, tokens or experts that live elsewhere."""

    def outputs(experts: np.ndarray, num_experts: int, devices: int) -> np.ndarray:
        experts = np.asarray(experts)
        homes = token_home(np.arange(len(experts)), len(experts), devices)
        to = expert_home(experts[:, columns], num_experts, devices)
        rows = np.zeros((devices, devices), np.int32)
        for home, chosen in zip(homes, to, strict=True):
            for device in set(chosen.tolist()) if once else chosen.tolist():
                rows[home, device] += keeps_own or device != home
        return seen(rows)

    return outputs


def by_expert(experts: np.ndarray, num_experts: int, devices: int) -> np.ndarray:
    """One row an expert that somebody on the device chose, as if the tokens of a device were one."""
    experts = np.asarray(experts)
    rows = np.zeros((devices, devices), np.int32)
    for home, block in enumerate(experts.reshape(devices, -1)):
        for expert in set(block.tolist()):
            device = expert // (num_experts // devices)
            rows[home, device] += device != home
    return rows


def choices(seed: int, tokens: int, num_experts: int, top_k: int, devices: int) -> Arguments:
    rng = np.random.default_rng(seed)
    skewed = rng.gumbel(size=(tokens, num_experts)) + np.linspace(1, 0, num_experts)
    return np.argsort(-skewed, axis=1)[:, :top_k].astype(np.int32), num_experts, devices


ROWS_SENT = Exercise(
    id="hardware.rows_sent",
    lesson=8,
    title="Rows that travel between devices",
    signature="rows_sent(experts, num_experts, devices)",
    task=(
        "Experts are divided over P = `devices` devices in order: with 8 experts on 4 devices, device 0 has experts 0 and 1. "
        "The T tokens of a batch are divided in the same way: the first T/P live on device 0. `experts` `[T, K]` int32 are "
        "the experts that each token chose, all different. A token's row must reach every device that has one of its "
        "experts. A device that has *several* of them gets the row *once*. A row that stays at home is not sent. Returns "
        "`rows` `[P, P]` int32: `rows[i, j]` is the number of rows that device i sends to device j. T and `num_experts` are "
        "multiples of P; both `num_experts` and `devices` are ints."
    ),
    difficulty=3,
    minutes=20,
    points=10,
    hints=(
        "Take one token on device 0 that chose experts 2, 3 and 7 of 8, on 4 devices. Which devices need its row?",
        "Make a table [T, P] of True and False: does the token need the device? Several experts on one device still give "
        "one True.",
        "Then add up the table over the tokens of each device, and empty the diagonal.",
    ),
    outputs=(Output("rows", "int32"),),
    oracle=rows_sent_oracle,
    cases=(
        Case("four devices", lambda: choices(821, 12, 8, 3, 4)),
        Case("two devices", lambda: choices(822, 10, 6, 2, 2)),
        Case("an expert a device", lambda: choices(823, 9, 3, 2, 3)),
        Case("one device", lambda: choices(824, 4, 4, 2, 1)),
        Case("every expert chosen", lambda: choices(825, 4, 4, 4, 2)),
        Case("a larger batch", lambda: choices(826, 64, 16, 4, 8)),
    ),
    mistakes=(
        Mistake(
            "one row an expert",
            "sends a row once for each expert. A device that has several of a token's experts gets the row once: that is "
            "what limiting the devices of a token saves.",
            sending(once=False),
        ),
        Mistake(
            "rows that stay at home",
            "counts rows that a device needs itself. They are not sent.",
            sending(keeps_own=True),
        ),
        Mistake(
            "one row an expert, also at home",
            "sends a row once for each expert, also to the device where the token lives.",
            sending(once=False, keeps_own=True),
        ),
        Mistake(
            "sender and receiver exchanged",
            "fills the table the other way round: `rows[i, j]` is what i sends to j.",
            sending(seen=lambda rows: rows.T),
        ),
        Mistake(
            "experts dealt like cards",
            "gives expert e to device e % P. They are divided in order: the first ones to device 0.",
            sending(expert_home=lambda expert, experts, p: expert % p),
        ),
        Mistake(
            "tokens dealt like cards",
            "gives token t to device t % P. They are divided in order: the first ones to device 0.",
            sending(token_home=lambda token, tokens, p: token % p),
        ),
        Mistake(
            "the first choice alone",
            "sends each row to its first expert only.",
            sending(columns=slice(1)),
        ),
        Mistake(
            "one row an expert that somebody chose",
            "counts the experts that the tokens of a device chose, not the tokens. Every token has a row of its own.",
            by_expert,
        ),
        Mistake(
            "both directions together",
            "adds what comes to what goes.",
            sending(seen=lambda rows: rows + rows.T),
        ),
    ),
    jit=False,
)
