"""Answers to the exercises of lesson 07, right and wrong; see `exercise_answers`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

# Tensor.


def tensor_view(data, begin, end, shape):
    start = 8 + int(np.frombuffer(data[:8].tobytes(), "<u8")[0])
    bits = np.frombuffer(data[start + begin : start + end].tobytes(), "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(shape)


def tensor_dtype(data, begin, end, shape):
    """By the dtype of ml_dtypes."""
    raw = bytes(data)
    start = 8 + int.from_bytes(raw[:8], "little")
    return np.frombuffer(raw[start + begin : start + end], ml_dtypes.bfloat16).reshape(shape).astype(np.float32)


def tensor_with(start=lambda n: 8 + n, dtype=ml_dtypes.bfloat16, order="C", length=8):
    def answer(data, begin, end, shape):
        raw = bytes(data)
        first = start(int.from_bytes(raw[:length], "little"))
        with np.errstate(all="ignore"):
            values = np.frombuffer(raw[first + begin : first + end], dtype).astype(np.float32)
        return values.reshape(shape, order=order)

    return answer


def tensor_lower(data, begin, end, shape):
    return np.ascontiguousarray(tensor_with(dtype="<u2")(data, begin, end, shape).astype(np.uint32)).view(np.float32)


def tensor_big(data, begin, end, shape):
    values = tensor_with(dtype="<u2")(data, begin, end, shape).astype(np.uint16).byteswap()
    return values.view(ml_dtypes.bfloat16).astype(np.float32)


TENSOR_RIGHT = [tensor_view, tensor_dtype]
TENSOR_WRONG = [
    (tensor_with(lambda n: 0), "offsets from the start of the file"),
    (tensor_with(lambda n: n), "the eight bytes of the length"),
    (tensor_with(lambda n: 8), "only the length skipped"),
    (tensor_with(length=1), "a header of one byte's length"),
    # off by two units in the last place: none of these mistakes, although the one above makes no difference on some files
    (lambda *given: tensor_view(*given) * np.float32(1 + 2e-7), "aspect:values"),
    (tensor_big, "bytes the other way round"),
    (tensor_with(dtype="<f2"), "half precision"),
    (tensor_with(dtype="<u2"), "whole numbers"),
    (tensor_lower, "the lower half"),
    (lambda *a: (tensor_with(dtype="<u2")(*a).astype(np.uint32) << 16).astype(np.float32),
     "a shifted number instead of shifted bits"),
    (tensor_with(order="F"), "first axis fastest"),
    (lambda *a: tensor_view(*a).astype(np.float64), "aspect:dtype"),
    (lambda *a: tensor_view(*a).ravel(), "aspect:shape"),
    (lambda *a: -tensor_view(*a), "aspect:values"),
    (lambda *a: tensor_view(*a).tolist(), "aspect:structure"),
]  # fmt: skip

# Blocks.


def blocks_index(values, scale_inv, block):
    rows, columns = (jnp.arange(n) // block for n in values.shape)
    return values * scale_inv[rows[:, None], columns[None]]


def blocks_repeat(values, scale_inv, block):
    scales = jnp.repeat(jnp.repeat(scale_inv, block, axis=0), block, axis=1)
    return values * scales[: values.shape[0], : values.shape[1]]


def blocks_kron(values, scale_inv, block):
    scales = jnp.kron(scale_inv, jnp.ones((block, block)))
    return values * scales[: values.shape[0], : values.shape[1]]


def blocks_with(scales):
    def answer(values, scale_inv, block):
        rows, columns = (jnp.arange(n) for n in values.shape)
        return values * scales(scale_inv, rows[:, None], columns[None], block, values.shape)

    return answer


BLOCKS_RIGHT = [blocks_index, blocks_repeat, blocks_kron]
BLOCKS_WRONG = [
    (lambda v, s, b: v / blocks_index(jnp.ones_like(v), s, b), "divided by the scale"),
    (blocks_with(lambda s, r, c, b, n: s[r % s.shape[0], c % s.shape[1]]), "scales repeated as a pattern"),
    (blocks_with(lambda s, r, c, b, n: s[r * s.shape[0] // n[0], c * s.shape[1] // n[1]]), "blocks of equal size"),
    (lambda v, s, b: blocks_index(v[::-1, ::-1], s[::-1, ::-1], b)[::-1, ::-1], "cut blocks first"),
    (lambda v, s, b: blocks_index(v, s.reshape(s.shape[::-1]).T, b), "rows and columns of the grid exchanged"),
    (blocks_with(lambda s, r, c, b, n: s[r // b, 0]), "one scale for a row of blocks"),
    (blocks_with(lambda s, r, c, b, n: s[0, c // b]), "one scale for a column of blocks"),
    (blocks_with(lambda s, r, c, b, n: s[0, 0]), "one scale for all"),
    (lambda v, s, b: v, "no scale"),
    (lambda v, s, b: v + blocks_index(jnp.ones_like(v), s, b), "scale added"),
    (lambda v, s, b: blocks_index(v, jax.lax.stop_gradient(s), b), "aspect:gradient zero"),
    (lambda v, s, b: blocks_index(v, s, b).astype(jnp.float16), "aspect:dtype"),
    (lambda v, s, b: blocks_index(v, s, b).T, "aspect:shape"),
    (lambda v, s, b: 2 * blocks_index(v, s, b), "aspect:values"),
    (lambda v, s, b: jnp.asarray(np.asarray(v) * np.asarray(blocks_index(jnp.ones_like(v), s, b))), "aspect:jit"),
]  # fmt: skip

# Shards.


def shards_loop(sizes, limit):
    number, held, numbers = 0, 0, []
    for size in sizes:
        if held and held + size > limit:
            number, held = number + 1, 0
        held += size
        numbers.append(number)
    return np.array(numbers, np.int32)


def shards_recursive(sizes, limit):
    """File by file: how many tensors fit."""
    numbers, first, number = [], 0, 0
    while first < len(sizes):
        last = first + 1
        while last < len(sizes) and sum(sizes[first : last + 1]) <= limit:
            last += 1
        numbers += [number] * (last - first)
        first, number = last, number + 1
    return jnp.array(numbers, jnp.int32)


def shards_with(closes, start=0, reset=0):
    def answer(sizes, limit):
        number, held, numbers = start, 0, []
        for i, size in enumerate(sizes):
            if closes(i, held, size, limit):
                number, held = number + 1, held * reset
            held += size
            numbers.append(number)
        return np.array(numbers, np.int32)

    return answer


def shards_first_fit(sizes, limit):
    held, numbers = [], []
    for size in sizes:
        for i in range(len(held) + 1):
            if i == len(held):
                held.append(0)
                break
            if held[i] + size <= limit:
                break
        held[i] += size
        numbers.append(i)
    return np.array(numbers, np.int32)


def shards_sorted(sizes, limit):
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    out = np.zeros(len(sizes), np.int32)
    out[order] = shards_loop([sizes[i] for i in order], limit)
    return out


SHARDS_RIGHT = [shards_loop, shards_recursive]
SHARDS_WRONG = [
    (shards_with(lambda i, h, s, m: i and h + s >= m), "a full file not used to its end"),
    (shards_with(lambda i, h, s, m: h + s > m), "an empty file"),
    (shards_with(lambda i, h, s, m: h > m), "closed one tensor late"),
    (shards_with(lambda i, h, s, m: h >= m), "closed when full, one tensor late"),
    (shards_with(lambda i, h, s, m: i and h + s > m, reset=1), "the count goes on"),
    (shards_with(lambda i, h, s, m: i and h + s > m, start=1), "counted from 1"),
    (shards_first_fit, "back into an earlier file"),
    (lambda s, m: (np.cumsum([0, *s])[:-1] // m).astype(np.int32), "tensors cut at the limit"),
    (shards_sorted, "largest first"),
    (lambda s, m: shards_loop(s, m).astype(np.int64), "aspect:dtype"),
    (lambda s, m: shards_loop(s, m)[:, None], "aspect:shape"),
    (lambda s, m: shards_loop(s, m).tolist(), "aspect:structure"),
    (lambda s, m: shards_loop(s, m) + 2, "aspect:values"),
]  # fmt: skip

RIGHT = {"weights.tensor": TENSOR_RIGHT, "weights.blocks": BLOCKS_RIGHT, "weights.shards": SHARDS_RIGHT}
WRONG = {"weights.tensor": TENSOR_WRONG, "weights.blocks": BLOCKS_WRONG, "weights.shards": SHARDS_WRONG}
