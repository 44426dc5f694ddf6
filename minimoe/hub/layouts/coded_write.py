"""The tensors of a model as codes with their scales, under the names that DeepSeek's files have.

Codes are the matrices of attention and feed-forward. Embedding, head, norms, routers, V4's compressors and the generators
of its hyper-connections stay floats, as in the published files. A model that is quantized in just this way keeps its codes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from minimoe.errors import UserError
from minimoe.hub.layouts.codes import (
    E8M0,
    GROUP,
    Coding,
    check_fp4_width,
    code_values,
    fp4_rows,
    fp8_blocks,
    gathered,
    grid,
    pack_fp4,
    scale_values,
    spread,
)
from minimoe.hub.layouts.layout import Layout, Row
from minimoe.model import MoETransformer
from minimoe.model.paths import path_name
from minimoe.quant.layers import QuantExperts, QuantLinear
from minimoe.quant.specs import Block, Spec
from minimoe.quant.tensor import QTensor

DTYPES = ("fp8", "fp4")
EXPERTS = re.compile(r"ffn\.experts\.\w+_proj$")
CODED = re.compile(
    r"attention\.(indexer\.q_proj|\w+_proj)\.kernel$|ffn\.(shared\.)?\w+_proj\.kernel$|" + EXPERTS.pattern
)


class Codes(NamedTuple):
    """One matrix: codes one an element (e2m1 as uint8), and the stored scale of each."""

    codes: np.ndarray
    scales: np.ndarray

    def values(self) -> np.ndarray:
        return code_values(self.codes) * scale_values(self.scales)


def coding_of(layout: Layout, dtype: str) -> Coding:
    """How a family is published in FP8 or FP4.

    Raises:
      UserError: for FP4 of a family that is not published so.
    """
    v4 = layout.model_type == "deepseek_v4"
    if dtype == "fp4" and not v4:
        raise UserError(
            f"dtype 'fp4' is how deepseek_v4 stores experts, and this model is written as {layout.model_type}; choose fp8"
        )
    return Coding(powers_of_two=v4, fp4_experts=dtype == "fp4")


class Coder:
    """Turns the tensors of one model into codes.

    Args:
      model: the model as it was given: float or quantized.
      coding: what to make of it.

    Attributes:
      floats: the matrices that stayed floats because Transformers would refuse their codes, without ``.weight``.
    """

    def __init__(self, model: MoETransformer, coding: Coding):
        self.coding, self.floats = coding, list[str]()
        self._given = _qtensors(model)

    def parts(
        self, ours: str, row: Row, theirs: Mapping[str, np.ndarray], num_experts: int
    ) -> Iterator[tuple[str, np.ndarray, bool]]:
        """The tensors of one array of ours: as codes and scales (True), or as they came (False).

        Args:
          ours: name of the array. row: of the table. theirs: its tensors as floats, by their names.

        Raises:
          UserError: for a value that is not finite, and for a width that FP4 cannot have.
        """
        if not CODED.search(ours):
            yield from ((name, part, False) for name, part in theirs.items())
            return
        fp4 = self.coding.fp4_experts and bool(EXPERTS.search(ours))
        given = self._given_parts(ours, row, num_experts, fp4)
        for name, part in theirs.items():
            try:
                found = self._kept(given.get(name), fp4) or self._coded(part, given.get(name), fp4)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            if found is None:
                self.floats.append(name.removesuffix(".weight"))
                yield name, part, False
                continue
            yield name, found[0], True
            yield self._scale_name(name), found[1], True

    def _given_parts(self, ours: str, row: Row, num_experts: int, fp4: bool) -> dict[str, Codes]:
        """The codes that the model has for this array already, cut into tensors; empty if they are others."""
        q = self._given.get(ours)
        if q is None or not _same_kind(q.spec, self.coding.spec(fp4)):
            return {}
        codes = np.asarray(jax.device_get(q.unpacked_codes()))
        rows, columns = q.block_shape[-2:]
        scales = spread(np.asarray(jax.device_get(q.scale)), (rows, columns), q.shape)
        scales = scales.view(E8M0) if scales.dtype == np.uint8 else scales
        cut = [row.to_files(np.swapaxes(array, -1, -2), num_experts) for array in (codes, scales)]
        return {name: Codes(part, cut[1][name]) for name, part in cut[0].items()}

    def _kept(self, given: Codes | None, fp4: bool) -> tuple[np.ndarray, np.ndarray] | None:
        """Codes as they are, where the blocks of the file are blocks of the model."""
        if given is None:
            return None
        if fp4:
            check_fp4_width(given.codes.shape[-1])
            scales = gathered(given.scales, (1, GROUP))
            return None if scales is None else (pack_fp4(given.codes), scales)
        scales = gathered(given.scales, self.coding.block)
        return None if scales is None or not _one_reading(given, scales, self.coding) else (given.codes, scales)

    def _coded(self, part: np.ndarray, given: Codes | None, fp4: bool) -> tuple[np.ndarray, np.ndarray] | None:
        """New codes. Of codes that lie in other blocks only if nothing is lost, where a power of two can tell."""
        part = np.asarray(part, np.float32)
        if fp4:
            return fp4_rows(part)
        found = fp8_blocks(part, self.coding.powers_of_two)
        if found is not None and given is not None and self.coding.powers_of_two:
            again = code_values(found[0]) * scale_values(spread(found[1], self.coding.block, part.shape))
            return found if np.array_equal(again, given.values()) else None
        return found

    def _scale_name(self, name: str) -> str:
        if self.coding.powers_of_two:
            return f"{name.removesuffix('.weight')}.scale"
        return f"{name}_scale_inv"


def _same_kind(spec: Spec, wanted: Spec) -> bool:
    """Whether these codes may be those of the file: alike but for the sizes of FP8 blocks, which `_kept` looks at."""
    blocks = isinstance(spec.granularity, Block) and isinstance(wanted.granularity, Block)
    return spec == wanted or (blocks and dataclasses.replace(spec, granularity=wanted.granularity) == wanted)


def _one_reading(given: Codes, scales: np.ndarray, coding: Coding) -> bool:
    """Whether a program that divides the matrix by the number of scales comes to the same scales (see `fp8_blocks`)."""
    shape = given.codes.shape
    if any(size % count for size, count in zip(shape, grid(shape, coding.block), strict=True)):
        return False
    even = shape[0] // scales.shape[0], shape[1] // scales.shape[1]
    return np.array_equal(scale_values(spread(scales, even, shape)), scale_values(given.scales))


def _qtensors(model: MoETransformer) -> dict[str, QTensor]:
    """The quantized matrices by the names that they have as floats."""
    found: dict[str, QTensor] = {}
    for path, module in nnx.iter_modules(model):
        name = path_name(path)
        if isinstance(module, QuantLinear):
            found[f"{name}.kernel"] = module.weight
        elif isinstance(module, QuantExperts):
            found |= {f"{name}.gate_up_proj": module.gate_up, f"{name}.down_proj": module.down}
    return found
