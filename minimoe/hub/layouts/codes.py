"""Weights in few bits as DeepSeek publishes them: FP8 in blocks of 128 x 128, and the FP4 of V4's routed experts.

    weight                                  its scales                                     value
    FP8 of V3    e4m3 [O, I]                float32 [O/128, I/128], weight_scale_inv       code * scale of its block
    FP8 of V4    e4m3 [O, I]                e8m0    [O/128, I/128], scale                  code * scale of its block
    FP4 of V4    int8 [O, I/2], two codes   e8m0    [O, I/32],      scale                  code * scale of its 32 columns

O outputs, I inputs. "inv" in the name of a scale means that codes are multiplied by it. Of the two e2m1 codes of a byte, the
low four bits are the even column. An e8m0 scale is a power of two, ``2**(byte - 127)``. Where the block does not divide a
matrix, its last block is short.

`Coding` is what ``quantization_config`` in config.json says of it; the functions below it work on single matrices.

References:
  DeepSeek-AI, `DeepSeek-V3 Technical Report <https://arxiv.org/abs/2412.19437>`_, section 3.3 (blocks and scales).
  DeepSeek-V4-Flash, ``config.json`` and ``inference/convert.py`` (e8m0 scales, packed experts).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from minimoe.errors import UserError
from minimoe.hub.layouts.settings import Settings
from minimoe.quant.formats import E2M1_MAGNITUDES
from minimoe.quant.specs import MXFP4, Block, Spec
from minimoe.quant.tensor import quantize

E4M3, E8M0 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e8m0fnu)
BLOCK, GROUP = 128, 32
SCALE_DTYPES = ("float32", "bfloat16", "float8_e8m0fnu", "uint8")  # the last: the bytes of e8m0
LARGEST_BLOCK = 2**20


@dataclasses.dataclass(frozen=True)
class Coding:
    """What a config.json says of its codes.

    Attributes:
      block: rows and columns of FP8 codes that share a scale.
      powers_of_two: scales are e8m0 bytes (V4), not float32 (V3).
      fp4_experts: routed experts are FP4.
    """

    block: tuple[int, int] = (BLOCK, BLOCK)
    powers_of_two: bool = False
    fp4_experts: bool = False

    @classmethod
    def read(cls, settings: Settings) -> Coding | None:
        """Of a config.json; None if its model is in plain floats.

        Raises:
          UserError: for another method, another format of the codes, or a block that is none.
        """
        values = settings.get("quantization_config", None)
        if values is None:
            return None
        if not isinstance(values, dict):
            settings.refuse(f"quantization_config={values!r}", "a table of keys and values is")
        inner = Settings(values, f"{settings.source}: quantization_config")
        convert = "convert it to bfloat16 first"
        inner.only("quant_method", "fp8", because=convert)
        inner.only("fmt", "e4m3", because=convert)
        inner.only("activation_scheme", "dynamic", because=convert)
        scales = inner.only("scale_fmt", "float", "ue8m0", None, because=convert)
        experts = inner.get("expert_dtype", settings.get("expert_dtype", None)) or "fp8"
        if experts not in ("fp8", "fp4"):
            inner.refuse(f"expert_dtype={experts!r}", "only 'fp8' and 'fp4' are", convert)
        block = inner.get("weight_block_size", [BLOCK, BLOCK])
        whole = isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block)
        if not whole or not all(0 < n <= LARGEST_BLOCK for n in block):
            inner.refuse(f"weight_block_size={block!r}", "two whole numbers of at least 1 are", convert)
        return cls((block[0], block[1]), scales == "ue8m0", experts == "fp4")

    def to_settings(self, floats: list[str]) -> dict[str, Any]:
        """The inverse of `read`: entries of config.json. ``floats`` names the matrices that are no codes after all."""
        found: dict[str, Any] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(self.block),
        }
        found |= {"scale_fmt": "ue8m0"} if self.powers_of_two else {}
        found |= {"modules_to_not_convert": floats} if floats else {}
        return {"quantization_config": found} | ({"expert_dtype": "fp4"} if self.fp4_experts else {})

    def spec(self, fp4: bool = False) -> Spec:
        """How a `minimoe.quant.QTensor` holds the same codes."""
        scales = "ue8m0" if self.powers_of_two else "float32"
        return MXFP4 if fp4 else Spec("fp8_e4m3", Block(*self.block), scale_format=scales)


def grid(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """The shape of the scales: a block that is cut off at an edge has one too.

    Example:
      >>> grid((576, 7168), (128, 128))
      (5, 56)
    """
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))


def spread(scales: np.ndarray, block: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Each scale at every place of its block: ``[.., O/rows, I/columns] -> [.., O, I]``.

    Example:
      >>> print(spread(np.array([[1, 2]]), (128, 2), (2, 3)))
      [[1 1 2]
       [1 1 2]]
    """
    wide = np.repeat(np.repeat(scales, block[0], axis=-2)[..., : shape[-2], :], block[1], axis=-1)
    return wide[..., : shape[-1]]


def gathered(wide: np.ndarray, block: tuple[int, int]) -> np.ndarray | None:
    """The inverse of `spread`; None if the values of some block are not all the same."""
    scales = wide[..., :: block[0], :: block[1]]
    same = np.array_equal(spread(scales, block, wide.shape).view(np.uint8), np.ascontiguousarray(wide).view(np.uint8))
    return scales if same else None


def scale_values(scales: np.ndarray) -> np.ndarray:
    """Stored scales as float32.

    Example:
      >>> print(scale_values(np.array([126, 130], np.uint8)))
      [0.5 8. ]
    """
    return (scales.view(E8M0) if scales.dtype == np.uint8 else scales).astype(np.float32)


def unpack_fp4(packed: np.ndarray) -> np.ndarray:
    """int8 ``[.., I/2]`` -> e2m1 codes 0..15, uint8 ``[.., I]``.

    Example:
      >>> print(unpack_fp4(np.array([0x21, -0x0F], np.int8)))
      [ 1  2  1 15]
    """
    pairs = packed.view(np.uint8)
    return np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def pack_fp4(codes: np.ndarray) -> np.ndarray:
    """The inverse of `unpack_fp4`."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8).view(np.int8)


def code_values(codes: np.ndarray) -> np.ndarray:
    """What codes stand for before they are scaled, float32: of e4m3, or of e2m1 as `unpack_fp4` returns them."""
    return _E2M1[codes] if codes.dtype == np.uint8 else codes.astype(np.float32)


_E2M1 = np.array([*E2M1_MAGNITUDES, *(-magnitude for magnitude in E2M1_MAGNITUDES)], np.float32)  # by code


def fp8_blocks(matrix: np.ndarray, powers_of_two: bool = False) -> tuple[np.ndarray, np.ndarray] | None:
    """A matrix as e4m3 codes ``[O, I]`` and its scales, one a block of 128 x 128: float32, or e8m0 bytes.

    The scale of a block is ``amax / 448``, or the next power of two. When Transformers 5 loads such a file on a CPU, it does
    not ask how large a block is: it divides the matrix by the number of scales. 192 rows with two scales are then two halves
    of 96, not 128 and 64. Where the two readings differ, all blocks along that axis share one scale: both give one result.

    Returns:
      None if Transformers would refuse the file: where the number of scales does not divide an axis (576 rows, 5 scales).

    Example:
      >>> codes, scales = fp8_blocks(np.full((192, 128), 7.0, np.float32))
      >>> codes.dtype.name, scales.shape, float(codes[0, 0])
      ('float8_e4m3fn', (2, 1), 448.0)
    """
    scales_shape = grid(matrix.shape, (BLOCK, BLOCK))
    if any(size % count for size, count in zip(matrix.shape, scales_shape, strict=True)):
        return None
    rows, columns = (BLOCK if size % BLOCK == 0 else size for size in matrix.shape)
    q = quantize(
        jnp.asarray(matrix),
        Spec("fp8_e4m3", Block(rows, columns), scale_format="ue8m0" if powers_of_two else "float32"),
    )
    scales = np.asarray(q.scale)
    scales = np.ascontiguousarray(
        np.broadcast_to(scales[:1] if rows > BLOCK else scales, (scales_shape[0], scales.shape[1]))
    )
    scales = np.ascontiguousarray(np.broadcast_to(scales, scales_shape)) if columns > BLOCK else scales
    return np.asarray(q.codes), scales.view(E8M0) if powers_of_two else scales


def fp4_rows(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as packed e2m1 codes, int8 ``[O, I/2]``, and an e8m0 scale for 32 columns of a row, ``[O, I/32]``.

    Raises:
      UserError: if 32 does not divide I.

    Example:
      >>> packed, scales = fp4_rows(np.array([[6.0, -3.0] + [0.0] * 30], np.float32))
      >>> packed[0, :2].tolist(), scales.view(np.uint8).tolist()
      ([-41, 0], [[127]])
    """
    check_fp4_width(matrix.shape[-1])
    q = quantize(jnp.asarray(matrix), MXFP4)
    return np.asarray(q.codes).view(np.int8), np.asarray(q.scale).view(E8M0)


def check_fp4_width(width: int) -> None:
    """Refuses a row that is not cut into groups of 32."""
    if width % GROUP:
        raise UserError(f"the FP4 layout has a scale for {GROUP} inputs, which do not divide {width}; choose fp8")
