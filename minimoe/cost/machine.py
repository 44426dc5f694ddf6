"""The machine at hand, measured: how fast it multiplies matrices of many shapes, moves bytes, and starts an operation.

A data sheet has one peak. A real machine has a rate for each shape: a matmul with few rows reads its weights and waits
for memory, a tiny one waits for its own start. So `measure_machine` times a grid of shapes, and `Machine` answers for
shapes between them. Every time is that of an operation inside a compiled program, the best of several rounds.

Axes of a matmul: ``[m, k] x [k, n]``, which takes ``2 m k n`` FLOPs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from minimoe.cost.hardware import Chip, Number
from minimoe.errors import UserError

ROWS, INNER, COLUMNS = (1, 8, 64, 1024), (32, 128, 512), (32, 256, 2048)  # m, k, n of the grid
FEW_ROWS = (1, 8, 64)  # of those that read weights in turn
LARGE = (1024, 1024, 1024)  # the peak
WORKING_SETS = (2**20, 2**22, 2**24, 2**27)  # bytes
TURNED = (2**14, 2**17, 2**20, 2**23)  # bytes of an array whose heads are put first
KINDS = ("exponentials", "summed", "gathered", "sorted", "picked")
MEASURED = "measured on this machine"


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates of one machine.

    Attributes:
      name: in words. cores: that the process may use. memory_bytes: of the machine.
      matmul_seconds: float32, by ``(m, k, n)``: the whole grid ``ROWS x INNER x COLUMNS``.
      peak_flops: FLOP/s of a matmul of `LARGE` shape, under "float32" and "bfloat16".
      bandwidth: bytes a second, read and written, by the bytes that are worked on.
      reading: bytes a second of weights that few rows meet in turn, by ``(rows, bytes of all weights)``, the whole grid
        ``FEW_ROWS x WORKING_SETS``: what decoding waits for, since no matrix is still in a near cache when it comes again.
      turning: bytes a second, read and written, by the bytes of an array whose inner axes change places, as heads do.
      slicing: the same of pieces that are copied out of arrays, by the bytes of all these arrays. Both are empty in records
        from before they were measured; then the bandwidth stands in.
      per_second: of numbers that are exponentiated, summed in rows, gathered in rows and sorted, and of those among which
        the place of the largest is picked: under `KINDS`.
      call_seconds: a small operation, by the number of operations of its program: XLA runs the few of a short loop in
        order, and plans which of many can run side by side, which costs more than they do.
    """

    name: str
    cores: int
    memory_bytes: int
    matmul_seconds: Mapping[tuple[int, int, int], int | float]
    peak_flops: Mapping[str, int | float]
    bandwidth: Mapping[int, int | float]
    reading: Mapping[tuple[int, int], int | float]
    per_second: Mapping[str, int | float]
    call_seconds: Mapping[int, int | float]
    turning: Mapping[int, int | float] = dataclasses.field(default_factory=dict)
    slicing: Mapping[int, int | float] = dataclasses.field(default_factory=dict)

    def matmul(self, m: int, k: int, n: int) -> int | float:
        """Seconds of a float32 matmul: FLOPs over a rate that is interpolated between the shapes of the grid.

        The logarithm of the rate is linear in the logarithms of m, k and n. Beyond the grid it stays as at its edge.
        """
        corners = [_around(axis, size) for axis, size in zip((ROWS, INNER, COLUMNS), (m, k, n), strict=True)]
        logs = 0.0
        for a, share_m in corners[0]:
            for b, share_k in corners[1]:
                for c, share_n in corners[2]:
                    logs += share_m * share_k * share_n * math.log(a * b * c / self.matmul_seconds[a, b, c])
        return m * k * n / math.exp(logs)

    def bytes_per_second(self, working_set: int | float) -> int | float:
        """Bandwidth for data of this many bytes: large where they fit a cache, that of the memory where they do not."""
        return _between(self.bandwidth, working_set)

    def reads_per_second(self, rows: int, weights: int | float) -> int | float:
        """Bytes a second at which matmuls of so many rows get through weights that are so many bytes in all."""
        sizes = {size: _between({r: self.reading[r, size] for r in FEW_ROWS}, rows) for size in self._sizes_read}
        return _between(sizes, weights)

    @property
    def _sizes_read(self) -> set[int]:
        return {size for _, size in self.reading}

    def turns_per_second(self, size: int | float) -> int | float:
        """Bytes a second, read and written, at which an array of so many bytes is turned."""
        return _between(self.turning or self.bandwidth, size)

    def slices_per_second(self, working_set: int | float) -> int | float:
        """Bytes a second, read and written, at which pieces are copied out of arrays of so many bytes in all."""
        return _between(self.slicing or self.bandwidth, working_set)

    def call(self, operations: int | float) -> int | float:
        """Seconds that an operation costs beside what it computes, in a program of so many."""
        return _between(self.call_seconds, operations)

    def chip(self) -> Chip:
        """As a chip for `minimoe.cost.decode_step`: peaks, memory and its bandwidth, nothing of links.

        Example:
          >>> machine = Machine("mine", 1, 2**33, {}, {"float32": 1e11, "bfloat16": 5e10}, {2**28: 1e10}, {}, {}, {})
          >>> machine.chip().peak("float32")
          100000000000.0
        """
        values = {
            "float32_tflops": self.peak_flops["float32"] / 1e12,
            "bf16_tflops": self.peak_flops["bfloat16"] / 1e12,
            "memory_gb": self.memory_bytes / 1e9,
            "memory_tb_per_s": self.bandwidth[max(self.bandwidth)] / 1e12,
        }
        numbers = {name: Number(value, MEASURED, "measured") for name, value in values.items()}
        return Chip("this machine", self.name, numbers)

    def to_record(self) -> dict[str, Any]:
        """Plain values, with three digits: `from_record` reads them."""
        grid = [[*shape, _short(seconds)] for shape, seconds in self.matmul_seconds.items()]
        plain = {
            "matmul_seconds": grid,
            "bandwidth": [[size, _short(rate)] for size, rate in self.bandwidth.items()],
            "reading": [[*place, _short(rate)] for place, rate in self.reading.items()],
            "peak_flops": {kind: _short(rate) for kind, rate in self.peak_flops.items()},
            "per_second": {kind: _short(rate) for kind, rate in self.per_second.items()},
            "call_seconds": [[size, _short(seconds)] for size, seconds in self.call_seconds.items()],
            "turning": [[size, _short(rate)] for size, rate in self.turning.items()],
            "slicing": [[size, _short(rate)] for size, rate in self.slicing.items()],
        }
        return {"name": self.name, "cores": self.cores, "memory_bytes": self.memory_bytes} | plain

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Machine:
        """The inverse of `to_record`.

        Raises:
          UserError: for a record that lacks something, or a grid of other shapes.
        """
        try:
            later = {"turning": (), "slicing": ()}
            values = {field.name: (later | dict(record))[field.name] for field in dataclasses.fields(cls)}
            values["matmul_seconds"] = {(m, k, n): seconds for m, k, n, seconds in record["matmul_seconds"]}
            values |= {name: dict(values[name]) for name in ("bandwidth", "call_seconds", "turning", "slicing")}
            values["reading"] = {(rows, size): rate for rows, size, rate in record["reading"]}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the record of a machine is broken: {error!r}; measure again with minimoe doctor"
            ) from None
        if set(values["matmul_seconds"]) != set(grid_shapes()):
            raise UserError("the record of a machine holds another grid of shapes; measure again with minimoe doctor")
        return cls(**values)


def grid_shapes() -> list[tuple[int, int, int]]:
    """All ``(m, k, n)`` that are timed."""
    return [(m, k, n) for m in ROWS for k in INNER for n in COLUMNS]


def _short(value: int | float) -> int | float:
    return float(f"{value:.3g}")


def _between(table: Mapping[int, int | float], size: int | float) -> int | float:
    """The value for ``size``, linear in logarithms between the entries of ``table``, and as at its ends beyond them."""
    return math.exp(sum(share * math.log(table[place]) for place, share in _around(tuple(sorted(table)), size)))


def _around(axis: tuple[int, ...], size: int | float) -> list[tuple[int, float]]:
    """The one or two places of ``axis`` around ``size``, with the share of each, in logarithms."""
    size = min(max(size, axis[0]), axis[-1])
    above = next(i for i, place in enumerate(axis) if place >= size)
    if axis[above] == size:
        return [(axis[above], 1.0)]
    low, high = axis[above - 1], axis[above]
    share = math.log(size / low) / math.log(high / low)
    return [(low, 1 - share), (high, share)]
