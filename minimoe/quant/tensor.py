"""An array stored in few bits: integer or small-float codes, and one scale for each block of them.

Axes: O output channels, I contraction (always the last axis), E experts.

Every array here obeys one equation, with the scale repeated over its block:

    value = (code - zero_point) * scale                     # zero_point is 0 when symmetric
    value = code * block_scale * tensor_scale               # two levels of scales, as in NVFP4

`quantize` makes a `QTensor` from an array and a `minimoe.quant.specs.Spec`, which says which values share a scale, and
in which formats codes and scales are stored.

qwix stores arrays by the first equation too, and on shared ground its codes are ours, bit for bit: fp8, fp4 and nf4 with
float32 scales, zero points, and blocks of 32 under powers of two rounded up. It differs in these, and
``tests/test_quant_tensor.py`` shows each one:

- symmetric integers: qwix spreads amax over 127.5 steps (7.5 for int4), which fills the last bucket, but the extreme
  value lies between two codes and moves whenever the array is quantized afresh; ours spread it over 127 and 7;
- all-zero blocks with a zero point: its codes are -128 and the zero point too; ours are 0;
- tiny blocks: it takes a scale below about 1e-19 for 0, and the block is lost; ours go down to 2**-126;
- NVFP4: it rounds block scales to e4m3 without a tensor scale above them, so blocks below about 0.006 become 0, and
  a scale above 448 saturates;
- a width that the block does not divide: it refuses; our last block is short;
- scales: it keeps them in the dtype of the array, so bfloat16 arrays are divided in bfloat16, and powers of two take
  as much room as other scales; ours are computed in float32 and stored as the Spec says;
- storage: it leaves 4-bit codes to the dtypes int4, uint4 and float4_e2m1fn; ours are packed by hand, two a byte;
- NaN: it quantizes what it gets; we refuse and count, and where values cannot be looked at, NaN stays NaN.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int8, Integer, Shaped

from minimoe.errors import UserError
from minimoe.layers import as_mask
from minimoe.quant.formats import Format, get_format, pack_nibbles, unpack_nibbles
from minimoe.quant.scales import choose, largest_steps, nan_where, reduce_blocks, scale_values, spread, store_scales
from minimoe.quant.specs import SCALE_BITS, Spec

Leaf: TypeAlias = Any  # an Array; while JAX takes trees apart and rebuilds them, also whatever stands in for one


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scale", "zero_point", "tensor_scale"],
    meta_fields=["spec", "shape"],
)
@dataclasses.dataclass(frozen=True)
class QTensor:
    """A quantized array: a pytree that a module can hold and `jax.jit` can take.

    Attributes:
      codes: int8 or float8 in the logical shape; 4-bit codes are packed, two a byte along the last axis (uint8).
      scale: one for each block, ``ceil(shape / block_shape)``: float32, bfloat16, float8_e4m3fn, or the exponent byte
        of ue8m0 (uint8).
      zero_point: int8, shape of ``scale``, or None when symmetric.
      spec: how it was made (static).
      shape: of the array it stands for (static). `jax.vmap` and `jax.lax.scan` cannot change it; use `take_expert`.
      tensor_scale: float32 ``[.., 1, 1]`` above the block scales of NVFP4, else None.

    Example:
      >>> q = quantize(jnp.array([[1.0, -0.4, 3.0]]), MXFP4)
      >>> print(q.codes, q.scale, q.bits, q.dequantize())
      [[164   7]] [[126]] 20 [[ 1.  -0.5  3. ]]
    """

    codes: Leaf
    scale: Leaf
    zero_point: Leaf
    spec: Spec
    shape: tuple[int, ...]
    tensor_scale: Leaf = None

    @property
    def format(self) -> Format:
        """Of the codes."""
        return get_format(self.spec.format)

    @property
    def ndim(self) -> int:
        """Number of logical axes."""
        return len(self.shape)

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Values that share a scale, along each axis."""
        return self.spec.granularity.block_shape(self.shape)

    @property
    def bits(self) -> int:
        """Bits that the information takes: codes, scales, zero points. An odd row's spare nibble is not counted."""
        scales = SCALE_BITS[self.spec.scale_format] * math.prod(self.scale.shape)
        zero_points = 0 if self.zero_point is None else 8 * math.prod(self.zero_point.shape)
        tensor_scales = 0 if self.tensor_scale is None else 32 * math.prod(self.tensor_scale.shape)
        return self.format.bits * math.prod(self.shape) + scales + zero_points + tensor_scales

    @property
    def nbytes_logical(self) -> int:
        """`bits` in whole bytes, rounded up."""
        return -(-self.bits // 8)

    @property
    def bits_per_value(self) -> float:
        """`bits` over the number of values: 4.25 for MXFP4."""
        return self.bits / max(1, math.prod(self.shape))

    def unpacked_codes(self) -> Shaped[Array, "..."]:
        """One code an element in the logical shape; int4 as its nibbles 0..15."""
        return unpack_nibbles(self.codes, self.shape[-1]) if self.format.bits == 4 else self.codes

    def block_scales(self) -> Float[Array, "..."]:
        """What one code step is worth in each block, float32: the scales decoded, times the tensor scale."""
        return scale_values(self.scale, self.tensor_scale)

    def dequantize(self, dtype: Any = jnp.float32) -> Float[Array, "..."]:
        """The values that the codes stand for, in `shape`; computed in float32, then cast.

        Example:
          >>> print(quantize(jnp.array([[1.0, -2.0]]), INT8_CHANNEL).dequantize())
          [[ 1.007874 -2.      ]]
        """
        values = self.format.decode(self.unpacked_codes())
        if self.zero_point is not None:
            values = values - spread(self.zero_point.astype(jnp.float32), self.block_shape, values.shape)
        return (values * spread(self.block_scales(), self.block_shape, values.shape)).astype(dtype)


nnx.register_data_type(QTensor)


def quantize(
    x: Float[Array, "*shape"],
    spec: Spec,
    *,
    scale: Shaped[Array, "..."] | None = None,
    zero_point: Int8[Array, "..."] | None = None,
    tensor_scale: Float[Array, "..."] | None = None,
    where: Bool[Array, "*shape"] | None = None,
    check: bool = True,
) -> QTensor:
    """Finds a scale for every block, divides by it, and rounds to the nearest code.

    A block of zeros gets the scale 1 and codes 0. Where the block does not divide an axis, its last block is short.
    Quantizing again with the stored scales gives the same codes (`requantize`). What is finite stays finite: where the
    nearest code would stand for more than a float32 can hold, it is the last one that does not.

    Args:
      x: at least one axis; computed in float32.
      spec: what to make of it.
      scale: given scales instead of chosen ones, one for each block: as real numbers, or as a QTensor stores them.
      zero_point: goes with ``scale`` when the spec is not symmetric.
      tensor_scale: goes with ``scale`` when the spec has one; found from the largest scale if left out.
      where: only True values choose the scale; False ones (padding) are encoded with it all the same and saturate.
      check: refuse NaN and infinity. Under `jax.jit`, where values cannot be looked at, and with False, the scale of a
        block that holds one is NaN: then all its values are.

    Raises:
      UserError: if ``x`` holds NaN or infinity, with their number; if given scales have the wrong shape or lack their
        zero point.

    Example:
      >>> q = quantize(jnp.array([[1.0, -2.0]]), INT8_CHANNEL)
      >>> print(q.codes, q.scale)
      [[  64 -127]] [[0.01574803]]
    """
    if x.ndim == 0:
        raise UserError("x is a scalar; quantize needs at least one axis, so pass x[None]")
    where = None if where is None else as_mask(where, x.shape, "quantize")
    if scale is not None:
        _check_given(scale, zero_point, spec, x.shape)
    q, broken = _quantize(x, scale, zero_point, tensor_scale, where, spec)
    if check and not isinstance(broken, jax.core.Tracer) and int(broken):
        raise UserError(f"x holds {int(broken)} NaN or infinite values out of {x.size}; repair them before quantizing")
    return q


def requantize(x: Float[Array, "*shape"], like: QTensor) -> QTensor:
    """`quantize` with the scales stored in ``like``. Of ``like.dequantize()`` it returns the same codes.

    Example:
      >>> q = quantize(jnp.array([[1.0, -2.0]]), INT8_CHANNEL)
      >>> print(requantize(q.dequantize(), q).codes)
      [[  64 -127]]
    """
    return quantize(x, like.spec, scale=like.scale, zero_point=like.zero_point, tensor_scale=like.tensor_scale)


@functools.partial(jax.jit, static_argnums=5)
def _quantize(
    x: Array, scale: Array | None, zero_point: Array | None, tensor_scale: Array | None, where: Array | None, spec: Spec
) -> tuple[QTensor, Array]:
    """The QTensor, and how many values were not finite. Compiled once a shape, so it rounds alike in and out of jit."""
    x = x.astype(jnp.float32)
    fmt, block = get_format(spec.format), spec.granularity.block_shape(x.shape)
    if where is not None:
        x = jnp.where(where | ~jnp.isnan(x), x, jnp.float32(0))  # padding that is no number has no code
    counted = x if where is None else jnp.where(where, x, jnp.float32(0))
    if scale is None:
        scale, zero_point, tensor_scale = choose(counted, spec)
    else:
        scale, tensor_scale = store_scales(scale, tensor_scale, spec)
        scale = nan_where(~jnp.isfinite(reduce_blocks(jnp.abs(counted), block, jnp.maximum)), scale)
    values = scale_values(scale, tensor_scale)
    steps = x / spread(values, block, x.shape)
    if zero_point is not None:
        steps = steps + spread(zero_point.astype(jnp.float32), block, x.shape)
    if spec.scale_format == "ue8m0":
        limit = spread(largest_steps(values, fmt), block, x.shape)
        steps = jnp.clip(steps, -limit, limit)
    codes = fmt.encode(steps)
    codes = pack_nibbles(codes) if fmt.bits == 4 else codes
    broken = jnp.sum(~jnp.isfinite(counted))
    return QTensor(codes, scale, zero_point, spec, x.shape, tensor_scale), broken


def _check_given(scale: Array, zero_point: Array | None, spec: Spec, shape: tuple[int, ...]) -> None:
    block = spec.granularity.block_shape(shape)
    wanted = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
    if scale.shape != wanted:
        raise UserError(
            f"scale has shape {scale.shape}, but {spec.granularity} on {shape} needs {wanted}; pass one a block"
        )
    if (zero_point is None) != spec.symmetric:
        raise UserError(
            f"symmetric={spec.symmetric} with zero_point {'missing' if zero_point is None else 'given'}: "
            "pass a zero point exactly when the spec is not symmetric"
        )


def take_expert(q: QTensor, index: Integer[Array, "..."] | int) -> QTensor:
    """The matrices of chosen experts: ``[E, O, I]`` and an index of shape ``[..]`` give ``[.., O, I]``.

    Codes, scales and zero points are indexed and nothing is decoded, so it is as cheap as reading those bytes. The
    index may be traced; the shape is static all the same.

    Raises:
      UserError: if ``q`` has no expert axis, or a plain int is out of range (a traced index is clipped).

    Example:
      >>> stack = quantize(jnp.ones((4, 2, 32)), MXFP4)
      >>> take_expert(stack, 3).shape, take_expert(stack, jnp.array([0, 2])).codes.shape
      ((2, 32), (2, 2, 16))
    """
    if q.ndim < 3:
        raise UserError(f"QTensor of shape {q.shape} has no expert axis; take_expert needs [E, O, I]")
    if isinstance(index, int) and not 0 <= index < q.shape[0]:
        raise UserError(f"expert {index} is not among the {q.shape[0]} of this QTensor; use 0..{q.shape[0] - 1}")
    where = jnp.asarray(index)
    taken = jax.tree.map(lambda leaf: jnp.take(leaf, where, axis=0, mode="clip"), q)
    return dataclasses.replace(taken, shape=(*where.shape, *q.shape[1:]))


def sqnr_db(x: Float[Array, "*shape"], approximation: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Signal to quantization noise in decibels: ``10 log10(sum x^2 / sum (x - approximation)^2)``. Larger is better.

    Each bit of an integer format is worth about 6 dB. Infinite when nothing was lost. Any magnitude will do.

    Example:
      >>> print(sqnr_db(jnp.array([3.0, 4.0]), jnp.array([3.0, 3.5])))
      20.0
    """
    x, approximation = x.astype(jnp.float32), approximation.astype(jnp.float32)
    # Squares of magnitudes like 1e-30 would be 0, and those of 1e30 infinite.
    largest = jnp.maximum(jnp.max(jnp.abs(x), initial=0.0), jnp.max(jnp.abs(approximation), initial=0.0))
    unit = jnp.where(largest > 0, jnp.minimum(largest, 2.0**126), jnp.float32(1))  # 1 / unit is a normal number
    signal, noise = jnp.sum((x / unit) ** 2), jnp.sum((x / unit - approximation / unit) ** 2)
    return jnp.where(noise == 0, jnp.inf, 10.0 * jnp.log10(signal / noise))
