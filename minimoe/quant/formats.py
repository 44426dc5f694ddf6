"""Number formats of 8 and 4 bits: which values exist, and how a float32 becomes the nearest of them.

Every format is one row of the table `FORMATS`:

- ``int8``, ``int4``: whole numbers in two's complement;
- ``fp8_e4m3``, ``fp8_e5m2``: a sign, 4 or 5 bits of exponent, 3 or 2 of mantissa. The first has no infinity ("fn"), so
  its largest exponent still holds numbers, up to 448;
- ``fp4_e2m1``: eight magnitudes, 0 0.5 1 1.5 2 3 4 6, and a sign;
- ``nf4``: 16 quantiles of a normal distribution, scaled to [-1, 1].

Codes are what is stored, one to an array element here; `pack_nibbles` puts two 4-bit codes into a byte. Powers of two
have a format of their own, ``ue8m0`` (`UE8M0`): eight bits of exponent and nothing else. It stores scales.

References:
  Micikevicius et al., `FP8 Formats for Deep Learning <https://arxiv.org/abs/2209.05433>`_ (E4M3, E5M2).
  Open Compute Project, `Microscaling Formats (MX) Specification v1.0
  <https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf>`_ (E2M1, E8M0).
  Dettmers et al., `QLoRA <https://arxiv.org/abs/2305.14314>`_, appendix E (NF4).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Shaped, UInt8

from minimoe.errors import UserError

E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_MANTISSA = 0x007FFFFF  # of float32
_SMALLEST_EXPONENT, _LARGEST_EXPONENT = -126, 127  # of a normal float32


@dataclasses.dataclass(frozen=True)
class Format:
    """One number format.

    Attributes:
      name: key in `FORMATS`.
      bits: of one code.
      dtype: of unpacked codes. 4-bit codes take a byte each until `pack_nibbles`.
      max: the magnitude that symmetric scaling maps the largest value onto. The integers reach one further below zero
        (-128, -8); nothing symmetric uses that.
      smallest: smallest positive value.
      epsilon: for floats the step from 1.0 to the next value above, so a normal number is rounded by at most
        ``epsilon / 2`` of itself. int8 and int4 have the step 1 everywhere, and nf4 states its widest gap.
    """

    name: str
    bits: int
    dtype: Any
    max: float
    smallest: float
    epsilon: float
    _encode: Callable[[Array], Array] = dataclasses.field(repr=False, compare=False)
    _decode: Callable[[Array], Array] = dataclasses.field(repr=False, compare=False)

    def encode(self, x: Float[Array, "..."]) -> Shaped[Array, "..."]:
        """The code of the nearest value; of two equally near ones the one with the even code, and for nf4 the lower.

        Beyond the largest value it saturates. NaN has no code in most formats, so keeping it out is the caller's task.

        Example:
          >>> four = get_format("fp4_e2m1")
          >>> print(four.decode(four.encode(jnp.array([0.2, 2.4, 2.5, -100.0]))))
          [ 0.  2.  2. -6.]
        """
        return self._encode(x.astype(jnp.float32))

    def decode(self, codes: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """The value of each code, float32; exact."""
        return self._decode(codes)

    def code_points(self) -> Shaped[np.ndarray, " n"]:
        """All ``2**bits`` codes, in the order of their bits, as `dtype`."""
        bits = np.arange(2**self.bits, dtype=np.uint8)
        if self.bits == 8:
            return bits.view(self.dtype)
        return ((bits.astype(np.int8) ^ 8) - 8).astype(np.int8) if self.dtype == jnp.int8 else bits

    def values(self) -> Float[np.ndarray, " n"]:
        """Every finite value once, ascending, float32.

        Example:
          >>> print(get_format("fp4_e2m1").values())
          [-6.  -4.  -3.  -2.  -1.5 -1.  -0.5  0.   0.5  1.   1.5  2.   3.   4.
            6. ]
        """
        values = np.array(self.decode(jnp.asarray(self.code_points())))
        values += 0.0  # -0.0 becomes 0.0: the two are equal, and which one would stay depends on the machine
        return np.unique(values[np.isfinite(values)])


def _encode_int(bits: int) -> Callable[[Array], Array]:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return lambda x: jnp.clip(jnp.round(x), low, high).astype(jnp.int8)


def _decode_int4(codes: Array) -> Array:
    """Takes nibbles 0..15 as well as signed -8..7."""
    nibbles = codes.astype(jnp.int8) & jnp.int8(15)
    return ((nibbles ^ jnp.int8(8)) - jnp.int8(8)).astype(jnp.float32)


def _encode_by_cast(dtype: Any, largest: float) -> Callable[[Array], Array]:
    # The cast itself rounds to nearest even, but turns what is too large into NaN or infinity.
    return lambda x: jnp.clip(x, -largest, largest).astype(dtype)


def _to_float32(codes: Array) -> Array:
    return codes.astype(jnp.float32)


def _encode_e2m1(x: Array) -> Array:
    """Bit 3 is the sign; the magnitude's code is how many midpoints lie below it."""
    magnitude = jnp.abs(x)
    code = jnp.zeros(x.shape, jnp.uint8)
    for lower, (a, b) in enumerate(itertools.pairwise(E2M1_MAGNITUDES)):
        middle = (a + b) / 2
        passed = magnitude > middle if lower % 2 == 0 else magnitude >= middle  # a tie goes to the even code
        code = code + passed.astype(jnp.uint8)
    return code | (jnp.signbit(x).astype(jnp.uint8) << 3)


def _decode_e2m1(codes: Array) -> Array:
    """Exponent bits ``e``, mantissa bit ``m``: ``m / 2`` if e is 0, else ``(1 + m/2) * 2**(e - 1)``."""
    exponent, mantissa = (codes >> 1) & 3, (codes & 1).astype(jnp.float32)
    power = (jnp.uint8(1) << exponent).astype(jnp.float32) / 2
    magnitude = jnp.where(exponent == 0, mantissa / 2, (1 + mantissa / 2) * power)
    return jnp.where((codes & 8) != 0, -magnitude, magnitude)


def _encode_nf4(x: Array) -> Array:
    values = np.asarray(NF4_VALUES, np.float32)
    code = jnp.zeros(x.shape, jnp.uint8)
    for middle in (values[1:] + values[:-1]) / 2:
        code = code + (x > middle).astype(jnp.uint8)
    return code


def _decode_nf4(codes: Array) -> Array:
    return jnp.asarray(NF4_VALUES, jnp.float32)[codes]


def _encode_ue8m0(x: Array) -> Array:
    return e8m0_encode(x)


def _decode_ue8m0(codes: Array) -> Array:
    return e8m0_decode(codes)


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("int8", 8, jnp.int8, 127.0, 1.0, 1.0, _encode_int(8), _to_float32),
        Format("int4", 4, jnp.int8, 7.0, 1.0, 1.0, _encode_int(4), _decode_int4),
        Format(
            "fp8_e4m3", 8, jnp.float8_e4m3fn, 448.0, 2.0**-9, 0.125,
            _encode_by_cast(jnp.float8_e4m3fn, 448.0), _to_float32,
        ),
        Format(
            "fp8_e5m2", 8, jnp.float8_e5m2, 57344.0, 2.0**-16, 0.25,
            _encode_by_cast(jnp.float8_e5m2, 57344.0), _to_float32,
        ),
        Format("fp4_e2m1", 4, jnp.uint8, 6.0, 0.5, 0.5, _encode_e2m1, _decode_e2m1),
        Format("nf4", 4, jnp.uint8, 1.0, NF4_VALUES[8], NF4_VALUES[1] - NF4_VALUES[0], _encode_nf4, _decode_nf4),
    )
}  # fmt: skip

# Positive powers of two and NaN, for scales; `Format.encode` takes nothing else here (`ue8m0_scale` makes them).
UE8M0 = Format("ue8m0", 8, jnp.uint8, 2.0**127, 2.0**-127, 1.0, _encode_ue8m0, _decode_ue8m0)


def get_format(name: str) -> Format:
    """A row of `FORMATS`, or `UE8M0`.

    Raises:
      UserError: for an unknown name; the message lists the known ones.

    Example:
      >>> get_format("fp8_e4m3").max
      448.0
    """
    known = {**FORMATS, UE8M0.name: UE8M0}
    if name not in known:
        raise UserError(f"format {name!r} is unknown; choose one of {', '.join(known)}")
    return known[name]


def pack_nibbles(codes: Integer[Array, "... n"]) -> UInt8[Array, "... half"]:
    """Two 4-bit codes a byte along the last axis: ``[.., n] -> [.., ceil(n/2)]``, the even index in the low nibble.

    Args:
      codes: uint8 in 0..15, or int8 in -8..7, whose two's complement is cut to four bits. An odd row is filled with 0.

    Example:
      >>> print(pack_nibbles(jnp.array([1, 2, 3], jnp.uint8)))
      [33  3]
    """
    if codes.shape[-1] % 2:
        codes = jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    nibbles = codes.astype(jnp.uint8) & jnp.uint8(15)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack_nibbles(packed: UInt8[Array, "... half"], count: int) -> UInt8[Array, "... n"]:
    """The first ``count`` codes of each row, 0..15: the inverse of `pack_nibbles`. int4's ``decode`` restores signs.

    Example:
      >>> print(unpack_nibbles(jnp.array([33, 3], jnp.uint8), 3))
      [1 2 3]
    """
    pairs = jnp.stack([packed & jnp.uint8(15), packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])[..., :count]


def e8m0_encode(scale: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """The exponent byte of positive float32 powers of two, ``log2(scale) + 127``; other mantissas are cut off.

    Example:
      >>> print(e8m0_encode(jnp.array([1.0, 2.0, 0.25])))
      [127 128 125]
    """
    bits = jax.lax.bitcast_convert_type(scale.astype(jnp.float32), jnp.uint32)
    return ((bits >> 23) & 0xFF).astype(jnp.uint8)


def e8m0_decode(codes: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """``2**(code - 127)`` as float32; 255 is NaN.

    Code 0 is 2**-127, below the normal float32 numbers: bit for bit right, but compiled arithmetic may take it for 0.
    `ue8m0_scale` never chooses it.
    """
    bits = codes.astype(jnp.uint32) << 23
    bits = jnp.where(codes == 0, jnp.uint32(0x00400000), bits)
    bits = jnp.where(codes == 255, jnp.uint32(0x7FC00000), bits)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def ue8m0_scale(amax: Float[Array, "..."], format_max: int | float, rule: str = "deepseek") -> Float[Array, "..."]:
    """The power of two that a block with largest magnitude ``amax`` is divided by.

    - ``"deepseek"``: ``2**ceil(log2(amax / format_max))``, rounded up, so ``amax / scale <= format_max`` always;
    - ``"ocp"``: ``2**(floor(log2(amax)) - floor(log2(format_max)))``, which brings amax into the highest binade of the
      format. What lies in that binade but above format_max saturates: fp4 loses (6, 8), e4m3 (448, 512).

    Where both differ, the first is twice the second, and the whole block pays with a bit of its small values.

    Both are integer arithmetic on the bits of float32, so neither a logarithm nor a division can round them wrongly.
    Bits of positive floats count up evenly within a binade and by ``2**23`` from one to the next, hence
    ``ceil((bits(amax) - bits(format_max)) / 2**23)`` is the first exponent.

    Args:
      amax: not negative, float32; 0 gives the smallest scale, NaN and infinity give NaN.
      format_max: `Format.max`.
      rule: "deepseek" or "ocp".

    Returns:
      float32 powers of two from 2**-126 to 2**127, shape of ``amax``.

    Raises:
      UserError: for another rule.

    Example:
      >>> print(ue8m0_scale(jnp.array([6.0, 7.0]), 6.0), ue8m0_scale(jnp.array([6.0, 7.0]), 6.0, rule="ocp"))
      [1. 2.] [1. 1.]

    References:
      DeepSeek's TileKernels, ``cast.py``: ``(bits + 0x007FFFFF) & 0x7F800000`` of the quotient, the same rounding up.
      OCP MX v1.0, section 6.3.
    """
    bits = jax.lax.bitcast_convert_type(amax.astype(jnp.float32), jnp.int32)
    bits_of_max = int(np.float32(format_max).view(np.int32))
    if rule == "deepseek":
        exponent = (bits - bits_of_max + _MANTISSA) >> 23
    elif rule == "ocp":
        exponent = (bits >> 23) - (bits_of_max >> 23)
    else:
        raise UserError(f'scale rule {rule!r} is unknown; choose "deepseek" or "ocp"')
    exponent = jnp.clip(exponent, _SMALLEST_EXPONENT, _LARGEST_EXPONENT)
    scale = jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
    return jnp.where(jnp.isfinite(amax), scale, jnp.nan)
