"""Which scale each block of an array gets, and how scales are stored: the half of quantization that decides.

`minimoe.quant.tensor` divides by these scales and rounds. Axes as there; a block is what shares a scale.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from minimoe.quant.formats import Format, e8m0_decode, e8m0_encode, get_format, ue8m0_scale
from minimoe.quant.specs import Spec

TINY = float(np.finfo(np.float32).tiny)  # below it compiled arithmetic may flush to 0, and x / 0 has no code
LARGEST = float(np.finfo(np.float32).max)
# By how much a real-valued scale is rounded up at most when it is stored, doubled.
_ROUNDED_UP = {"float32": 2.0**-22, "bfloat16": 2.0**-7}


def choose_scale(x: Float[Array, "*shape"], spec: Spec) -> tuple[Float[Array, "..."], Int8[Array, "..."] | None]:
    """What one code step is worth in each block, and where zero lies.

    Symmetric: ``scale = amax / format.max``, rounded to what ``spec.scale_format`` can hold. With a zero point:
    ``scale = (high - low) / (codes - 1)`` and ``zero_point = round(lowest_code - low / scale)``, where [low, high] is
    the range of the block, widened to hold 0 so that 0 stays exact.

    Returns:
      Scales, float32, ``ceil(shape / block_shape)``; zero points, int8 in the same shape, or None.

    Example:
      >>> print(choose_scale(jnp.array([[12.7, -1.0]]), INT8_CHANNEL)[0])
      [[0.1]]
    """
    scale, zero_point, tensor_scale = choose(x.astype(jnp.float32), spec)
    return scale_values(scale, tensor_scale), zero_point


def choose(x: Array, spec: Spec) -> tuple[Array, Array | None, Array | None]:
    """Scales as stored, zero points, tensor scales. The scale of a block with NaN or infinity is NaN."""
    block, fmt = spec.granularity.block_shape(x.shape), get_format(spec.format)
    if not spec.symmetric:
        return _choose_range(x, block, fmt, spec)
    amax = reduce_blocks(jnp.abs(x), block, jnp.maximum)
    broken = ~jnp.isfinite(amax)
    # Multiplied by the reciprocal: XLA turns a division by a constant into that anyway, but only in compiled code.
    scale = amax * (1.0 / fmt.max)
    if spec.scale_format == "ue8m0":
        scale = ue8m0_scale(amax, fmt.max, spec.scale_rule)
        return e8m0_encode(jnp.where(amax == 0, jnp.float32(1), scale)), None, None
    if spec.tensor_scale:
        scale, tensor_scale = store_scales(jnp.where(broken, 0.0, scale), None, spec)
        return nan_where(broken, jnp.where(amax == 0, jnp.ones((), scale.dtype), scale)), None, tensor_scale
    furthest = fmt.max + 1 if fmt.name.startswith("int") else fmt.max  # integers saturate one further below zero
    scale = _finite(_positive(scale), furthest, spec).astype(spec.scale_format)
    return nan_where(broken, scale), None, None


def _choose_range(x: Array, block: tuple[int, ...], fmt: Format, spec: Spec) -> tuple[Array, Array, None]:
    """`choose` for codes that cover [min, max]."""
    low, high = reduce_blocks(x, block, jnp.minimum), reduce_blocks(x, block, jnp.maximum)
    lowest, steps = -(2 ** (fmt.bits - 1)), 2**fmt.bits - 1
    # Divided before the difference, which may be larger than a float32.
    scale = _positive(high * (1.0 / steps) - low * (1.0 / steps)).astype(spec.scale_format)
    zero_point = jnp.clip(jnp.round(lowest - low / scale.astype(jnp.float32)), lowest, lowest + steps)
    zero_point = jnp.where(high > low, zero_point, jnp.float32(0))
    furthest = jnp.maximum(lowest + steps - zero_point, zero_point - lowest)
    broken = ~jnp.isfinite(high) | ~jnp.isfinite(low)
    scale = nan_where(broken, _finite(scale.astype(jnp.float32), furthest, spec).astype(spec.scale_format))
    return scale, jnp.where(broken, jnp.float32(0), zero_point).astype(jnp.int8), None


def _positive(scale: Array) -> Array:
    return jnp.where(scale == 0, jnp.float32(1), jnp.maximum(scale, TINY))


def _finite(scale: Array, furthest: Array | float, spec: Spec) -> Array:
    """The scale, or a smaller one if the code furthest from zero would stand for more than a float32 can hold."""
    return jnp.minimum(scale, jnp.float32(LARGEST * (1 - _ROUNDED_UP[spec.scale_format])) / furthest)


def nan_where(broken: Array, scale: Array) -> Array:
    """Stored scales, NaN in the blocks that hold no numbers."""
    return jnp.where(broken, jnp.array(255 if scale.dtype == jnp.uint8 else jnp.nan, scale.dtype), scale)


def store_scales(scale: Array, tensor_scale: Array | None, spec: Spec) -> tuple[Array, Array | None]:
    """Real-valued scales in their storage format; scales already stored pass through."""
    if spec.scale_format == "ue8m0":
        return (scale if scale.dtype == jnp.uint8 else e8m0_encode(scale)), None
    if not spec.tensor_scale:
        return scale.astype(spec.scale_format), None
    fp8 = get_format("fp8_e4m3")
    if tensor_scale is None:
        axes = tuple(range(scale.ndim))[-2:]
        largest = jnp.max(scale.astype(jnp.float32), axis=axes, keepdims=True, initial=0.0)
        limit = LARGEST * (1 - 2.0**-20) / (fp8.max * get_format(spec.format).max)
        tensor_scale = jnp.minimum(_positive(largest * (1.0 / fp8.max)), limit)
    if scale.dtype != fp8.dtype:
        scale = fp8.encode(jnp.maximum(scale / tensor_scale, fp8.smallest))  # a scale of 0 would divide by 0
    return scale, tensor_scale


def scale_values(scale: Array, tensor_scale: Array | None) -> Array:
    values = e8m0_decode(scale) if scale.dtype == jnp.uint8 else scale.astype(jnp.float32)
    return values if tensor_scale is None else values * tensor_scale


def reduce_blocks(x: Array, block: tuple[int, ...], by: Any) -> Array:
    """Maximum or minimum of every block and 0: short blocks are filled up with 0."""
    counts = [-(-n // b) for n, b in zip(x.shape, block, strict=True)]
    padded = jnp.pad(x, [(0, c * b - n) for c, b, n in zip(counts, block, x.shape, strict=True)])
    blocks = padded.reshape([size for pair in zip(counts, block, strict=True) for size in pair])
    return by.reduce(blocks, axis=tuple(range(1, 2 * x.ndim, 2)), initial=jnp.float32(0))


def spread(scale: Array, block: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Repeats each scale over its block, cut to ``shape``; an axis with one block stays 1 long and broadcasts."""
    for axis, (b, n) in enumerate(zip(block, shape, strict=True)):
        count = scale.shape[axis]
        if b == 1 or count == 1:
            continue
        wide = jnp.broadcast_to(
            jnp.expand_dims(scale, axis + 1), (*scale.shape[: axis + 1], b, *scale.shape[axis + 1 :])
        )
        scale = wide.reshape(*scale.shape[:axis], count * b, *scale.shape[axis + 1 :])
        scale = jax.lax.slice_in_dim(scale, 0, n, axis=axis)
    return scale


def largest_steps(scale: Array, fmt: Format) -> Array:
    """The last value of a float format that a power of two does not carry to 2**128, which float32 does not have."""
    return jnp.float32(2.0**127) / scale * jnp.float32(2 - fmt.epsilon)
