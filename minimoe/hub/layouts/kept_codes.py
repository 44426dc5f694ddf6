"""A model read from FP8 or FP4 files whose matrices stay the codes that the files hold.

`minimoe.hub.layouts.read` makes floats of them, as Transformers does on a CPU. Here each module whose matrices are codes
becomes the quantized module that holds them: attention and experts compute with codes, and round their inputs as DeepSeek
does (``activation_scheme``: dynamic).

Two matrices of the file may stand side by side in one of ours, or its rows in another order. Where its blocks are then no
blocks of ours, each row has scales of its own, copies of those in the file: 1 row x 128 columns instead of 128 x 128.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe.hub.layouts.coded_read import CodedShards
from minimoe.hub.layouts.codes import E8M0, GROUP, Coding, gathered, pack_fp4
from minimoe.hub.layouts.layout import Row
from minimoe.model import MoETransformer
from minimoe.model.paths import path_name
from minimoe.moe import Experts
from minimoe.quant.layers import QuantExperts, QuantLinear
from minimoe.quant.models import replace_module
from minimoe.quant.specs import FP8_TILE, FP8_TILE_UE8M0, Block
from minimoe.quant.tensor import QTensor

ReadRow = Callable[[Row, tuple[int, ...], Callable[[str], np.ndarray]], np.ndarray]


def with_codes(
    model: MoETransformer, rows: Mapping[str, Row], shards: CodedShards, coding: Coding, read_row: ReadRow
) -> MoETransformer:
    """Puts quantized modules in the places of float ones, in ``model`` itself.

    Args:
      model: as it was read, in floats.
      read_row: puts the tensors of a row together, given a function that reads one by its name.
    """
    activations = FP8_TILE_UE8M0 if coding.powers_of_two else FP8_TILE

    def matrix(ours: str, shape: tuple[int, ...]) -> QTensor | None:
        return _qtensor(rows[ours], shape, shards, coding, read_row) if ours in rows else None

    for path, module in list(nnx.iter_modules(model)):
        name = path_name(path)
        new: nnx.Module | None = None
        if isinstance(module, Experts):
            gate_up = matrix(f"{name}.gate_up_proj", module.gate_up_proj.shape)
            down = matrix(f"{name}.down_proj", module.down_proj.shape)
            if gate_up is not None and down is not None:
                new = QuantExperts(gate_up, down, activations=activations, limit=module.limit, dtype=module.dtype)
        elif isinstance(module, nnx.Linear) and module.bias is None:
            weight = matrix(f"{name}.kernel", module.kernel.shape)
            dtype = "float32" if module.dtype is None else jnp.dtype(module.dtype).name
            new = None if weight is None else QuantLinear(weight, activations=activations, dtype=dtype)
        if new is not None:
            replace_module(model, path, new)
    return model


class _Floats(Exception):
    """A tensor of the row is no code."""


def _qtensor(
    row: Row, shape: tuple[int, ...], shards: CodedShards, coding: Coding, read_row: ReadRow
) -> QTensor | None:
    """The codes of one array of ours, ``[.., O, I]``; None if they are floats, or of the other kind of scales."""

    def of_codes(read: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
        def tensor(name: str) -> np.ndarray:
            if name not in shards.pairs:
                raise _Floats
            return read(name)

        return tensor

    try:
        found = [read_row(row, shape, of_codes(read)) for read in (shards.codes, shards.wide_scales)]
    except _Floats:
        return None
    codes, wide = (np.ascontiguousarray(np.swapaxes(array, -1, -2)) for array in found)
    fp4 = codes.dtype == np.uint8
    spec, block = coding.spec(fp4), (1, GROUP) if fp4 else coding.block
    scales = gathered(wide, block)
    if scales is None and not fp4:
        block = (1, block[1])
        spec, scales = dataclasses.replace(spec, granularity=Block(*block)), gathered(wide, block)
    powers = wide.dtype in (E8M0, np.dtype(np.uint8))
    if scales is None or powers != (fp4 or coding.powers_of_two) or (fp4 and codes.shape[-1] % 2):
        return None
    stored = np.ascontiguousarray(scales).view(np.uint8) if powers else scales.astype(np.float32)
    packed = pack_fp4(codes).view(np.uint8) if fp4 else codes
    return QTensor(jnp.asarray(packed), jnp.asarray(stored), None, spec, codes.shape)
