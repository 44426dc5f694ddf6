"""The edges of every format: NaN and infinity, magnitudes from 1e-30 to the largest float32, zero blocks, empty arrays.

T tokens, D model width. Laws: what is no number comes out as NaN and touches nobody else's block; a magnitude is no
reason to lose quality; what is finite stays finite; an array without values is an array.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minimoe import UserError
from minimoe.quant import (
    FP8_TILE,
    INT8_CHANNEL,
    INT8_TOKEN,
    MXFP4,
    MXFP8,
    NVFP4,
    SPECS,
    Block,
    Group,
    PerChannel,
    PerTensor,
    QuantEmbed,
    QuantExperts,
    QuantLinear,
    Spec,
    choose_scale,
    fake_quantize,
    fp8_matmul,
    multiply,
    quantize,
    requantize,
    sqnr_db,
    straight_through,
    ue8m0_scale,
)
from minimoe.quant.kv import CACHES, INT4, CacheFactory

ALL = {
    **SPECS,
    "int8_zero": Spec("int8", PerChannel(), symmetric=False),
    "int4_zero": Spec("int4", Group(32), symmetric=False),
    "int8_bfloat16_scale": Spec("int8", PerTensor(), scale_format="bfloat16"),
    "nf4_bfloat16_scale": Spec("nf4", Group(32), scale_format="bfloat16"),
    "int4_zero_bfloat16_scale": Spec("int4", Group(16), scale_format="bfloat16", symmetric=False),
    "e5m2_blocks": Spec("fp8_e5m2", Block(2, 32)),
    "e5m2_ue8m0": Spec("fp8_e5m2", Block(2, 32), scale_format="ue8m0"),
}
ROWS, WIDTH = 8, 96
LARGEST = float(np.finfo(np.float32).max)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """Magnitudes up to 1, with a row of zeros and a group of zeros."""
    values = np.random.default_rng(0).normal(size=(ROWS, WIDTH))
    values[3], values[5, :32] = 0, 0
    values[0, :3] = 3, -3, 1.5
    return (values / np.abs(values).max()).astype(np.float32)


@functools.cache
def there_and_back(spec: Spec):
    """Compiled: nobody is told of NaN there."""
    return jax.jit(lambda x: quantize(x, spec).dequantize())


def decibels(exact: np.ndarray, approximation) -> float:
    exact = np.float64(exact)
    return float(10 * np.log10((exact**2).sum() / ((exact - np.float64(approximation)) ** 2).sum()))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ALL)
def test_what_is_no_number_makes_its_block_nan_and_no_other(name, bad, x):
    spec = ALL[name]
    broken = x.copy()
    broken[1, 7] = bad
    rows, columns = spec.granularity.block_shape(x.shape)
    mine = np.zeros(x.shape, bool)
    mine[1 // rows * rows : (1 // rows + 1) * rows, 7 // columns * columns : (7 // columns + 1) * columns] = True
    for found in (there_and_back(spec)(broken), quantize(jnp.asarray(broken), spec, check=False).dequantize()):
        np.testing.assert_array_equal(np.isnan(found), mine)
        if spec.tensor_scale:  # the scale above all blocks is chosen without the broken one
            assert decibels(x[~mine], np.asarray(found)[~mine]) > 15
        else:
            np.testing.assert_array_equal(np.asarray(found)[~mine], np.asarray(there_and_back(spec)(x))[~mine])
    with pytest.raises(UserError, match="1 NaN or infinite values out of 768"):
        quantize(jnp.asarray(broken), spec)


@pytest.mark.parametrize("name", ["int8_channel", "int4_zero", "mxfp4", "nvfp4", "nf4_group64"])
def test_given_scales_hide_nothing_either(name, x):
    like = quantize(jnp.asarray(x), ALL[name])
    broken = jnp.asarray(x).at[1, 7].set(jnp.nan)
    again = jax.jit(requantize)(broken, like)
    assert np.isnan(again.dequantize()[1, 7])
    assert np.isnan(again.block_scales()).sum() == 1
    scale, _ = choose_scale(broken, ALL[name])
    assert np.isnan(scale).sum() == 1


def test_padding_that_is_no_number_chooses_no_scale(x):
    broken, where = jnp.asarray(x).at[1, 7].set(jnp.nan), jnp.ones(x.shape, bool).at[1, 7].set(False)
    for name in ("int8_channel", "mxfp4", "nvfp4"):
        q = quantize(broken, ALL[name], where=where)
        assert np.isfinite(q.block_scales()).all()
        assert np.isfinite(q.dequantize()).all()


@pytest.mark.parametrize("rule", ["deepseek", "ocp"])
def test_a_power_of_two_for_no_number_is_nan(rule):
    found = ue8m0_scale(jnp.array([1.0, jnp.nan, jnp.inf]), 6.0, rule)
    np.testing.assert_array_equal(np.isnan(found), [False, True, True])


PAIRS = [(INT8_CHANNEL, INT8_TOKEN), (SPECS["fp8_block"], FP8_TILE), (MXFP8, MXFP8), (INT8_CHANNEL, None)]
TOKENS = jnp.asarray(np.random.default_rng(1).normal(size=(4, 32)), jnp.float32)


CHOSEN = jnp.array([[0], [1], [1], [2]], jnp.int32)


@functools.cache
def layers(weight: Spec, activations: Spec | None):
    """A linear layer, an output head and experts in one function."""
    random = np.random.default_rng(2)
    matrix, gate_up, down = (
        jnp.asarray(random.normal(size=s), jnp.float32) for s in ((5, 32), (3, 16, 32), (3, 32, 8))
    )
    linear = QuantLinear(quantize(matrix, weight), activations=activations)
    embed = QuantEmbed(quantize(matrix, weight), activations=activations)
    ffn = QuantExperts(quantize(gate_up, weight), quantize(down, weight), activations=activations)

    def run(x, chosen):
        return linear(x), embed.attend(x), ffn(x, chosen, jnp.ones(chosen.shape), dispatch="dropless")

    return linear, jax.jit(run)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("weight", "activations"), PAIRS)
def test_a_token_that_is_no_number_stays_one_in_every_layer(weight, activations, bad):
    """One token's NaN is all of its outputs' and nobody else's; for one row, as in decoding, and for many."""
    linear, run = layers(weight, activations)
    broken = TOKENS.at[2, 5].set(bad)
    for got, want in zip(run(broken, CHOSEN), run(TOKENS, CHOSEN), strict=True):
        assert not np.isfinite(got[2]).any()
        np.testing.assert_array_equal(np.delete(got, 2, 0), np.delete(want, 2, 0))
    for got in run(broken[2:3], CHOSEN[2:3]):
        assert not np.isfinite(got).any()
    np.testing.assert_array_equal(np.isfinite(linear(broken)).all(-1), [True, True, False, True])  # not compiled


def test_a_weight_that_became_no_number_is_seen_by_all_who_use_it():
    matrix = jnp.ones((3, 32)).at[1, 4].set(jnp.nan)
    for spec in (INT8_CHANNEL, MXFP4, NVFP4):
        out = jax.jit(lambda w, spec=spec: multiply(TOKENS, quantize(w, spec), INT8_TOKEN))(matrix)
        np.testing.assert_array_equal(np.isnan(out), np.broadcast_to([False, True, False], (4, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", CACHES)
def test_caches_hide_nothing(name, bad):
    k = jnp.ones((1, 3, 2, 8)).at[0, 1, 1, 3].set(bad)

    def fill(k):
        return CACHES[name](1, 4, 2, 8).append(k, k).read()

    for keys, values in (fill(k), jax.jit(fill)(k)):
        for found in (keys, values):
            assert not np.isfinite(found[0, 1, 1, 3])
            found = np.array(found.astype(jnp.float32))
            found[0, 1, 1] = 1
            np.testing.assert_allclose(found[0, :3], 1.0, rtol=1e-6)


def test_caches_with_zero_points_write_them_too():
    k = jnp.asarray(np.random.default_rng(4).uniform(1, 2, size=(1, 3, 2, 8)), jnp.float32)
    spec = Spec("int8", INT4.granularity, symmetric=False)
    cache = CacheFactory("shifted", spec)(1, 4, 2, 8).append(k, k)
    np.testing.assert_allclose(cache.read()[0][:, :3], k, atol=0.01)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) - cache.length.nbytes
    assert CacheFactory("shifted", spec).bytes_per_token(2, 8) * 4 == held
    with pytest.raises(UserError, match=r"cache 'two levels': .* tensor scale; "):
        CacheFactory("two levels", NVFP4)


def test_rounding_in_training_hides_nothing():
    w = jnp.ones((2, 32)).at[0, 3].set(jnp.inf)
    for spec in (MXFP4, INT8_CHANNEL, FP8_TILE):
        np.testing.assert_array_equal(np.isnan(jax.jit(fake_quantize, static_argnums=1)(w, spec)).any(1), [True, False])
    out = jax.jit(fp8_matmul)(w, jnp.ones((32, 3)))
    np.testing.assert_array_equal(np.isnan(out).all(1), [True, False])


@pytest.mark.parametrize("name", ALL)
def test_no_magnitude_costs_quality_and_zero_blocks_cost_none(name, x):
    """Powers of two only move the exponent; others meet a scale that is a power of two at another place."""
    spec = ALL[name]
    exact = np.float64(x)
    want = decibels(exact, there_and_back(spec)(x))
    assert want > 17
    for power in (-100, -70, -40, -20, 20, 60, 100):
        got = np.float64(there_and_back(spec)(np.ldexp(x, power)))
        assert decibels(exact, np.ldexp(got, -power)) == pytest.approx(want, abs=0.01), power
    for magnitude in (1e-30, 1e-12, 1e-6, 1e3, 1e30):
        scaled = x * np.float32(magnitude)
        got = decibels(scaled, there_and_back(spec)(scaled))
        assert got == pytest.approx(want, abs=3.5 if spec.scale_format == "ue8m0" else 0.3), magnitude
    zeros = np.float64(there_and_back(spec)(x * np.float32(1e-6)))
    assert not zeros[3].any()
    assert not zeros[5, :32].any()


@pytest.mark.parametrize("largest", [3e38, LARGEST])
@pytest.mark.parametrize("name", ALL)
def test_what_is_finite_stays_finite(name, largest, x):
    """The last code below infinity is taken instead of the next one; the rest keeps its quality."""
    huge = np.clip(np.float64(x) * largest, -LARGEST, LARGEST).astype(np.float32)
    q = quantize(jnp.asarray(huge), ALL[name])
    back = np.asarray(q.dequantize())
    assert np.isfinite(back).all()
    assert decibels(huge, back) > 15
    np.testing.assert_array_equal(requantize(q.dequantize(), q).codes, q.codes)


EMPTY = [(0,), (0, 8), (4, 0), (0, 0), (2, 0, 8), (0, 4, 8), (2, 3, 0)]


def of_nothing(shape, spec: Spec):
    q = quantize(jnp.zeros(shape), spec)
    return q, q.dequantize(), requantize(jnp.zeros(shape), q), choose_scale(jnp.zeros(shape), spec)


@pytest.mark.parametrize("name", ALL)
def test_an_empty_array_is_an_array(name):
    for shape in EMPTY:
        q, back, again, _ = jax.eval_shape(functools.partial(of_nothing, shape, ALL[name]))
        assert back.shape == again.shape == shape
        assert q.bits_per_value >= 0
    q, back, again, _ = of_nothing((2, 0, 8), ALL[name])
    assert (again.shape, back.size) == ((2, 0, 8), 0)


@pytest.mark.parametrize(("weight", "activations"), PAIRS)
def test_layers_take_no_tokens_and_no_channels(weight, activations):
    layer = QuantLinear(quantize(jnp.ones((5, 32)), weight), activations=activations)
    for lead in ((0,), (2, 0), (0, 3)):
        assert layer(jnp.zeros((*lead, 32))).shape == (*lead, 5)
    narrow = QuantLinear(quantize(jnp.ones((5, 0)), weight), activations=activations)
    for rows in (0, 1, 3):
        np.testing.assert_array_equal(narrow(jnp.zeros((rows, 0))), np.zeros((rows, 5)))
    assert QuantEmbed(quantize(jnp.ones((5, 32)), weight))(jnp.zeros((0, 2), jnp.int32)).shape == (0, 2, 32)


def test_caches_and_roundings_of_nothing():
    for make in CACHES.values():
        cache = make(0, 4, 2, 8).append(jnp.zeros((0, 2, 2, 8)), jnp.zeros((0, 2, 2, 8)))
        assert cache.read()[0].shape == (0, 4, 2, 8)
        assert make(1, 0, 2, 8).read()[0].shape == (1, 0, 2, 8)
    assert fake_quantize(jnp.zeros((0, 8)), MXFP4).shape == (0, 8)
    assert fp8_matmul(jnp.zeros((0, 8)), jnp.zeros((8, 3))).shape == (0, 3)


def test_sqnr_at_any_magnitude():
    a = jnp.array([3.0, 4.0])
    for magnitude in (1e-36, 1e-30, 1e30, 8e37):
        m = jnp.float32(magnitude)
        assert float(sqnr_db(a * m, jnp.array([3.0, 3.5]) * m)) == pytest.approx(20.0, abs=1e-3)
    zero = jnp.zeros(2)
    assert float(sqnr_db(zero, zero)) == np.inf
    assert float(sqnr_db(zero, a)) == -np.inf
    assert np.isnan(sqnr_db(a, jnp.array([jnp.nan, 1.0])))


def test_rounding_straight_through_has_forward_mode_too():
    x, tangent = jnp.array([0.1, 0.7, 6.0]), jnp.array([1.0, 2.0, 3.0])
    y, slope = jax.jit(lambda x, t: jax.jvp(lambda x: straight_through(jnp.round, x), (x,), (t,)))(x, tangent)
    np.testing.assert_array_equal(y, [0, 1, 6])
    np.testing.assert_array_equal(slope, tangent)


def test_fp8_matmul_names_what_has_forward_mode():
    x, w = jnp.ones((2, 4)), jnp.ones((4, 3))
    assert np.isfinite(np.asarray(jax.jit(jax.grad(lambda w: fp8_matmul(x, w).sum()))(w))).all()
    for run in (fp8_matmul, jax.jit(fp8_matmul)):
        with pytest.raises(UserError, match=r"reverse mode .* differentiate the model without"):
            jax.jvp(lambda w, run=run: run(x, w), (w,), (w,))
