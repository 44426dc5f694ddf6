"""Number formats against ml_dtypes: every code point, every midpoint and its neighbours, and the two rules for scales."""

from __future__ import annotations

from statistics import NormalDist

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from minimoe.errors import UserError
from minimoe.plots import numbers, style
from minimoe.quant import (
    FORMATS,
    UE8M0,
    e8m0_decode,
    e8m0_encode,
    get_format,
    pack_nibbles,
    ue8m0_scale,
    unpack_nibbles,
)

REFERENCE = {
    "int8": np.int8,
    "int4": ml_dtypes.int4,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "ue8m0": ml_dtypes.float8_e8m0fnu,
}
FLOATS = ("fp8_e4m3", "fp8_e5m2", "fp4_e2m1")


def reference_values(name: str) -> np.ndarray:
    """The value of each code as ml_dtypes has it, in the order of the bits."""
    bits = np.arange(2 ** get_format(name).bits, dtype=np.uint8)
    if name == "int4":
        return bits.astype(REFERENCE[name]).astype(np.float32)
    return bits.view(REFERENCE[name]).astype(np.float32)


def bits_of(codes) -> np.ndarray:
    return np.asarray(codes).view(np.uint8)


def hard_cases(values: np.ndarray) -> np.ndarray:
    """Every value, every midpoint between neighbours, what lies one float32 beside each, and what is too large."""
    exact = np.concatenate([values, (values[1:] + values[:-1]) / 2, 1.5 * values[-1:], 1e30 * np.sign(values[[0, -1]])])
    exact = exact.astype(np.float32)
    sides = [np.nextafter(exact, np.float32(side)) for side in (-np.inf, np.inf)]
    return np.concatenate([exact, *sides, np.float32([-0.0, 1e-12, -1e-12])])


@pytest.mark.parametrize("name", REFERENCE)
def test_every_code_means_what_ml_dtypes_says(name):
    item = get_format(name)
    codes = item.code_points()
    assert codes.dtype == item.dtype
    assert len(codes) == 2**item.bits
    decoded = np.asarray(item.decode(jnp.asarray(codes)))
    np.testing.assert_array_equal(decoded, reference_values(name))
    assert decoded.dtype == np.float32
    signs = ~np.isnan(decoded)
    np.testing.assert_array_equal(np.signbit(decoded)[signs], np.signbit(reference_values(name))[signs])


@pytest.mark.parametrize("name", [*FORMATS, "ue8m0"])
def test_every_finite_code_survives_decode_and_encode(name):
    item = get_format(name)
    codes = item.code_points()
    decoded = np.asarray(item.decode(jnp.asarray(codes)))
    kept = np.isfinite(decoded)
    again = item.encode(jnp.asarray(decoded))
    assert again.dtype == item.dtype
    np.testing.assert_array_equal(bits_of(again)[kept], bits_of(codes)[kept])


@pytest.mark.parametrize("name", FLOATS)
def test_rounding_is_that_of_ml_dtypes_at_every_midpoint(name):
    item = get_format(name)
    x = hard_cases(item.values())
    expected = np.clip(x, -item.max, item.max).astype(REFERENCE[name])
    np.testing.assert_array_equal(bits_of(item.encode(jnp.asarray(x))), bits_of(expected))
    np.testing.assert_array_equal(bits_of(jax.jit(item.encode)(jnp.asarray(x))), bits_of(expected))


@pytest.mark.parametrize(("name", "low", "high"), [("int8", -128, 127), ("int4", -8, 7)])
def test_integers_round_to_even_and_saturate(name, low, high):
    item = get_format(name)
    x = hard_cases(item.values())
    np.testing.assert_array_equal(item.encode(jnp.asarray(x)), np.clip(np.rint(x), low, high).astype(np.int8))
    assert (item.values()[0], item.values()[-1], item.max) == (low, high, high)


def test_nf4_is_the_quantiles_of_a_normal_distribution():
    """QLoRA's construction: 8 quantiles below 0 and 9 from it up, the outer ones half a step from certainty."""
    quantile = np.vectorize(NormalDist().inv_cdf)
    outer = 1 - (1 / 32 + 1 / 30) / 2
    upper = quantile(np.linspace(0.5, outer, 9))
    lower = -quantile(np.linspace(outer, 0.5, 8))
    built = np.concatenate([lower / -lower[0], upper[1:] / upper[-1]])
    np.testing.assert_allclose(get_format("nf4").values(), built, atol=2e-6)


def test_nf4_takes_the_nearest_value():
    item = get_format("nf4")
    values = item.values()
    x = np.concatenate([hard_cases(values), np.linspace(-1.1, 1.1, 500, dtype=np.float32)])
    nearest = np.abs(x[:, None].astype(np.float64) - values).min(1)
    chosen = np.abs(np.asarray(item.decode(item.encode(jnp.asarray(x)))).astype(np.float64) - x)
    np.testing.assert_allclose(chosen, nearest, atol=3e-8 * np.maximum(1, np.abs(x).max()))


@pytest.mark.parametrize("name", [*FORMATS, "ue8m0"])
def test_the_table_states_max_smallest_and_epsilon(name):
    item = get_format(name)
    values = item.values()
    assert values.max() == item.max
    assert values[values > 0].min() == np.float32(item.smallest)
    if name == "nf4":
        assert item.epsilon == pytest.approx(np.diff(values).max())
    else:
        assert values[values > 1][0] - 1 == item.epsilon
    if name in FLOATS:
        finfo = ml_dtypes.finfo(REFERENCE[name])
        assert (item.max, item.smallest, item.epsilon, item.bits) == (
            float(finfo.max), float(finfo.smallest_subnormal), float(finfo.eps), finfo.bits,
        )  # fmt: skip


@pytest.mark.parametrize("name", FLOATS)
def test_normal_numbers_are_rounded_by_half_an_epsilon_at_most(name):
    """6.25% for e4m3, 12.5% for e5m2, 25% for e2m1, and the bound is nearly reached."""
    item = get_format(name)
    values = item.values()
    lowest_normal = item.smallest / item.epsilon
    x = np.float32(np.geomspace(lowest_normal, item.max, 20_011)).clip(lowest_normal, item.max)
    relative = np.abs(np.asarray(item.decode(item.encode(jnp.asarray(x)))) / x - 1).max()
    assert 0.3 * item.epsilon < relative <= item.epsilon / 2
    assert {"fp8_e4m3": 253, "fp8_e5m2": 247, "fp4_e2m1": 15}[name] == len(values)


def test_unknown_formats_are_refused_with_the_names():
    with pytest.raises(UserError, match=r"'fp6' is unknown; choose one of int8, .*nf4, ue8m0"):
        get_format("fp6")


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_two_codes_a_byte(width):
    codes = np.random.default_rng(width).integers(0, 16, (3, width), dtype=np.uint8)
    packed = pack_nibbles(jnp.asarray(codes))
    assert packed.shape == (3, (width + 1) // 2)
    assert packed.dtype == jnp.uint8
    np.testing.assert_array_equal(unpack_nibbles(packed, width), codes)
    np.testing.assert_array_equal(np.asarray(packed) & 15, codes[:, ::2])
    np.testing.assert_array_equal(np.asarray(packed)[:, : width // 2] >> 4, codes[:, 1::2])


def test_signed_codes_survive_packing():
    item = get_format("int4")
    codes = jnp.asarray(item.code_points())
    np.testing.assert_array_equal(item.decode(unpack_nibbles(pack_nibbles(codes), 16)), codes.astype(jnp.float32))


def test_exponent_bytes_of_all_powers_of_two():
    codes = np.arange(255, dtype=np.uint8)
    scales = np.ldexp(np.float32(1), codes.astype(np.int32) - 127).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(e8m0_decode(jnp.asarray(codes))), scales)
    np.testing.assert_array_equal(e8m0_encode(jnp.asarray(scales)), codes)
    assert np.isnan(e8m0_decode(jnp.array([255], jnp.uint8)))[0]
    assert UE8M0.values()[0] == 2.0**-127


@pytest.fixture(scope="module")
def magnitudes() -> np.ndarray:
    """Many mantissas at many exponents, and the floats around every value where a rule could change its mind."""
    mantissas = np.linspace(1, 2, 257, dtype=np.float32)
    edges = np.float32([1.5, 1.75, 127 / 64, 2])
    mantissas = np.concatenate(
        [mantissas, edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(9))]
    )
    return np.ldexp(mantissas[:, None], np.arange(-100, 101, 10)).astype(np.float32).ravel()


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "int8"])
def test_deepseeks_rule_never_saturates_and_wastes_less_than_a_bit(name, magnitudes):
    largest = get_format(name).max
    scale = np.asarray(ue8m0_scale(jnp.asarray(magnitudes), largest)).astype(np.float64)
    assert np.all(np.frexp(scale)[0] == 0.5)
    scaled = magnitudes.astype(np.float64) / scale
    assert scaled.max() <= largest < 2 * scaled.min()
    # The published bit trick, on the quotient:
    quotient = (magnitudes / np.float32(largest)).astype(np.float32)
    trick = ((quotient.view(np.uint32) + np.uint32(0x007FFFFF)) & np.uint32(0x7F800000)).view(np.float32)
    np.testing.assert_array_equal(scale, trick)


@pytest.mark.parametrize(
    ("name", "emax", "binade"), [("fp8_e4m3", 8, 512), ("fp8_e5m2", 15, 65536), ("fp4_e2m1", 2, 8)]
)
def test_the_ocp_rule_saturates_above_max_in_the_last_binade(name, emax, binade, magnitudes):
    largest = get_format(name).max
    scale = np.asarray(ue8m0_scale(jnp.asarray(magnitudes), largest, rule="ocp")).astype(np.float64)
    np.testing.assert_array_equal(scale, 2.0 ** (np.floor(np.log2(magnitudes.astype(np.float64))) - emax))
    scaled = magnitudes / scale
    assert largest < scaled.max() < binade
    assert scaled.min() == binade / 2
    deepseek = np.asarray(ue8m0_scale(jnp.asarray(magnitudes), largest))
    np.testing.assert_array_equal(deepseek / scale, np.where(scaled > largest, 2, 1))


def test_scales_stay_within_normal_powers_of_two():
    ends = jnp.array([0.0, 2.0**-126, 3.4e38], jnp.float32)
    for rule in ("deepseek", "ocp"):
        np.testing.assert_array_equal(ue8m0_scale(ends[:2], 448.0, rule), np.float32([2.0**-126] * 2))
        assert np.isfinite(ue8m0_scale(ends[2:], 1.0, rule))[0]
    with pytest.raises(UserError, match="scale rule 'up' is unknown"):
        ue8m0_scale(ends, 448.0, "up")


def test_fp4_under_powers_of_two_fits_e4m3_over_fifteen_exponents():
    """DeepSeek-V4 turns fp4 weights into fp8 without loss while scales differ by 2**14 or less; one more does not fit."""
    four, eight = get_format("fp4_e2m1").values(), get_format("fp8_e4m3")
    x = four[None, :] * np.exp2(np.arange(-9, 8, dtype=np.float32))[:, None]
    exact = (np.asarray(eight.decode(eight.encode(jnp.asarray(x)))) == x).all(1)
    np.testing.assert_array_equal(exact, [False, *[True] * 15, False])


@pytest.mark.parametrize("log", [False, True])
def test_number_lines_have_a_mark_on_every_value(log):
    names = [*FORMATS, *(["ue8m0"] if log else [])]
    figure = numbers.number_lines(names, log=log)
    assert style.png_bytes(figure).startswith(b"\x89PNG")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    for name, marks in zip(names, axes.collections, strict=True):
        item = get_format(name)
        shown = np.sort([path.vertices[0, 0] for path in marks.get_paths()])
        values = item.values().astype(np.float64)
        np.testing.assert_allclose(shown, values[values > 0] if log else values / item.max)
    with pytest.raises(UserError, match="names is empty"):
        numbers.number_lines([])
