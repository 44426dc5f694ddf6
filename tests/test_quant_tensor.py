"""QTensor: shapes and bits of every spec, the laws of rounding under a scale, life in JAX and NNX, and qwix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from minimoe.errors import UserError
from minimoe.plots import numbers, style
from minimoe.quant import (
    FP8_BLOCK,
    INT4_GROUP32,
    INT8_CHANNEL,
    MXFP4,
    MXFP4_OCP,
    MXFP8,
    NF4_GROUP64,
    NVFP4,
    SPECS,
    Block,
    Group,
    PerChannel,
    PerTensor,
    PerToken,
    QTensor,
    Spec,
    Tile,
    choose_scale,
    quantize,
    requantize,
    sqnr_db,
    take_expert,
)

INT8_ZERO = Spec("int8", PerChannel(), symmetric=False)
INT4_ZERO = Spec("int4", Group(32), symmetric=False)
ALL = {
    **SPECS,
    "int8_zero": INT8_ZERO,
    "int4_zero": INT4_ZERO,
    "int8_bf16_scale": Spec("int8", PerTensor(), scale_format="bfloat16"),
    "e5m2_blocks": Spec("fp8_e5m2", Block(2, 8)),
}
LAWS = (
    "int8_channel", "int8_zero", "int8_bf16_scale", "int4_group32", "fp8_block_ue8m0", "e5m2_blocks", "mxfp4", "nvfp4",
    "nf4_group64",
)  # fmt: skip
E, O, I = 3, 5, 77  # nothing divides anything


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """Stacked experts, with rows of very different size, an all-zero row and an all-zero expert."""
    random = np.random.default_rng(0)
    values = random.normal(size=(E, O, I)) * np.exp2(random.integers(-8, 8, (E, O, 1)))
    values[0, 1] = 0
    values[2] = 0
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def quantized(x) -> dict[str, QTensor]:
    return {name: quantize(jnp.asarray(x), ALL[name]) for name in LAWS}


@pytest.mark.parametrize(
    ("granularity", "shape", "block"),
    [
        (PerTensor(), (4, 6), (4, 6)),
        (PerTensor(), (3, 4, 6), (1, 4, 6)),
        (PerTensor(), (6,), (6,)),
        (PerChannel(), (3, 4, 6), (1, 1, 6)),
        (PerToken(), (4, 6), (1, 6)),
        (Tile(), (4, 300), (1, 128)),
        (Group(), (3, 4, 70), (1, 1, 32)),
        (Group(), (3, 16), (1, 16)),
        (Block(), (300, 200), (128, 128)),
        (Block(2, 4), (3, 5, 9), (1, 2, 4)),
        (Block(2, 4), (9,), (4,)),
    ],
)
def test_block_shapes(granularity, shape, block):
    assert granularity.block_shape(shape) == block


@pytest.mark.parametrize("name", ALL)
def test_shapes_bits_and_dtypes(name):
    spec = ALL[name]
    q = jax.eval_shape(lambda a: quantize(a, spec), jax.ShapeDtypeStruct((E, O, I), jnp.float32))
    blocks = tuple(-(-n // b) for n, b in zip((E, O, I), q.block_shape, strict=True))
    four_bit = spec.format in ("int4", "fp4_e2m1", "nf4")
    assert q.shape == (E, O, I)
    assert q.ndim == 3
    assert q.scale.shape == blocks
    assert q.codes.shape == (E, O, (I + 1) // 2 if four_bit else I)
    assert q.codes.dtype.itemsize == 1
    stored = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "ue8m0": jnp.uint8, "fp8_e4m3": jnp.float8_e4m3fn}
    assert q.scale.dtype == stored[spec.scale_format]
    scale_bits = q.scale.dtype.itemsize * 8 * np.prod(blocks)
    assert q.bits == E * O * I * (4 if four_bit else 8) + scale_bits + (
        (0 if spec.symmetric else 8 * np.prod(blocks)) + (32 * E if spec.tensor_scale else 0)
    )
    assert q.nbytes_logical == int(np.ceil(q.bits / 8))
    assert q.bits_per_value == q.bits / (E * O * I)
    assert (q.zero_point is None) == spec.symmetric
    assert (q.tensor_scale is None) == (not spec.tensor_scale)
    # The real storage: only the spare nibble of each odd row comes on top.
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(q))
    assert held * 8 == q.bits + (4 * E * O if four_bit else 0)


@pytest.mark.parametrize(
    ("spec", "bits"),
    [(MXFP4, 4.25), (MXFP8, 8.25), (INT4_GROUP32, 5.0), (NF4_GROUP64, 4.5), (FP8_BLOCK, 8 + 32 / 128**2),
     (NVFP4, 4.5 + 32 / 128**2)],
)  # fmt: skip
def test_bits_per_value_of_a_matrix_that_fits(spec, bits):
    q = jax.eval_shape(lambda a: quantize(a, spec), jax.ShapeDtypeStruct((128, 128), jnp.float32))
    assert q.bits_per_value == bits


@pytest.mark.parametrize("name", LAWS)
def test_requantizing_with_the_stored_scales_changes_nothing(name, quantized):
    q = quantized[name]
    again = requantize(q.dequantize(), q)
    assert jax.tree.structure(again) == jax.tree.structure(q)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(q), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))


@pytest.mark.parametrize("name", ["int8_zero", "int8_bf16_scale", "mxfp4", "nvfp4"])
def test_scales_from_choose_scale_give_the_same_codes(name, quantized, x):
    scale, zero_point = choose_scale(jnp.asarray(x), ALL[name])
    np.testing.assert_array_max_ulp(np.asarray(scale), np.asarray(quantized[name].block_scales()), maxulp=1)
    again = quantize(jnp.asarray(x), ALL[name], scale=scale, zero_point=zero_point)
    np.testing.assert_array_equal(again.codes, quantized[name].codes)


@pytest.mark.parametrize("name", LAWS)
def test_dequantize_is_the_equation_block_by_block(name, quantized):
    """A loop over blocks, in numpy, against the broadcasts."""
    q = quantized[name]
    values = np.asarray(q.format.decode(q.unpacked_codes()))
    scale = np.asarray(q.block_scales())
    expected = np.empty((E, O, I), np.float32)
    for index in np.ndindex(*scale.shape):
        at = tuple(slice(i * b, (i + 1) * b) for i, b in zip(index, q.block_shape, strict=True))
        zero_point = 0 if q.zero_point is None else float(q.zero_point[index])
        expected[at] = (values[at] - np.float32(zero_point)) * scale[index]
    np.testing.assert_array_equal(q.dequantize(), expected)
    assert q.dequantize(jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", LAWS)
def test_zeros_stay_zeros(name, quantized):
    q = quantized[name]
    assert not np.asarray(q.dequantize())[2].any()
    assert not np.asarray(q.dequantize())[0, 1].any()
    zero = {"nf4": 0x77}.get(q.spec.format, 0)  # NF4's zero is code 7
    codes = np.asarray(q.codes[2]).view(np.uint8)
    np.testing.assert_array_equal(codes[..., :-1], zero)
    expected = 1.0 if q.tensor_scale is None else float(q.tensor_scale[2, 0, 0])
    np.testing.assert_array_equal(q.block_scales()[2], expected)


@pytest.mark.parametrize("name", ["int8_channel", "int8_zero", "int4_group32"])
def test_integers_are_off_by_half_a_step_at_most(name, quantized, x):
    q, spec = quantized[name], ALL[name]
    step = np.repeat(np.asarray(q.block_scales()), q.block_shape[-1], axis=-1)[..., :I]
    error = np.abs(np.asarray(q.dequantize()) - x)
    assert np.all(error <= step * 0.5001)
    if spec.symmetric:
        largest = np.abs(np.asarray(spec_codes(q))).reshape(E, O, -1).max(-1)
        np.testing.assert_array_equal(largest[:2][x[:2].any(-1)], q.format.max)


def spec_codes(q: QTensor) -> np.ndarray:
    return q.format.decode(q.unpacked_codes())


def test_e4m3_is_off_by_a_sixteenth_at_most_on_normals(quantized, x):
    q = quantized["fp8_block_ue8m0"]
    normal = np.abs(x) >= 2.0**-6 * np.asarray(q.block_scales())  # one block an expert
    error = np.abs(np.asarray(q.dequantize()) - x)
    assert normal.sum() > normal.size / 4
    assert np.all(error[normal] <= 0.0625 * np.abs(x)[normal])


def test_permuting_rows_permutes_codes_and_scales(quantized, x):
    rows = np.array([3, 0, 4, 1, 2])
    q, moved = quantized["int8_channel"], quantize(jnp.asarray(x[:, rows]), INT8_CHANNEL)
    np.testing.assert_array_equal(moved.codes, np.asarray(q.codes)[:, rows])
    np.testing.assert_array_equal(moved.scale, np.asarray(q.scale)[:, rows])


def test_a_zero_point_helps_one_sided_data_and_finer_blocks_help_uneven_data():
    random = np.random.default_rng(1)
    one_sided = jnp.asarray(np.maximum(random.normal(size=(8, 64)), 0).astype(np.float32))
    ratio = {s: float(sqnr_db(one_sided, quantize(one_sided, s).dequantize())) for s in (INT8_CHANNEL, INT8_ZERO)}
    assert ratio[INT8_ZERO] > ratio[INT8_CHANNEL] + 4  # almost a bit, 6 dB
    size = np.exp2(np.arange(8))[:, None]
    uneven = random.normal(size=(8, 64)) * size
    ratios = []
    for granularity in (PerTensor(), PerChannel(), Group(16)):
        back = quantize(jnp.asarray(uneven, jnp.float32), Spec("int4", granularity)).dequantize()
        ratios.append(float(sqnr_db(jnp.asarray(uneven / size, jnp.float32), back / jnp.asarray(size, jnp.float32))))
    assert ratios == sorted(ratios)


def test_ocp_scales_saturate_where_deepseeks_do_not():
    x = jnp.array([[7.9, 1.0, 0.5, -7.9]])
    np.testing.assert_array_equal(quantize(x, MXFP4).dequantize(), [[8.0, 1.0, 0.0, -8.0]])
    np.testing.assert_array_equal(quantize(x, MXFP4_OCP).dequantize(), [[6.0, 1.0, 0.5, -6.0]])


def test_where_leaves_padding_out_of_the_scale():
    x = jnp.array([[1.0, -2.0, 1000.0], [0.5, jnp.inf, jnp.nan]])
    where = jnp.array([[True, True, False], [True, False, False]])
    q = quantize(x, INT8_CHANNEL, where=where)
    np.testing.assert_allclose(q.scale[:, 0], [2 / 127, 0.5 / 127], rtol=1e-6)
    assert q.codes[0, 2] == 127


def test_nan_and_infinity_are_refused_with_their_number(x):
    broken = x.copy()
    broken[0, 0, :3] = np.nan, np.inf, -np.inf
    for spec in (INT8_CHANNEL, MXFP4):
        with pytest.raises(UserError, match=f"3 NaN or infinite values out of {E * O * I}"):
            quantize(jnp.asarray(broken), spec)


def test_tiny_and_huge_values_have_finite_scales():
    for value in (1e-37, 2.5e38):
        for spec in (INT8_CHANNEL, MXFP4, NVFP4):
            q = quantize(jnp.full((E, O, I), value, jnp.float32), spec)
            assert np.isfinite(q.dequantize()).all()
            assert np.all(np.asarray(q.block_scales()) > 0)


def test_nvfp4_has_two_levels_of_scales(x, quantized):
    q = quantized["nvfp4"]
    assert q.tensor_scale.shape == (E, 1, 1)
    np.testing.assert_allclose(q.tensor_scale[:2, 0, 0], np.abs(x[:2]).max((1, 2)) / (6 * 448), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(q.scale.astype(jnp.float32)).max((1, 2)), [448, 448, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "int5"}, "format 'int5' is unknown"),
        ({"scale_format": "fp16"}, "scale_format 'fp16' is unknown"),
        ({"scale_rule": "up"}, "scale_rule 'up' is unknown"),
        ({"tensor_scale": True}, "tensor_scale=True with scale_format='float32'"),
        ({"scale_format": "fp8_e4m3"}, "tensor_scale=False with scale_format='fp8_e4m3'"),
        ({"symmetric": False, "scale_format": "ue8m0"}, "a zero point needs int8 or int4"),
        ({"symmetric": False, "format": "nf4"}, "symmetric=False with format='nf4'"),
    ],
)
def test_impossible_specs_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Spec(**{"format": "int8", "granularity": PerTensor(), **settings})


def test_impossible_arguments_are_refused(quantized):
    x = jnp.ones((2, 8))
    with pytest.raises(UserError, match=r"Block: rows=0 must be a whole number of at least 1"):
        Block(0, 4)
    with pytest.raises(UserError, match="scalar"):
        quantize(jnp.float32(1.0), INT8_CHANNEL)
    with pytest.raises(UserError, match=r"scale has shape \(2, 2\).* needs \(2, 1\)"):
        quantize(x, INT8_CHANNEL, scale=jnp.ones((2, 2)))
    with pytest.raises(UserError, match="zero_point missing"):
        quantize(x, INT8_ZERO, scale=jnp.ones((2, 1)))
    with pytest.raises(UserError, match=r"\(2, 8\) has no expert axis"):
        take_expert(quantize(x, INT8_CHANNEL), 0)
    with pytest.raises(UserError, match=r"expert 3 is not among the 3"):
        take_expert(quantized["mxfp4"], 3)


def test_sqnr_is_20_db_at_a_tenth_of_the_amplitude():
    x = jnp.array([3.0, -4.0])
    assert float(sqnr_db(x, x * 1.1)) == pytest.approx(20.0, abs=1e-3)
    assert float(sqnr_db(x, x)) == np.inf


@pytest.mark.parametrize("name", ["nvfp4", "int8_zero"])
def test_chosen_experts_are_those_of_the_stack(name, quantized):
    """Under jit, by a traced index, without decoding the rest."""
    q = quantized[name]
    whole = np.asarray(q.dequantize())
    one, several = jax.jit(lambda q, i, s: (take_expert(q, i), take_expert(q, s).dequantize()))(
        q, jnp.int32(1), jnp.array([1, 0, 1], jnp.int32)
    )
    assert one.shape == (O, I)
    assert one.spec == q.spec
    np.testing.assert_array_equal(one.dequantize(), whole[1])
    np.testing.assert_array_equal(several, whole[[1, 0, 1]])
    np.testing.assert_array_equal(take_expert(q, 0).codes, q.codes[0])


def test_a_qtensor_is_a_pytree(quantized, x):
    q = quantized["int8_zero"]
    assert len(jax.tree.leaves(q)) == 3
    assert len(jax.tree.leaves(quantized["nvfp4"])) == 3
    doubled = jax.tree.map(lambda leaf: leaf, q)
    assert doubled.spec is q.spec
    assert doubled.shape == q.shape
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), q)
    assert shapes.nbytes_logical == q.nbytes_logical
    jitted = jax.jit(lambda a: quantize(a, INT8_ZERO))(jnp.asarray(x))
    np.testing.assert_array_equal(jitted.codes, q.codes)
    np.testing.assert_array_equal(jax.jit(lambda q: q.dequantize())(q), q.dequantize())


def test_a_module_may_hold_one(quantized):
    class Holder(nnx.Module):
        def __init__(self, weight: QTensor):
            self.weight = weight

        def __call__(self):
            return self.weight.dequantize().sum()

    holder = Holder(quantized["mxfp4"])
    graphdef, state = nnx.split(holder)
    assert len(jax.tree.leaves(state)) == 2
    merged = nnx.merge(graphdef, state)
    assert isinstance(merged.weight, QTensor)
    assert merged.weight.spec == MXFP4
    assert merged.weight.shape == (E, O, I)
    assert float(nnx.jit(lambda m: m())(merged)) == pytest.approx(float(holder()), rel=1e-5)


def test_granularity_errors_show_errors_and_ratios(x):
    matrix = x[0].astype(np.float64).astype(np.float32)
    ways = {n: np.asarray(quantize(jnp.asarray(matrix), ALL[n]).dequantize()) for n in ("int8_channel", "mxfp4")}
    figure = numbers.granularity_errors(matrix, {**ways, "itself $": matrix})
    assert style.png_bytes(figure).startswith(b"\x89PNG")
    titles = [axes.get_title(loc="left") for axes in figure.axes[:4]]
    expected = [f"{n}: {float(sqnr_db(jnp.asarray(matrix), jnp.asarray(ways[n]))):.1f} dB" for n in ways]
    assert titles == ["the matrix", *expected, "itself $: exact"]
    np.testing.assert_allclose(figure.axes[2].images[0].get_array(), np.abs(matrix - ways["mxfp4"]))
    with pytest.raises(UserError, match="must have the shape"):
        numbers.granularity_errors(matrix, {})


# qwix: the same codes where the conventions agree, and each difference once


@pytest.fixture(scope="module")
def qwix():
    pytest.importorskip("qwix", reason="the cross-check needs qwix")
    from qwix._src.core import qarray

    return qarray


def qwix_codes(qarray, x, qtype, channel=(0,), tiles=None, method="absmax"):
    """qwix's array, its codes as bytes and what they decode to. qwix promotes dtypes and ranks on its own."""
    how = qarray.HowToQuantize(qtype=qtype, channelwise_axes=channel, tiled_axes=tiles or {}, calibration_method=method)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        q = qarray.quantize(jnp.asarray(x), how)
        return (
            q,
            np.asarray(q.qvalue).astype(np.int8)
            if "int" in q.qvalue.dtype.name
            else np.asarray(q.qvalue).view(np.uint8),
            np.asarray(qarray.dequantize(q)),
        )


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    """[8, 64]; no block is so small or so large that the differences below show."""
    return np.random.default_rng(5).normal(size=(8, 64)).astype(np.float32)


def rounded_once(x, scale, codes, values):
    """qwix's; where XLA's cast to 4 bits rounds twice (by way of 16 bits, as it may), those of a cast that does not."""
    once = (x / scale).astype(ml_dtypes.float4_e2m1fn)
    twice = np.asarray(jnp.asarray(x / scale).astype(jnp.float4_e2m1fn)) != once
    assert twice.mean() < 0.01
    return np.where(twice, once.view(np.uint8), codes), np.where(twice, once.astype(np.float32) * scale, values)


@pytest.mark.parametrize(
    ("spec", "qtype", "options"),
    [
        (INT8_ZERO, jnp.int8, {"method": "minmax"}),
        (Spec("int4", Group(32), symmetric=False), jnp.int4, {"tiles": {1: 32}, "method": "minmax"}),
        (Spec("fp8_e4m3", PerChannel()), jnp.float8_e4m3fn, {}),
        (Spec("fp8_e4m3", Block(4, 32)), jnp.float8_e4m3fn, {"channel": (), "tiles": {0: 4, 1: 32}}),
        (Spec("fp8_e5m2", PerTensor()), jnp.float8_e5m2, {"channel": ()}),
        (Spec("fp4_e2m1", Group(32)), jnp.float4_e2m1fn, {"tiles": {1: 32}}),
        (NF4_GROUP64, "nf4", {"tiles": {1: 64}}),
        (MXFP8, "mxfp8", {"tiles": {1: 32}}),
        (MXFP4, "mxfp4", {"tiles": {1: 32}}),
    ],
    ids=lambda value: value.format if isinstance(value, Spec) else None,
)
def test_codes_are_those_of_qwix(qwix, weight, spec, qtype, options):
    theirs, codes, values = qwix_codes(qwix, weight, qtype, **options)
    ours = quantize(jnp.asarray(weight), spec)
    got = np.asarray(ours.unpacked_codes())
    got = np.asarray(spec_codes(ours)).astype(np.int8) if "int" in spec.format else got.view(np.uint8)
    if qtype == "mxfp4":
        codes, values = rounded_once(weight, np.repeat(np.asarray(theirs.scale, np.float32), 32, axis=1), codes, values)
    np.testing.assert_array_equal(got, codes.view(got.dtype))
    np.testing.assert_allclose(ours.block_scales(), theirs.scale, rtol=2e-7)
    np.testing.assert_allclose(ours.dequantize(), values, rtol=1e-6)
    if not spec.symmetric:
        np.testing.assert_array_equal(ours.zero_point, np.asarray(theirs.zero_point).astype(np.int8))


@pytest.mark.parametrize(
    ("qtype", "spec", "top"), [(jnp.int8, INT8_CHANNEL, 127), (jnp.int4, Spec("int4", PerChannel()), 7)]
)
def test_qwix_has_half_a_step_more_for_symmetric_integers(qwix, weight, qtype, spec, top):
    """Its scale is amax / 127.5: the extreme value lies between two codes, and each fresh quantization moves it.

    It becomes 127 or, if below zero, perhaps 128, as the last bit of 127.5 falls. With its scale our codes are its codes.
    """
    x = weight
    theirs, codes, values = qwix_codes(qwix, x, qtype)
    ours = quantize(jnp.asarray(x), spec)
    np.testing.assert_allclose(np.asarray(ours.scale) / theirs.scale, (top + 0.5) / top, rtol=1e-6)
    shared = quantize(jnp.asarray(x), spec, scale=theirs.scale)
    np.testing.assert_array_equal(np.asarray(spec_codes(shared)).astype(np.int8), codes)
    _, _, twice = qwix_codes(qwix, values, qtype)
    below = values.min(1) == -np.abs(values).max(1)
    ratio = np.abs(twice).max(1) / np.abs(values).max(1)
    shrunk, grown = (np.isclose(ratio, steps / (top + 0.5), rtol=1e-5) for steps in (top, top + 1))
    assert np.all(shrunk | (grown & below))
    assert shrunk.any()
    assert grown.any()
    fresh = quantize(ours.dequantize(), spec)
    np.testing.assert_array_equal(fresh.codes, ours.codes)


def test_qwix_has_other_codes_for_blocks_of_zeros_and_loses_tiny_ones(qwix):
    theirs, codes, _ = qwix_codes(qwix, np.zeros((8, 64), np.float32), jnp.int8, method="minmax")
    ours = quantize(jnp.zeros((8, 64)), INT8_ZERO)
    assert (codes == -128).all()
    assert int(theirs.zero_point[0, 0]) == -128
    assert not np.asarray(ours.codes).any()
    assert int(ours.zero_point[0, 0]) == 0
    tiny = np.full((8, 64), 1e-18, np.float32)
    _, _, values = qwix_codes(qwix, tiny, jnp.int8)
    assert not values.any()
    np.testing.assert_allclose(quantize(jnp.asarray(tiny), INT8_CHANNEL).dequantize(), tiny, rtol=0.01)


def test_qwix_has_no_tensor_scale_for_nvfp4(qwix):
    x = np.ones((8, 64), np.float32)
    x[0, 16:32], x[1, :16] = 0.004, 6000.0
    _, _, values = qwix_codes(qwix, x, "nvfp4", tiles={1: 16})
    assert not values[0, 16:32].any()
    assert (values[1, :16] == 6 * 448).all()
    ours = np.asarray(quantize(jnp.asarray(x), NVFP4).dequantize())
    np.testing.assert_allclose(ours[1, :16], 6000, rtol=1e-5)
    assert not values[1, 16:].std()
    assert np.all(ours[0, 16:32] > 0)
    without_outlier = np.asarray(quantize(jnp.asarray(np.minimum(x, 1)), NVFP4).dequantize())
    np.testing.assert_allclose(without_outlier[0, 16:32], 0.004, rtol=0.07)


def test_qwix_refuses_short_blocks_keeps_other_scale_dtypes_and_quantizes_nan(qwix, weight):
    with pytest.raises(ValueError, match="cannot be tiled"):
        qwix_codes(qwix, weight[:, :40], "mxfp4", tiles={1: 32})
    assert quantize(jnp.asarray(weight[:, :40]), MXFP4).scale.shape == (8, 2)
    half = jnp.asarray(weight, jnp.bfloat16)
    theirs, _, _ = qwix_codes(qwix, half, "mxfp4", tiles={1: 32})
    assert theirs.scale.dtype == jnp.bfloat16
    assert theirs.qvalue.dtype == jnp.float4_e2m1fn
    ours = quantize(half, MXFP4)
    assert ours.scale.dtype == jnp.uint8
    assert ours.codes.dtype == jnp.uint8
    assert ours.codes.shape == (8, 32)
    _, _, values = qwix_codes(qwix, np.float32([[np.nan, 1.0]]), jnp.int8)
    assert values.shape == (1, 2)
