"""The tensors of a folder whose config.json has a ``quantization_config``: codes with their scales, read as floats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimoe.errors import UserError
from minimoe.hub.layouts.codes import (
    GROUP,
    SCALE_DTYPES,
    Coding,
    code_values,
    grid,
    scale_values,
    spread,
    unpack_fp4,
)
from minimoe.hub.layouts.settings import COPY
from minimoe.hub.layouts.shards import Shards
from minimoe.hub.tensorfile import FileRecord
from minimoe.model.paths import SHOWN

CODES = {"float8_e4m3fn": "FP8", "int8": "FP4"}


class Pair(NamedTuple):
    """The scales of one tensor of codes: their name, and rows and columns that share one."""

    scale: str
    block: tuple[int, int]


class CodedShards(Shards):
    """`Shards` whose `read` multiplies codes by their scales; float32, the same products as in Transformers.

    Attributes:
      shapes: of the values: packed FP4 counts twice its bytes, and scales are not listed.
      pairs: the scales of each tensor of codes.

    Raises:
      UserError: naming codes without scales, scales without codes, and scales of a wrong shape or dtype.
    """

    def __init__(self, folder: Path, coding: Coding, records: Mapping[str, FileRecord] | None = None):
        super().__init__(folder, records)
        try:
            self.pairs = self._paired(coding)
        except BaseException:
            self.__exit__()
            raise
        for pair in self.pairs.values():
            del self.shapes[pair.scale]

    def _paired(self, coding: Coding) -> dict[str, Pair]:
        found: dict[str, Pair] = {}
        problems: list[str] = []
        scales = {name: scaled for name in self.shapes if (scaled := self._scaled(name))}
        scale_of = {scaled: name for name, scaled in scales.items()}
        for name, kind in ((name, CODES.get(self.dtype(name))) for name in [*self.shapes]):
            if kind is None or name in scales:
                continue
            scale = scale_of.get(name)
            if scale is None:
                problems.append(f"{name} is {kind} without a scale")
                continue
            if kind == "FP4":
                self.shapes[name] = (*self.shapes[name][:-1], 2 * self.shapes[name][-1])
            found[name] = Pair(scale, (1, GROUP) if kind == "FP4" else coding.block)
            problems += self._wrong(name, found[name])
        lone = sorted(set(scales) - {pair.scale for pair in found.values()})
        problems += [f"{name} is a scale of no codes" for name in lone]
        if problems:
            more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise UserError(f"{self.folder}: {'; '.join(problems[:SHOWN])}{more}; {COPY}")
        return found

    def _scaled(self, name: str) -> str:
        """The tensor that a scale belongs to, by its name; "" if it is no scale."""
        if name.endswith("_scale_inv"):
            return name.removesuffix("_scale_inv")
        weight = f"{name.removesuffix('.scale')}.weight"  # V4
        return weight if name.endswith(".scale") and weight in self.shapes else ""

    def _wrong(self, name: str, pair: Pair) -> list[str]:
        """What is wrong with the scales of a tensor."""
        if len(self.shapes[name]) < 2:
            return [f"{name} is no matrix, so it has no blocks"]
        shape, dtype = self.shapes[pair.scale], self.dtype(pair.scale)
        wanted = grid(self.shapes[name], pair.block)
        wrong = [f"{pair.scale} is {shape} instead of {wanted}"] if shape != wanted else []
        return wrong + (
            [f"{pair.scale} is {dtype}, not {' or '.join(SCALE_DTYPES)}"] if dtype not in SCALE_DTYPES else []
        )

    def read(self, name: str) -> np.ndarray:
        """One tensor as floats.

        Raises:
          UserError: as `Shards.read`; also if a scale is not finite.
        """
        if name not in self.pairs:
            return super().read(name)
        return code_values(self.codes(name)) * scale_values(self.wide_scales(name))

    def codes(self, name: str) -> np.ndarray:
        """One code an element, in the shape of the values: e4m3, or e2m1 as uint8."""
        raw = self.raw(name)
        return unpack_fp4(raw) if raw.dtype == np.int8 else raw

    def wide_scales(self, name: str) -> np.ndarray:
        """The scale of each code, in the dtype of the file."""
        scales, block = self.raw(self.pairs[name].scale), self.pairs[name].block
        if not np.isfinite(scale_values(scales)).all():
            raise UserError(f"{self.folder}: {self.pairs[name].scale} holds a scale that is not finite; {COPY}")
        return spread(scales, block, self.shapes[name])
