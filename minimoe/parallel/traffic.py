"""What devices send each other: counted in a compiled program, and from a formula.

Bytes are those that one device sends, by the usual algorithm of each collective, for a group of n devices:

    all-to-all            (n - 1) / n of what it holds: a share of 1/n stays
    all-gather            (n - 1) times its own part
    reduce-scatter        (n - 1) / n of the whole
    all-reduce            2 (n - 1) / n of the whole: a reduce-scatter, then an all-gather
    collective-permute    what it holds

Two things that the counts show on CPUs (XLA of JAX 0.10): the top-k of a router is not partitioned, so its scores ``[T, E]``
are gathered on every device; and where moments are split, gradients are summed by an all-reduce and then cut, not by a
reduce-scatter, which would send half as much.

A simulated device sends at the speed of memory, so times on it say nothing about a network. Bytes are what they would be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from minimoe.config import MoEConfig
from minimoe.parallel.reach import rows_per_device

KINDS = ("all-to-all", "all-gather", "reduce-scatter", "all-reduce", "collective-permute")
_OPERATION = re.compile(rf"= (\(?.*?\)?) ({'|'.join(KINDS)})(?:-start)?\(")
_BITS = {"pred": 8, "bf16": 16} | {f"{kind}{bits}": bits for kind in "sfu" for bits in (8, 16, 32, 64)}


def collective_bytes(compiled: Any, *, loops: bool = False) -> dict[str, float]:
    """Bytes that one device sends in one run of a compiled program, by kind of collective.

    Args:
      compiled: from ``jax.jit(...).lower(...).compile()``, or its text.
      loops: count what stands inside loops instead, one turn of each: the further rounds of `on_mesh`, which balanced
        routing does not need. How many turns they take is known at run time only.

    Returns:
      A number for each of `KINDS`.

    Example:
      >>> text = "  %a = f32[8,4]{1,0} all-reduce(%b), replica_groups={{0,1,2,3}}, to_apply=%add"
      >>> collective_bytes(text)["all-reduce"]  # twice three quarters of 128 bytes
      192.0
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    parts = dict(_computations(text))
    inside = _reached_from_loops(parts)
    sent = dict.fromkeys(KINDS, 0.0)
    for name, lines in parts.items():
        if (name in inside) == loops:
            for line in lines:
                found = _OPERATION.search(line)
                if found is not None:
                    sent[found[2]] += _sent(found[2], _array_bytes(found[1]), _group_size(line))
    return sent


def exchange_bytes(
    config: MoEConfig, devices: int, tokens: int, dtype: str = "float32", backward: bool = True
) -> float:
    """Bytes that one device sends in one round of a layer's exchange, from its sizes alone.

    ``(N - 1) * R`` rows leave a device, twice a direction: D numbers to the expert and D back. The ids of the experts and
    their weights travel along, K each (E each where experts choose their tokens); backwards, the gradients of the weights. A
    group limit makes R smaller.

    Args:
      config: of the layer. devices: N along the axis ``expert``. tokens: of one device.
      dtype: of rows and weights; ids are int32. backward: count the gradients too.

    Example:
      >>> sizes = {"d_model": 64, "d_expert": 64, "num_experts": 32, "top_k": 4}
      >>> limited = MoEConfig(**sizes, select="group_limited", num_groups=8, top_k_groups=2)
      >>> round(exchange_bytes(limited, 8, 512) / exchange_bytes(MoEConfig(**sizes), 8, 512), 2)
      0.57
    """
    rows = (devices - 1) * rows_per_device(config, devices, tokens)
    width = jnp.dtype(dtype).itemsize
    ways, listed = 2 if backward else 1, config.num_experts if config.facts.lists_all_experts else config.top_k
    return float(rows * (2 * ways * config.d_model * width + listed * (4 + ways * width)))


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Name and lines of each computation of a program's text."""
    name, lines = "", list[str]()
    for line in text.splitlines():
        opened = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if opened is not None and not line.startswith(" "):
            yield name, lines
            name, lines = opened[1], []
        else:
            lines.append(line)
    yield name, lines


def _reached_from_loops(parts: dict[str, list[str]]) -> set[str]:
    """Computations that are the body of a loop, or are called by one."""
    open_ = {name for lines in parts.values() for line in lines for name in re.findall(r"\bbody=%?([\w.\-]+)", line)}
    found: set[str] = set()
    while open_:
        name = open_.pop()
        found.add(name)
        called = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", "\n".join(parts.get(name, [])))
        open_ |= set(called) - found
    return found


def _array_bytes(shapes: str) -> float:
    """Of all arrays in a text such as ``(f32[8,4]{1,0}, s32[8])``."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    return sum(_BITS[kind] / 8 * math.prod(int(n) for n in axes.split(",") if n) for kind, axes in found)


def _group_size(line: str) -> int:
    """Devices of a group, from ``{{0,1},{2,3}}``, ``[2,2]<=[4]`` or ``mesh['a'=2,'b'=2] {'b'}``."""
    named = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\S+)? \{(.*?)\}", line)
    if named is not None:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])  # a part of an axis is written 'a':(1)2
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if counted is not None:
        return int(counted[1])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return listed[1].count(",") + 1 if listed is not None else 1


def _sent(kind: str, size: float, group: int) -> float:
    """``size``: bytes of the result on one device."""
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter":
        return size * (group - 1)
    return (2 if kind == "all-reduce" else 1) * size * (group - 1) / group
