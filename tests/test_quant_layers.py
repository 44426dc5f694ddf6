"""Quantized modules against float ones that hold the decoded weights, and integers against NumPy's."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe import UserError
from minimoe.moe import DISPATCHERS
from minimoe.quant.layers import QuantEmbed, QuantExperts, QuantLinear
from minimoe.quant.matmul import (
    int8_dot,
    int8_matmul,
    is_w8a8,
    multiply,
    qmatmul,
)
from minimoe.quant.specs import (
    FP8_BLOCK,
    FP8_TILE,
    INT4_GROUP32,
    INT8_CHANNEL,
    INT8_TOKEN,
    MXFP4,
    NVFP4,
    PerTensor,
    PerToken,
    Spec,
)
from minimoe.quant.tensor import quantize, take_expert

T, D, F, E, K = 13, 8, 6, 4, 2
rng = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


X, GATE_UP, DOWN = normal(T, D), normal(E, 2 * F, D), normal(E, D, F)
EXPERTS = jnp.asarray(np.stack([rng.permutation(E)[:K] for _ in range(T)]), jnp.int32)
WEIGHTS = jnp.asarray(rng.uniform(0.1, 1.0, (T, K)), jnp.float32)


def rounded_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of rows, as `quantize` documents them."""
    scale = np.abs(x).max(axis=-1, keepdims=True) * np.float32(1 / 127)
    return np.rint(x / scale).astype(np.int64), scale


def integer_matmul(x, w) -> np.ndarray:
    """Sums of integers in int64, then the two scales in float32."""
    codes, scale = rounded_rows(np.asarray(x))
    sums = codes @ np.asarray(w.codes).astype(np.int64).T
    return sums.astype(np.float32) * scale * np.asarray(w.scale)[:, 0]


@pytest.mark.parametrize("spec", [INT4_GROUP32, FP8_BLOCK, NVFP4, Spec("int8", PerToken(), symmetric=False)], ids=str)
def test_qmatmul_is_the_matmul_with_decoded_weights(spec):
    x, w = normal(2, 3, 70), quantize(normal(5, 70), spec)
    want = np.asarray(x) @ np.asarray(w.dequantize()).T
    np.testing.assert_allclose(qmatmul(x, w), want, rtol=1e-5, atol=1e-5)
    assert qmatmul(x.astype(jnp.bfloat16), w).dtype == jnp.bfloat16


@pytest.mark.parametrize("rows", [1, 2, 11])
def test_w8a8_is_integer_arithmetic(rows):
    # Powers of two as scales, so that no division rounds and codes are known beforehand.
    codes = rng.integers(-127, 128, (rows, 37))
    codes[:, 5] = 127
    powers = 2.0 ** rng.integers(-4, 5, (rows, 1))
    x, w = jnp.asarray(codes * powers, jnp.float32), quantize(normal(6, 37), INT8_CHANNEL)
    sums = codes @ np.asarray(w.codes).astype(np.int64).T
    want = sums.astype(np.float32) * powers.astype(np.float32) * np.asarray(w.scale)[:, 0]
    np.testing.assert_array_equal(int8_matmul(x, w), want)
    np.testing.assert_array_equal(jax.jit(int8_matmul)(x, w), want)


def test_w8a8_of_any_activations():
    x, w = normal(3, 2, 37), quantize(normal(6, 37), INT8_CHANNEL)
    got = int8_matmul(x, w)
    np.testing.assert_array_equal(got.reshape(6, 6), integer_matmul(x.reshape(6, 37), w))
    np.testing.assert_array_equal(got, multiply(x, w, INT8_TOKEN))
    floats = qmatmul(quantize(x, INT8_TOKEN).dequantize(), w)
    np.testing.assert_allclose(got, floats, rtol=1e-5, atol=1e-5)
    exact = np.asarray(x) @ np.asarray(w.dequantize()).T
    assert 1e-4 < float(np.abs(got - exact).max()) < 0.2, "rounded, a little"
    assert not int8_matmul(jnp.zeros((1, 37)), w).any()


def test_sums_do_not_overflow():
    worst = jnp.full((1, 4096), -128, jnp.int8)
    assert int(int8_dot(worst, worst)[0, 0]) == 128 * 128 * 4096


@pytest.mark.parametrize("width", [24, 37, 704, 2048])
def test_one_row_of_one_expert(width):
    stack = jnp.asarray(rng.integers(-127, 128, (3, 5, width)), jnp.int8)
    row = jnp.asarray(rng.integers(-127, 128, (1, width)), jnp.int8)
    want = np.asarray(stack).astype(np.int64) @ np.asarray(row[0]).astype(np.int64)
    for expert in range(3):
        np.testing.assert_array_equal(jax.jit(int8_dot)(row, stack[expert])[0], want[expert])


def entry_of(function, *args) -> tuple[str, set[str]]:
    """The loops of a compiled program, and the arrays of the size of the matrix that it makes outside of them."""
    loops, entry = jax.jit(function).lower(*args).compile().as_text().split("ENTRY")
    lines = [line.split(" = ")[1] for line in entry.splitlines() if " = " in line and "parameter(" not in line]
    shapes = {shape for line in lines for shape in re.findall(r"\w+\[[\d,]+\]", line.split(" fusion(")[0])}
    return loops, {shape for shape in shapes if math.prod(map(int, re.findall(r"\d+", shape)[1:])) >= 640 * 2048}


def test_one_row_of_one_expert_is_read_in_place():
    """The program for one row makes no array as large as the expert, in any dtype; the one for two rows does."""
    stack = quantize(jnp.ones((3, 640, 2048)), INT8_CHANNEL)

    def function(x, w, e):
        return int8_matmul(x, take_expert(w, e))

    loops, large = entry_of(function, jnp.ones((1, 2048)), stack, jnp.int32(1))
    assert large == set()
    assert entry_of(function, jnp.ones((2, 2048)), stack, jnp.int32(1))[1] == {"s8[640,2048]"}
    # Nor is the row rounded anew for each output: no loop over the stack contains the rounding.
    over_stack = [loop for loop in loops.split("\n\n") if "s8[3,640,2048]" in loop]
    assert over_stack
    assert not any("round-nearest-even" in loop for loop in over_stack)


def test_weights_are_not_widened_before_a_loop_over_tokens():
    w = quantize(jnp.ones((640, 2048)), INT8_CHANNEL)

    def tokens(x, w):
        return jax.lax.fori_loop(0, 3, lambda i, x: x + int8_matmul(x, w)[:, :1], x)

    large = entry_of(tokens, jnp.ones((1, 2048)), w)[1]
    assert {shape for shape in large if not shape.startswith("s8")} == set()


def test_what_is_multiplied_as_integers():
    w = quantize(normal(5, 8), INT8_CHANNEL)
    assert is_w8a8(w, INT8_TOKEN)
    assert not is_w8a8(w, dataclasses.replace(INT8_TOKEN, symmetric=False))
    assert not is_w8a8(w, FP8_TILE)
    assert not is_w8a8(quantize(normal(5, 8), INT4_GROUP32), INT8_TOKEN)
    with pytest.raises(UserError, match=r"int8_matmul needs a weight .* use multiply"):
        int8_matmul(X, quantize(normal(5, 8), Spec("int8", PerToken(), symmetric=False)))


def test_linear_in_every_dtype():
    w = quantize(normal(5, D), MXFP4)
    layer = QuantLinear(w, dtype="bfloat16")
    assert layer(X).dtype == jnp.bfloat16
    np.testing.assert_allclose(QuantLinear(w)(X[None]), (X @ w.dequantize().T)[None], rtol=1e-5, atol=1e-5)
    emulated = QuantLinear(w, activations=FP8_TILE)(X)
    np.testing.assert_allclose(emulated, quantize(X, FP8_TILE).dequantize() @ w.dequantize().T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", [INT8_CHANNEL, MXFP4, Spec("int8", PerTensor())], ids=str)
def test_embedding_reads_rows_and_attends(spec):
    w = quantize(normal(19, 40), spec)
    embed = QuantEmbed(w)
    ids = jnp.array([[3, 18], [0, 3]], jnp.int32)
    x = normal(2, 3, 40)
    rows, logits, matrix = nnx.jit(lambda embed: (embed(ids), embed.attend(x), embed.weight.dequantize()))(embed)
    np.testing.assert_array_equal(rows, matrix[ids])
    np.testing.assert_allclose(logits, x @ matrix.T, rtol=1e-5, atol=1e-5)


def test_embedding_in_bfloat16():
    embed = QuantEmbed(quantize(normal(19, 40), INT8_CHANNEL), dtype="bfloat16")
    assert embed(jnp.array([3], jnp.int32)).dtype == embed.attend(normal(1, 40)).dtype == jnp.bfloat16


# pairs of weights and activations
KINDS = {
    "int8": (INT8_CHANNEL, None),
    "w8a8": (INT8_CHANNEL, INT8_TOKEN),
    "v4": (MXFP4, FP8_TILE),
}


@nnx.jit(static_argnames=("dispatch", "capacity"))
def run(module, x, experts, weights, dispatch, capacity=None):
    return module(x, experts, weights, dispatch=dispatch, capacity=capacity)


def make(kind: str) -> QuantExperts:
    weight, activations = KINDS[kind]
    return QuantExperts(quantize(GATE_UP, weight), quantize(DOWN, weight), activations=activations)


def by_hand(module: QuantExperts) -> np.ndarray:
    """``[T, K, D]``: each assignment alone, through what is tested above; rows do not mix."""
    outs = np.zeros((E, T, D), np.float32)
    for expert in range(E):
        up, down = take_expert(module.gate_up, expert), take_expert(module.down, expert)
        if module.activations is None:
            matrices = [np.asarray(w.dequantize()).T for w in (up, down)]
            outs[expert] = [oracles.swiglu_ffn(row, *matrices) for row in X]
            continue
        gate, rest = jnp.split(multiply(X, up, module.activations), 2, axis=-1)
        outs[expert] = multiply(jax.nn.silu(gate) * rest, down, module.activations)
    return outs[np.asarray(EXPERTS), np.arange(T)[:, None]]


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray]:
    return {kind: by_hand(make(kind)) for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "dispatch"),
    [*itertools.product(["int8", "w8a8"], DISPATCHERS), ("v4", "dropless")],
)
def test_every_dispatch_gives_the_same_answer(dispatch, kind, alone):
    want = (np.asarray(WEIGHTS)[:, :, None] * alone[kind]).sum(axis=1)
    np.testing.assert_allclose(run(make(kind), X, EXPERTS, WEIGHTS, dispatch), want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("kind", "tokens"), [("int8", 2), ("w8a8", 1), ("w8a8", 2), ("v4", 1)])
def test_few_assignments_read_only_their_experts(tokens, kind, alone):
    module = make(kind)
    got = run(module, X[:tokens], EXPERTS[:tokens], WEIGHTS[:tokens], "dropless")
    want = (np.asarray(WEIGHTS)[:tokens, :, None] * alone[kind][:tokens]).sum(axis=1)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)
    # NaN in all experts that were not chosen does not show: their bytes are not touched.
    others = ~np.isin(np.arange(E), np.asarray(EXPERTS[:tokens]))
    scale = module.down.block_scales()
    if module.down.spec.scale_format == "float32":
        spoilt = jnp.where(jnp.asarray(others)[:, None, None], jnp.nan, scale)
        broken = QuantExperts(
            module.gate_up, dataclasses.replace(module.down, scale=spoilt), activations=module.activations
        )
        np.testing.assert_array_equal(run(broken, X[:tokens], EXPERTS[:tokens], WEIGHTS[:tokens], "dropless"), got)


@pytest.mark.parametrize("kind", ["int8", "w8a8"])
def test_capacity_drops_what_does_not_fit(kind, alone):
    """In GShard's order: first choices of all tokens, then second ones."""
    capacity, taken, kept = 3, [0] * E, np.zeros((T, K), bool)
    for k in range(K):
        for t in range(T):
            expert = int(EXPERTS[t, k])
            kept[t, k] = taken[expert] < capacity
            taken[expert] += 1
    assert not kept.all()
    want = ((np.asarray(WEIGHTS) * kept)[:, :, None] * alone[kind]).sum(axis=1)
    got = run(make(kind), X, EXPERTS, WEIGHTS, "capacity", capacity)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


def test_no_tokens():
    empty = run(make("w8a8"), X[:0], EXPERTS[:0], WEIGHTS[:0], "dropless")
    assert empty.shape == (0, D)
