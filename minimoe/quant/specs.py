"""How an array is quantized: the format of its codes, which values share a scale, and how scales are stored.

Axes: O output channels, I contraction (always the last axis), T tokens, D model width.

A `Spec` says all of it for one array. Its granularity is one of six small classes, each a rule from the shape of an
array to that of a block: the values of a block share a scale. `SPECS` names the usual ones, and `minimoe.quant.tensor`
computes with them.
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

from minimoe.checks import whole_fields
from minimoe.errors import UserError
from minimoe.quant.formats import FORMATS

SCALE_BITS = {"float32": 32, "bfloat16": 16, "ue8m0": 8, "fp8_e4m3": 8}
SCALE_RULES = ("deepseek", "ocp")


@dataclasses.dataclass(frozen=True)
class PerTensor:
    """One scale a matrix: ``[.., O, I] -> [.., 1, 1]``. Stacked experts keep one each."""

    def block_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*(1 for _ in shape[:-2]), *_at_least_one(shape[-2:]))


@dataclasses.dataclass(frozen=True)
class PerChannel:
    """One scale for each row of the last axis, an output channel of a weight: ``[.., O, I] -> [.., O, 1]``."""

    def block_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*(1 for _ in shape[:-1]), *_at_least_one(shape[-1:]))


@dataclasses.dataclass(frozen=True)
class PerToken(PerChannel):
    """The same shape under its name for activations, ``[T, D] -> [T, 1]``."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """One scale for ``size`` neighbours of a row: ``[T, D] -> [T, ceil(D/size)]``. For activations (1x128)."""

    size: int = 128

    def __post_init__(self) -> None:
        whole_fields(self, "size")

    def block_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*(1 for _ in shape[:-1]), *_at_least_one((min(self.size, shape[-1]),)))


@dataclasses.dataclass(frozen=True)
class Group(Tile):
    """The same shape under its name for weights, in groups of 16, 32 or 64: ``[.., I] -> [.., ceil(I/size)]``."""

    size: int = 32


@dataclasses.dataclass(frozen=True)
class Block:
    """One scale a rectangle: ``[.., O, I] -> [.., ceil(O/rows), ceil(I/columns)]``."""

    rows: int = 128
    columns: int = 128

    def __post_init__(self) -> None:
        whole_fields(self, "rows", "columns")

    def block_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        last_two = (self.rows, self.columns)[-len(shape) :]
        cut = tuple(min(b, n) for b, n in zip(last_two, shape[-2:], strict=True))
        return (*(1 for _ in shape[:-2]), *_at_least_one(cut))


Granularity: TypeAlias = PerTensor | PerChannel | PerToken | Tile | Group | Block


def _at_least_one(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """An axis without values has blocks of one, and none of them."""
    return tuple(max(1, size) for size in sizes)


@dataclasses.dataclass(frozen=True)
class Spec:
    """How one array is quantized.

    Attributes:
      format: of the codes, a name in `minimoe.quant.formats.FORMATS`.
      granularity: which values share a scale.
      scale_format: "float32", "bfloat16", "ue8m0" (powers of two, a byte each), or "fp8_e4m3" under one float32 scale
        for the whole matrix (NVFP4).
      scale_rule: how "ue8m0" rounds, see `minimoe.quant.formats.ue8m0_scale`; without meaning for the others.
      symmetric: False adds a zero point, so that codes cover [min, max] instead of [-amax, amax]. Integers only.
      tensor_scale: True exactly when scale_format is "fp8_e4m3".

    Raises:
      UserError: at construction, for an unknown name or a combination that makes no sense.

    Example:
      >>> Spec("int8", PerChannel(), scale_format="float16")
      Traceback (most recent call last):
      minimoe.errors.UserError: scale_format 'float16' is unknown; choose one of float32, bfloat16, ue8m0, fp8_e4m3
    """

    format: str
    granularity: Granularity
    scale_format: str = "float32"
    scale_rule: str = "deepseek"
    symmetric: bool = True
    tensor_scale: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f"format {self.format!r} is unknown; choose one of {', '.join(FORMATS)}")
        if self.scale_format not in SCALE_BITS:
            raise UserError(f"scale_format {self.scale_format!r} is unknown; choose one of {', '.join(SCALE_BITS)}")
        if self.scale_rule not in SCALE_RULES:
            raise UserError(f"scale_rule {self.scale_rule!r} is unknown; choose one of {', '.join(SCALE_RULES)}")
        if self.tensor_scale != (self.scale_format == "fp8_e4m3"):
            raise UserError(
                f"tensor_scale={self.tensor_scale} with scale_format={self.scale_format!r}: block scales in fp8_e4m3 "
                "need a tensor scale, and only they have one; set both or neither"
            )
        if not self.symmetric and (self.format not in ("int8", "int4") or self.scale_format in ("ue8m0", "fp8_e4m3")):
            raise UserError(
                f"symmetric=False with format={self.format!r} and scale_format={self.scale_format!r}: a zero point "
                "needs int8 or int4 and a float32 or bfloat16 scale; set symmetric=True"
            )


INT8_CHANNEL = Spec("int8", PerChannel())
INT8_TOKEN = Spec("int8", PerToken())
INT4_GROUP32 = Spec("int4", Group(32))
FP8_BLOCK = Spec("fp8_e4m3", Block(128, 128))
FP8_BLOCK_UE8M0 = Spec("fp8_e4m3", Block(128, 128), scale_format="ue8m0")
FP8_TILE = Spec("fp8_e4m3", Tile(128))
FP8_TILE_UE8M0 = Spec("fp8_e4m3", Tile(128), scale_format="ue8m0")
# How MX scales are rounded is the encoder's choice: the stored bytes mean the same. Ours is DeepSeek's, as in V4.
MXFP8 = Spec("fp8_e4m3", Group(32), scale_format="ue8m0")
MXFP8_OCP = Spec("fp8_e4m3", Group(32), scale_format="ue8m0", scale_rule="ocp")
MXFP4 = Spec("fp4_e2m1", Group(32), scale_format="ue8m0")
MXFP4_OCP = Spec("fp4_e2m1", Group(32), scale_format="ue8m0", scale_rule="ocp")
NVFP4 = Spec("fp4_e2m1", Group(16), scale_format="fp8_e4m3", tensor_scale=True)
NF4_GROUP64 = Spec("nf4", Group(64))
SPECS: dict[str, Spec] = {
    "int8_channel": INT8_CHANNEL,
    "int8_token": INT8_TOKEN,
    "int4_group32": INT4_GROUP32,
    "fp8_block": FP8_BLOCK,
    "fp8_block_ue8m0": FP8_BLOCK_UE8M0,
    "fp8_tile": FP8_TILE,
    "fp8_tile_ue8m0": FP8_TILE_UE8M0,
    "mxfp8": MXFP8,
    "mxfp8_ocp": MXFP8_OCP,
    "mxfp4": MXFP4,
    "mxfp4_ocp": MXFP4_OCP,
    "nvfp4": NVFP4,
    "nf4_group64": NF4_GROUP64,
}
