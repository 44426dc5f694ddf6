"""Chips as data: what one can compute, hold, read and send a second. Every number has a source and a certainty.

``hardware.json`` holds them. "published" is the maker's own figure, "derived" follows from one, "unverified" is what public
pages contradict each other about, or what was announced and not measured. An unverified number is refused unless the
caller asks for it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from minimoe.errors import UserError

# Number in the file -> what it is in plain units.
UNITS = {
    "bf16_tflops": 1e12,
    "fp8_tflops": 1e12,
    "int8_tops": 1e12,
    "fp4_tflops": 1e12,
    "float32_tflops": 1e12,
    "memory_gb": 1e9,
    "memory_tb_per_s": 1e12,
    "link_gb_per_s": 1e9,
    "link_chips": 1,
    "network_gb_per_s": 1e9,
}
PEAKS = {
    "fp4": "fp4_tflops",
    "fp8": "fp8_tflops",
    "int8": "int8_tops",
    "bf16": "bf16_tflops",
    "float32": "float32_tflops",
}
MARK = "(unverified)"


@dataclasses.dataclass(frozen=True)
class Number:
    """A figure: its ``value`` in the unit of its name, where it is from, and how sure it is."""

    value: int | float
    source: str
    certainty: str  # "published", "derived" or "unverified"

    def __str__(self) -> str:
        return f"{self.value:g}{' ' + MARK if self.certainty == 'unverified' else ''}"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, or one machine that was measured.

    Attributes:
      name, title: how it is called; what it is.
      numbers: those of `UNITS` that are known. ``link_gb_per_s`` counts both directions together, as makers do;
        ``network_gb_per_s`` counts one. ``link_chips`` is how many chips the link joins.
      unverified: whether unverified numbers may be used.
      cut_from: name of the chip that this one is an export version of, or None.

    Example:
      >>> h800 = chip("H800")
      >>> f"{h800.peak('bf16') / h800.memory_bandwidth:.0f} FLOPs a byte"
      '295 FLOPs a byte'
    """

    name: str
    title: str
    numbers: Mapping[str, Number]
    unverified: bool = False
    cut_from: str | None = None

    def value(self, name: str) -> int | float:
        """A number in plain units: FLOP/s, bytes, bytes a second, chips.

        Raises:
          UserError: if it is not known, or not verified and `unverified` is False.
        """
        if name not in self.numbers:
            raise UserError(f"{self.name}: {name} is not known; known are {', '.join(self.numbers)}")
        number = self.numbers[name]
        if number.certainty == "unverified" and not self.unverified:
            what = f"{self.name}: {name}={number.value:g} is unverified ({number.source})"
            raise UserError(f"{what}; ask for it with unverified=True, on the command line --unverified")
        return number.value * UNITS[name]

    def peak(self, kind: str) -> int | float:
        """FLOP/s of matmuls whose operands are of this kind, one of `PEAKS`; a multiply-add counts as 2."""
        if kind not in PEAKS:
            raise UserError(f"compute={kind!r} is not known; choose one of {', '.join(PEAKS)}")
        return self.value(PEAKS[kind])

    def computes(self, kind: str) -> bool:
        """Whether the chip has such a peak at all."""
        return PEAKS.get(kind) in self.numbers

    @property
    def memory(self) -> int | float:
        """Bytes."""
        return self.value("memory_gb")

    @property
    def memory_bandwidth(self) -> int | float:
        """Bytes a second."""
        return self.value("memory_tb_per_s")

    @property
    def link(self) -> int | float:
        """Bytes a second to the chips of one board, in one direction: half of what makers print."""
        return self.value("link_gb_per_s") / 2

    @property
    def network(self) -> int | float:
        """Bytes a second to chips of other boards, in one direction."""
        return self.value("network_gb_per_s")

    def unverified_of(self, *names: str) -> tuple[str, ...]:
        """Those of ``names`` that are unverified: what a result must show."""
        return tuple(n for n in names if n in self.numbers and self.numbers[n].certainty == "unverified")

    def to_record(self) -> dict[str, Any]:
        """Plain values."""
        numbers = {name: dataclasses.asdict(number) for name, number in self.numbers.items()}
        return {"name": self.name, "title": self.title, "numbers": numbers}


@functools.cache
def _file() -> dict[str, Any]:
    return json.loads((resources.files("minimoe.cost") / "hardware.json").read_text(encoding="utf-8"))


def chip_names() -> tuple[str, ...]:
    """The chips that have numbers.

    Example:
      >>> chip_names()[:5]
      ('A100', 'A800', 'H100', 'H800', 'H20')
    """
    return tuple(_file())


def chip(name: str, *, unverified: bool = False) -> Chip:
    """A chip by its name; upper and lower case, spaces, ``-`` and ``_`` make no difference.

    Args:
      name: one of `chip_names`.
      unverified: whether its unverified numbers may be used; results then name them.

    Raises:
      UserError: for an unknown name, listing the known ones.

    Example:
      >>> str(chip("ascend-910b").numbers["bf16_tflops"])
      '320 (unverified)'
    """
    for known, values in _file().items():
        if _plain(known) == _plain(name):
            numbers = {key: Number(**number) for key, number in values["numbers"].items()}
            return Chip(known, values["title"], numbers, unverified, values.get("cut_from"))
    raise UserError(f"hardware {name!r} is not known; choose one of {', '.join(chip_names())}")


def _plain(name: str) -> str:
    return "".join(letter for letter in str(name).lower() if letter not in " -_")
