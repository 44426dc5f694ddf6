"""The tour's first table: each claim of the press, its verdict, and the numbers behind it, of this run or recorded."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from minimoe.claims.evidence import signed

HOLDS, FAILS = "holds", "does not show here"


def claims(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows with ``claim``, ``verdict``, ``numbers`` and ``source`` ("this run" or the name of a record).

    Args:
      values: what ``report.json`` holds, as far as it is measured.
    """
    return [
        _active(values),
        _facts(values),
        _text(),
        _balance(values),
        _bits(values),
        _problems(),
        _filled(),
        _distilled(values),
        _cached(values),
    ]


def _row(claim: str, verdict: str, numbers: str, source: str) -> dict[str, str]:
    return {"claim": claim, "verdict": verdict, "numbers": numbers, "source": source}


def _active(values: Mapping[str, Any]) -> dict[str, str]:
    sparse = values["models"][0]
    share = sparse["active_params"] / sparse["total_params"]
    numbers = (
        f"{sparse['active_params'] / 1e6:.2f} of {sparse['total_params'] / 1e6:.2f} million parameters ({share:.0%})"
    )
    return _row("Only a fraction of the model works on a token", HOLDS, numbers, "this run")


def _facts(values: Mapping[str, Any]) -> dict[str, str]:
    ways = values["facts"]["ways"]
    dense, most = ways[0]["recalled"], ways[-1]["recalled"]
    won = all(sparse > one for sparse, one in zip(most, dense, strict=True))
    numbers = "; ".join(f"{way['name']} {statistics.mean(way['recalled']):.0%}" for way in ways)
    return _row(
        "Idle parameters are worth having, at equal arithmetic a token",
        "holds when facts must be remembered" if won else FAILS,
        f"facts recalled: {numbers} ({sum(s > d for s, d in zip(most, dense, strict=True))} of {len(dense)} seeds)",
        "this run",
    )


def _text() -> dict[str, str]:
    from minimoe.claims.sparse import text_gains

    gains = text_gains()
    by_tokens, by_time = gains["8 experts, equal tokens"], gains["8 experts, equal time"]
    return _row(
        "Sparse beats dense on text",
        HOLDS
        if min(by_time) > 0
        else "holds at equal tokens, not at equal time"
        if statistics.mean(by_tokens) > 0
        else FAILS,
        f"bits per byte gained at 6.1M tokens: {signed(by_tokens)} at equal tokens, {signed(by_time)} at equal time",
        "record longer-text",
    )


def _balance(values: Mapping[str, Any]) -> dict[str, str]:
    none, bias = values["collapse"]["ways"]
    gain = [100 * (b - n) for b, n in zip(bias["recalled"], none["recalled"], strict=True)]
    worst, best = (statistics.mean(way["max_violation"]) for way in (none, bias))
    return _row(
        "A bias keeps all experts in work, at no cost in quality",
        HOLDS if min(gain) > 0 and best < worst else FAILS,
        f"MaxVio {worst:.1f} without, {best:.1f} with the bias; facts recalled {statistics.mean(none['recalled']):.0%} "
        f"and {statistics.mean(bias['recalled']):.0%} (by seed {signed(gain, 0)} points)",
        "this run",
    )


def _bits(values: Mapping[str, Any]) -> dict[str, str]:
    before, recipes = values["quantized"]["before"], values["quantized"]["recipes"]
    changes = [row["bits_per_byte"] / before["bits_per_byte"] - 1 for row in recipes]
    full = values["quantized"]["bytes_bfloat16"]
    numbers = "; ".join(
        f"{row['name']} {full / row['bytes']:.1f}x smaller, {change:+.2%} bits per byte"
        for row, change in zip(recipes, changes, strict=True)
    )
    verdict = HOLDS if max(changes) < 0.01 else FAILS
    return _row("8 and 4 bits are near-lossless (on text)", verdict, numbers, "this run")


def _problems() -> dict[str, str]:
    from minimoe.claims.bits import problems_asked, problems_lost

    found = problems_lost()
    lost = {name: statistics.mean(found[name]) for name in ("int8-w8a8", "fp8", "v4")}
    numbers = "; ".join(f"{name} {points:+.1f}" for name, points in lost.items())
    return _row(
        "The same, for problems that are solved in steps",
        HOLDS if max(lost.values()) < 2 else FAILS,
        f"points of {problems_asked()} problems lost: {numbers}",
        "record reasoning-formats",
    )


def _filled() -> dict[str, str]:
    from minimoe.claims.bits import facts_lost

    found = facts_lost()
    lost = {name: statistics.mean(found[name]) for name in ("int8", "fp8", "v4")}
    numbers = ", ".join(f"{name} {value:.0f}" for name, value in lost.items())
    return _row(
        "The same, for a model that is full of facts",
        "holds for int8 alone" if lost["int8"] < 5 < min(lost["fp8"], lost["v4"]) else "see the numbers",
        f"points of facts forgotten: {numbers}",
        "record knowledge-formats",
    )


def _distilled(values: Mapping[str, Any]) -> dict[str, str]:
    right, asked = values["solved"]["right"], len(values["solved"]["problems"])
    return _row(
        "Distillation puts a teacher's reasoning into a small model",
        HOLDS if right["student"] > right["nano"] else FAILS,
        f"problems solved, of {asked}: student {right['student']}, the nano it began from {right['nano']}",
        "this run",
    )


def _cached(values: Mapping[str, Any]) -> dict[str, str]:
    rung = values["caches"]
    published, crossing = rung["published"], rung["published"]["crossing"]
    (short, at_short), (long, at_long) = ((int(context), ratio) for context, ratio in published["ratios"].items())
    first, last = rung["ours"][:2]
    holds = round(published["reported"], 1) >= 9.5
    return _row(
        "The cache of what was read is 9.5 times smaller (V4-Pro against V3.2)",
        f"holds at {long / 2**20:.0f}M tokens, not for short contexts" if holds and at_short < 9 else FAILS,
        f"by the published sizes {published['reported']:.2f} times at {long:,} tokens ({at_long:.2f} with all that is kept), "
        f"{at_short:.1f} at {short:,}; below {crossing:,} tokens V4-Pro keeps more. Ours, one more token: {first['name']} "
        f"{first['bytes_per_token']:,.0f} bytes, {last['name']} {last['bytes_per_token']:,.0f}",
        "published sizes; arrays of this run",
    )
