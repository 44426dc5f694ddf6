"""Weights in DeepSeek's FP8 and FP4 layouts: codes and scales against a loop in NumPy, and what reading refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from minimoe import ModelConfig, MoETransformer, UserError
from minimoe.cli import app
from minimoe.hub import from_transformers, load, load_pretrained, provenance_of, resolve, save, to_transformers
from minimoe.hub.layouts import LAYOUTS
from minimoe.hub.layouts.codes import (
    code_values,
    fp4_rows,
    fp8_blocks,
    gathered,
    pack_fp4,
    scale_values,
    spread,
    unpack_fp4,
)
from minimoe.hub.layouts.settings import Settings
from minimoe.hub.names import named_arrays
from minimoe.hub.quantized import describe
from minimoe.hub.tensorfile import TensorFile
from minimoe.model.paths import named_leaves
from minimoe.quant import dequantize_model, quantize_model

FIXTURES = Path(__file__).parent / "fixtures" / "transformers"
RNG = np.random.default_rng(7)


def e4m3_values() -> np.ndarray:
    """By code, from the bits: sign, four of exponent (bias 7), three of mantissa; the last of each sign is NaN."""
    bits = np.arange(256)
    exponent, mantissa = (bits >> 3) & 15, bits & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    magnitude[(bits & 127) == 127] = np.nan
    return np.where(bits >> 7, -magnitude, magnitude)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def nearest(value: float, codes: np.ndarray) -> set[int]:
    """The codes that are nearest to a value: two where it lies in the middle."""
    away = np.abs(codes - value)
    return set(np.flatnonzero(away == np.nanmin(away)).tolist())


def awkward(rows: int, columns: int) -> np.ndarray:
    """Normal numbers whose size changes from row to row and column to column, and a stretch of zeros."""
    sizes = np.exp(RNG.normal(size=(rows, 1)) * 2 + RNG.normal(size=columns))
    matrix = (RNG.normal(size=(rows, columns)) * sizes).astype(np.float32)
    matrix[: min(rows, 128), : min(columns, 128)] *= rows % 2  # an all-zero block, where there are several
    return matrix


@pytest.mark.parametrize("shape", [(128, 256), (3, 5), (256, 64), (64, 384)])
@pytest.mark.parametrize("powers", [False, True])
def test_fp8_blocks_are_those_of_a_loop(shape, powers):
    matrix = awkward(*shape)
    codes, scales = fp8_blocks(matrix, powers)
    assert scales.dtype == (ml_dtypes.float8_e8m0fnu if powers else np.float32)
    values, grid = e4m3_values(), scale_values(scales)
    for i in range(0, shape[0], 128):
        for j in range(0, shape[1], 128):
            part, block = matrix[i : i + 128, j : j + 128], codes[i : i + 128, j : j + 128].view(np.uint8)
            amax, scale = np.abs(part).max(), grid[i // 128, j // 128]
            if powers:
                assert scale == (2.0 ** np.ceil(np.log2(np.float64(amax) / 448)) if amax else 1)
            else:
                np.testing.assert_allclose(scale, amax / 448 if amax else 1, rtol=2e-7)
            for value, code in list(zip(part.flat, block.flat, strict=True))[:: 1 + part.size // 300]:
                assert int(code) in nearest(np.float32(value / scale), values)
    assert scales.shape == (-(-shape[0] // 128), -(-shape[1] // 128))


@pytest.mark.parametrize("shape", [(192, 256), (256, 192), (300, 130), (640, 129)])
@pytest.mark.parametrize("powers", [False, True])
def test_a_ragged_axis_reads_alike_by_blocks_of_128_and_by_even_shares(shape, powers):
    """Transformers divides an axis by the number of its scales; the published rule cuts it every 128."""
    matrix = awkward(*shape)
    found = fp8_blocks(matrix, powers)
    if shape == (640, 129):  # 129 columns have two scales, and no half
        assert found is None
        return
    codes, scales = found
    assert scales.shape == (-(-shape[0] // 128), -(-shape[1] // 128))
    wide = [spread(scale_values(scales), (128, 128), shape)]
    wide += [np.kron(scale_values(scales), np.ones((shape[0] // scales.shape[0], shape[1] // scales.shape[1])))]
    np.testing.assert_array_equal(*wide)
    error = np.abs(code_values(codes) * wide[0] - matrix)
    assert (error <= np.maximum(np.abs(matrix) / 16, wide[0] * 2.0**-10) * 1.0001).all()


def test_fp4_rows_are_those_of_a_loop():
    matrix = awkward(5, 96)
    packed, scales = fp4_rows(matrix)
    assert (packed.dtype, packed.shape, scales.shape) == (np.dtype(np.int8), (5, 48), (5, 3))
    signed = np.concatenate([E2M1, -E2M1])
    for row in range(5):
        for group in range(3):
            part, scale = matrix[row, 32 * group : 32 * group + 32], float(scales[row, group])
            assert scale == 2.0 ** np.ceil(np.log2(np.float64(np.abs(part).max()) / 6))
            for column, value in enumerate(part):
                byte = int(packed[row, 16 * group + column // 2]) & 255
                code = byte >> 4 if column % 2 else byte & 15  # the even column is the low half
                assert code in nearest(np.float32(value / scale), signed)
    np.testing.assert_array_equal(pack_fp4(unpack_fp4(packed)), packed)
    with pytest.raises(UserError, match="do not divide 40; choose fp8"):
        fp4_rows(np.ones((4, 40), np.float32))


def test_every_code_has_its_value_and_every_byte_its_scale():
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(code_values(codes), e4m3_values().astype(np.float32))
    np.testing.assert_array_equal(code_values(np.arange(16, dtype=np.uint8)), np.concatenate([E2M1, -E2M1]))
    bytes_ = np.arange(255, dtype=np.uint8)
    np.testing.assert_array_equal(scale_values(bytes_), (2.0 ** (bytes_.astype(float) - 127)).astype(np.float32))
    assert np.isnan(scale_values(np.array([255], np.uint8)))


def test_what_differs_within_a_block_is_not_gathered():
    scales = np.array([[1, 2], [3, 4]], np.float32)
    wide = spread(scales, (2, 3), (3, 4))
    np.testing.assert_array_equal(gathered(wide, (2, 3)), scales)
    wide[0, 1] = 9
    assert gathered(wide, (2, 3)) is None


def stored_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Of all files, codes as they are: the library's own reader for NumPy knows no 8-bit floats."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with TensorFile(path) as file:
            found |= {name: file.read(name) for name in file.header}
    return found


def coded_copy(folder: Path, block: tuple[int, int]) -> dict[str, np.ndarray]:
    """The committed Mixtral with each matrix of its layers in FP8, blocks cut off at the edges; returns the values."""
    shutil.copytree(FIXTURES / "mixtral", folder, ignore=shutil.ignore_patterns("expected*", "model*"))
    tensors: dict[str, np.ndarray] = {}
    for path in (FIXTURES / "mixtral").glob("model-*.safetensors"):
        tensors |= load_file(path)
    values, stored = dict(tensors), dict(tensors)
    for name, matrix in tensors.items():
        if "_proj" not in name and "experts" not in name:
            continue
        scales = np.exp(RNG.normal(size=(-(-matrix.shape[0] // block[0]), -(-matrix.shape[1] // block[1]))))
        stored[name + "_scale_inv"] = scales = scales.astype(np.float32)
        stored[name] = (matrix / spread(scales, block, matrix.shape)).astype(ml_dtypes.float8_e4m3fn)
        values[name] = np.zeros_like(matrix)
        for i, j in np.ndindex(matrix.shape):
            values[name][i, j] = np.float32(stored[name][i, j]) * scales[i // block[0], j // block[1]]
    save_file(stored, folder / "model.safetensors")
    described(folder, weight_block_size=list(block))
    return values


def described(folder: Path, **changes) -> None:
    path = folder / "config.json"
    coding = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    coding |= changes
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": coding}))


@pytest.mark.parametrize("block", [(128, 128), (4, 3)])
def test_published_files_are_read_whatever_the_sizes(block, tmp_path):
    """The committed sizes are odd, so blocks of 4 x 3 are cut off at every edge."""
    values = coded_copy(tmp_path / "coded", block)
    model = from_transformers(tmp_path / "coded")
    rows = LAYOUTS["mixtral"].rows(model.config)
    for ours, leaf in named_leaves(model).items():
        if rows[ours].names:
            wanted = rows[ours].from_files(values.__getitem__, leaf.shape[0])
            np.testing.assert_array_equal(np.asarray(leaf[...]), wanted, err_msg=ours)


NAME = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quant_method": "gptq"}, "quant_method='gptq' is not supported, only 'fp8' is; convert it"),
        ({"fmt": "e5m2"}, "fmt='e5m2' is not supported"),
        ({"activation_scheme": "static"}, "activation_scheme='static'"),
        ({"weight_block_size": None}, "weight_block_size=None is not supported, two whole numbers"),
        ({"weight_block_size": [128]}, r"weight_block_size=\[128\]"),
        ({"weight_block_size": [0, 128]}, r"weight_block_size=\[0, 128\]"),
        ({"weight_block_size": [128.0, 128]}, r"weight_block_size=\[128\.0, 128\]"),
        ({"weight_block_size": [2**40, 128]}, "weight_block_size"),
        ({"weight_block_size": [2, 128]}, r"_scale_inv is \(1, 1\) instead of"),
        ({"scale_fmt": "e5m3"}, "scale_fmt='e5m3'"),
        ({"expert_dtype": "int3"}, "expert_dtype='int3'"),
    ],
)
def test_a_quantization_config_that_cannot_be_expressed_is_one_line(changes, said, tmp_path):
    coded_copy(tmp_path / "coded", (128, 128))
    described(tmp_path / "coded", **changes)
    refused(tmp_path / "coded", said)


def refused(folder: Path, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        from_transformers(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(NAME + "_scale_inv"), f"{NAME} is FP8 without a scale"),
        (lambda t: t.update({NAME: t[NAME].astype(np.float32)}), f"{NAME}_scale_inv is a scale of no codes"),
        (lambda t: t.update({NAME + "_scale_inv": np.ones((1, 2), np.float32)}), r"is \(1, 2\) instead of \(1, 1\)"),
        (lambda t: t.update({NAME + "_scale_inv": np.ones((1, 1), np.int32)}), "is int32, not float32"),
        (lambda t: t.update({NAME + "_scale_inv": np.full((1, 1), np.inf, np.float32)}), "not finite"),
        (lambda t: t.update({NAME: t[NAME][:-1]}), "q_proj.weight is"),
        (lambda t: t.update({"model.norm.weight": np.ones(13, ml_dtypes.float8_e4m3fn)}), "FP8 without a scale"),
    ],
)
def test_codes_and_scales_that_do_not_fit_are_one_line(change, said, tmp_path):
    coded_copy(tmp_path / "coded", (128, 128))
    path = tmp_path / "coded" / "model.safetensors"
    tensors = stored_tensors(tmp_path / "coded")
    change(tensors)
    save_file(tensors, path)
    refused(tmp_path / "coded", said)


def test_codes_without_a_word_in_the_config_are_not_taken_for_weights(tmp_path):
    coded_copy(tmp_path / "coded", (128, 128))
    path = tmp_path / "coded" / "config.json"
    values = json.loads(path.read_text())
    del values["quantization_config"]
    path.write_text(json.dumps(values))
    refused(tmp_path / "coded", "unexpected .*_scale_inv")


def sliced(name: str, **moe) -> MoETransformer:
    """A random model of two layers: small, but with the parts of the family."""
    config = ModelConfig.preset(name)
    config = config.replace_moe(**moe) if moe else config
    return MoETransformer(config, rngs=nnx.Rngs(3))


def wide_fixture(**sizes) -> MoETransformer:
    """Of another family than the presets are, with sizes that 128 does not divide."""
    settings = json.loads((FIXTURES / "deepseek_v3" / "config.json").read_text()) | sizes
    config = LAYOUTS["deepseek_v3"].read_config(Settings(settings, "config.json"), "float32")
    return MoETransformer(config, rngs=nnx.Rngs(0))


def check_coded(model: MoETransformer, out: Path, dtype: str) -> dict[str, np.ndarray]:
    """Which tensors are codes, how large their error is, and that a second export of what was read is the same file."""
    out = save(model, out, format="huggingface", dtype=dtype)
    again, stored = from_transformers(out), stored_tensors(out)
    ours, theirs = named_leaves(model), named_leaves(again)
    coded = ("experts", "shared", "gate_up_proj", "down_proj", "q_", "k_", "v_", "kv_", "o_")
    for name, leaf in theirs.items():
        if not jnp.issubdtype(leaf[...].dtype, jnp.floating) or leaf[...].ndim < 2:
            continue
        error = float(jnp.abs(leaf[...] - ours[name][...]).max() / jnp.maximum(jnp.abs(ours[name][...]).max(), 1e-9))
        kept = "compressor" in name or not any(part in name for part in coded) or "residual" in name or "leave" in name
        assert error < (2**-8 if kept else 2**-2 if dtype == "fp4" and "experts" in name else 2**-4), name
        assert error > 1e-4 or kept, name
    return stored


def test_each_family_is_written_as_it_is_published(tmp_path):
    small = check_coded(sliced("nano", d_expert=192), tmp_path / "glm", "fp8")
    first = "model.layers.1.mlp.experts.3.up_proj.weight"
    kinds = {name: str(array.dtype) for name, array in small.items()}
    assert (kinds[first], kinds[first + "_scale_inv"]) == ("float8_e4m3fn", "float32")
    assert (small[first].shape, small[first + "_scale_inv"].shape) == ((192, 128), (2, 1))
    floats = {name for name, kind in kinds.items() if kind == "bfloat16"}
    assert {name.rpartition(".layers.")[2].partition(".")[2] or name for name in floats} == {
        "embed_tokens.weight", "norm.weight", "input_layernorm.weight", "post_attention_layernorm.weight",
        "mlp.gate.weight",
    }  # fmt: skip
    settings = json.loads((tmp_path / "glm" / "config.json").read_text())
    assert settings["dtype"] == "bfloat16"
    assert settings["quantization_config"] == {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]
    }  # fmt: skip


def test_what_transformers_would_refuse_stays_a_float_and_is_named(tmp_path):
    """129 rows have two scales, and no half."""
    model = wide_fixture(moe_intermediate_size=129)
    stored = check_coded(model, tmp_path / "out", "fp8")
    named = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    assert "model.layers.1.mlp.experts.0.gate_proj" in named
    assert {str(stored[f"{name}.weight"].dtype) for name in named} == {"bfloat16"}
    assert all("experts" in name for name in named)


def test_v4_is_written_with_powers_of_two_and_packed_experts(tmp_path):
    model = sliced("v4-nano")
    stored = check_coded(model, tmp_path / "fp4", "fp4")
    first = "model.layers.1.ffn.experts.3.w1"
    assert [str(stored[f"{first}.{part}"].dtype) for part in ("weight", "scale")] == ["int8", "float8_e8m0fnu"]
    assert [stored[f"{first}.{part}"].shape for part in ("weight", "scale")] == [(128, 64), (128, 4)]
    kinds = {name.split(".", 3)[-1]: str(array.dtype) for name, array in stored.items() if "layers.1." in name}
    assert (
        kinds["attn.wq_a.weight"] == kinds["attn.indexer.wq_b.weight"] == kinds["attn.wo_a.weight"] == "float8_e4m3fn"
    )
    assert kinds["attn.wq_a.scale"] == "float8_e8m0fnu"
    assert kinds["attn.compressor.wkv.weight"] == kinds["attn_norm.weight"] == kinds["ffn.gate.weight"] == "bfloat16"
    assert kinds["hc_attn_fn"] == kinds["attn.attn_sink"] == kinds["attn.compressor.ape"] == "float32"
    settings = json.loads((tmp_path / "fp4" / "config.json").read_text())
    assert (settings["expert_dtype"], settings["quantization_config"]["scale_fmt"]) == ("fp4", "ue8m0")
    # What was read is written again: values that lie on the grid are not moved.
    read = from_transformers(tmp_path / "fp4")
    again = named_leaves(from_transformers(to_transformers(read, tmp_path / "again", dtype="fp4")))
    for name, leaf in named_leaves(read).items():
        np.testing.assert_array_equal(again[name][...], leaf[...], err_msg=name)


def test_what_has_no_such_layout_is_refused_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert app.run(["export", "nano", "--dtype", "fp4", "--out", "new"]) == 2
    assert "this model is written as glm4_moe; choose fp8" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"w2\.weight: .* do not divide 40; choose fp8"):
        to_transformers(sliced("v4-nano", d_expert=40), tmp_path / "new", dtype="fp4")
    with pytest.raises(UserError, match="goes with format='huggingface'"):
        save(sliced("nano"), tmp_path / "new", dtype="fp8")
    broken = sliced("nano")
    broken.layers[0].ffn.experts.down_proj[...] = broken.layers[0].ffn.experts.down_proj[...].at[0, 0, 0].set(jnp.nan)
    with pytest.raises(UserError, match=r"experts\.0\.down_proj\.weight: x holds 1 NaN"):
        to_transformers(broken, tmp_path / "new", dtype="fp8")
    assert not any(tmp_path.iterdir())


def test_the_command_writes_fp8_and_reads_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = []
    for dtype in ("fp8", "bfloat16"):
        assert app.run(["export", "nano", "--dtype", dtype, "--out", dtype, "--json"]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["bytes"]["model.safetensors"])
    narrow, wide = sizes
    assert narrow < 0.6 * wide
    model, tokenizer, _, _ = resolve("fp8")
    assert tokenizer.vocab_size == 2048
    assert app.run(["import", "fp8", "--out", "ours"]) == 0
    for name, leaf in named_leaves(load("ours")[0]).items():
        np.testing.assert_array_equal(leaf[...], named_leaves(model)[name][...])


def leaves_of(model: MoETransformer) -> dict[str, np.ndarray]:
    """Every array as bytes: of quantized matrices codes and scales, of those rounded to bfloat16 that."""
    return {name: np.asarray(array) for name, array in named_arrays(model).items()}


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray], names) -> None:
    for name in names:
        assert one[name].dtype == other[name].dtype, name
        assert one[name].tobytes() == other[name].tobytes(), name


def test_v4_codes_travel_between_our_files_to_the_bit(tmp_path, capsys, monkeypatch):
    """Saved by us, exported in the published layout, imported, and exported again."""
    monkeypatch.chdir(tmp_path)
    model = quantize_model(sliced("v4-nano"), "v4")
    save(model, "first")
    assert app.run(["export", "first", "--dtype", "fp4", "--out", "published"]) == 0
    assert app.run(["import", "published", "--keep-codes", "--out", "second"]) == 0
    assert app.run(["export", "second", "--dtype", "fp4", "--out", "again"]) == 0
    first, second = (leaves_of(load(folder)[0]) for folder in ("first", "second"))
    experts = [name for name in first if ".experts." in name and not name.startswith("mtp.")]
    codes = [name for name in experts if name.endswith("codes")]
    assert len(codes) == 2 * model.config.num_layers
    assert {first[name].dtype for name in codes} == {np.dtype(np.uint8)}
    attention = [
        f"layers.1.attention.{part}_proj.weight.{kind}" for part in ("q_a", "kv", "o_b") for kind in ("codes", "scale")
    ]
    same_bits(first, second, experts + attention + ["embed.embedding", "norm.scale", "layers.1.ffn.router.kernel"])
    # Compressors are codes of ours and bfloat16 there: what they stand for has not moved. Output matrices of groups are
    # bfloat16 with us and codes there: they alone are rounded.
    values = [named_leaves(dequantize_model(load(folder)[0])) for folder in ("first", "second")]
    moved = {name for name, leaf in values[1].items() if not np.array_equal(leaf[...], values[0][name][...])}
    assert moved == {f"layers.{i}.attention.o_a_proj.kernel" for i in range(model.config.num_layers)}
    published, again = stored_tensors(Path("published")), stored_tensors(Path("again"))
    assert set(published) == set(again)
    same_bits(published, again, published)


def test_v3_codes_are_kept_also_where_their_blocks_are_not_ours(tmp_path):
    model = quantize_model(sliced("nano"), "fp8")
    out = to_transformers(model, tmp_path / "out", dtype="fp8")
    kept = from_transformers(out, keep_codes=True)
    ours, theirs = leaves_of(model), leaves_of(kept)
    codes = [
        name for name in ours if name.endswith(("codes", "weight.scale")) or (".experts." in name and "scale" in name)
    ]
    assert len(codes) > 40
    same_bits(ours, theirs, codes)
    tokens = jnp.asarray(RNG.integers(0, 2048, (1, 12)))
    assert describe(kept).modules == describe(model).modules
    with pytest.raises(UserError, match="holds plain floats, no codes to keep"):
        from_transformers(to_transformers(model, tmp_path / "plain"), keep_codes=True)
    # 192 rows beside 192 do not meet at the edge of a block: each row has scales of its own.
    ragged = to_transformers(sliced("nano", d_expert=192), tmp_path / "ragged", dtype="fp8")
    kept = check_kept(ragged)
    assert kept.layers[0].ffn.experts.gate_up.block_shape == (1, 1, 128)
    assert kept.layers[0].ffn.experts.down.block_shape == (1, 128, 128)
    assert np.isfinite(np.asarray(kept(tokens)[0])).all()
    save(kept, tmp_path / "saved")
    again = stored_tensors(to_transformers(load(tmp_path / "saved")[0], tmp_path / "again", dtype="fp8"))
    published = stored_tensors(ragged)
    assert set(published) == set(again)
    same_bits(published, again, published)


@pytest.mark.parametrize("block", [(128, 128), (4, 3)])
def test_codes_are_kept_whatever_the_sizes(block, tmp_path):
    """Each block of the file has another scale, and odd matrices stand side by side."""
    coded_copy(tmp_path / "coded", block)
    kept = check_kept(tmp_path / "coded")
    width = min(block[1], kept.config.d_model)
    assert kept.layers[0].ffn.experts.gate_up.block_shape[1:] == (1, width)


def check_kept(folder: Path) -> MoETransformer:
    """All matrices of the layers are codes, and stand for the numbers that a reading as floats gives, to the bit."""
    kept, floats = from_transformers(folder, keep_codes=True), from_transformers(folder)
    for block in kept.layers:
        assert type(block.ffn.experts).__name__ == "QuantExperts"
        assert type(block.attention.o_proj).__name__ == "QuantLinear"
    wanted = named_leaves(floats)
    for name, leaf in named_leaves(dequantize_model(kept)).items():
        np.testing.assert_array_equal(np.asarray(leaf[...]), np.asarray(wanted[name][...]), err_msg=name)
    return kept


def test_an_export_says_what_it_is_and_checks_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert app.run(["export", "nano", "--dtype", "fp8", "--out", "hf"]) == 0
    text = Path("hf/README.md").read_text()
    head = text.split("---")[1]
    for line in ("license: mit", "library_name: transformers", "- glm4_moe", "- fp8", '- "minimoe-corpus"', "- es"):
        assert f"\n{line}\n" in head, line
    assert "licence: MIT" in text
    for path in Path("hf").iterdir():  # measured, the card aside
        if path.name not in ("README.md", "config.json"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert f"| {path.name} | {path.stat().st_size:,} | `{digest[:16]}` |" in text
    codes = [array for array in stored_tensors(Path("hf")).values() if array.dtype == ml_dtypes.float8_e4m3fn]
    assert f"| float8_e4m3fn | {len(codes)} | {sum(array.size for array in codes):,} |" in text
    # What is imported keeps where it is from.
    assert app.run(["import", "hf", "--out", "ours"]) == 0
    past = provenance_of("ours")
    assert past["transformers"] == "hf"
    assert past["format"]["codes"]["weight_block_size"] == [128, 128]
    digest = hashlib.sha256(Path("hf/model.safetensors").read_bytes()).hexdigest()
    assert past["files"]["model.safetensors"] == {
        "bytes": Path("hf/model.safetensors").stat().st_size,
        "sha256": digest,
    }
    assert past["source"]["source"]["data"]["name"] == "minimoe-corpus"
    assert past["source"]["shipped"] == "nano"
    # What was altered since is not read.
    for name, said in (("model.safetensors", "was altered"), ("tokenizer.json", "is not what was written")):
        shutil.copytree("hf", name + "-altered")
        path = Path(name + "-altered") / name
        raw = bytearray(path.read_bytes())
        raw[-3] ^= 1
        path.write_bytes(raw)
        with pytest.raises(UserError, match=said):
            load(path.parent)
    # A model that Transformers trained on and saved carries our entries, and is somebody else's.
    config = Path("model.safetensors-altered/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"transformers_version": "5.23.0"}))
    load(config.parent)


def test_a_model_of_unknown_origin_has_no_licence_made_up(tmp_path):
    out = to_transformers(from_transformers(FIXTURES / "mixtral"), tmp_path / "out")
    head = (out / "README.md").read_text().split("---")[1]
    assert "license: unknown" in head
    assert "datasets" not in head
    assert "language" not in head


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "dtype"), [("nano", "fp8"), ("small", "fp8"), ("v4-nano", "fp8"), ("v4-nano", "fp4")])
def test_transformers_turns_our_codes_into_the_same_weights(name, dtype, tmp_path):
    """On a CPU Transformers multiplies codes by scales while it loads, and rounds to bfloat16: each weight is ours, rounded.

    Then its weights are widened there and copied here, and both compute in float32.
    """
    import torch
    import transformers

    model = sliced(name) if name.startswith("v4") else load_pretrained(name)[0]
    out = to_transformers(model, tmp_path / "out", dtype=dtype)
    theirs, ours = transformers.AutoModelForCausalLM.from_pretrained(out).eval(), from_transformers(out)
    rows = LAYOUTS[theirs.config.model_type].rows(ours.config)
    state = theirs.state_dict()
    compared = 0
    for key, leaf in named_leaves(ours).items():
        for their, part in rows[key].to_memory(np.asarray(leaf[...])).items():
            rounded = torch.from_numpy(np.array(part)).to(state[their].dtype)
            assert torch.equal(rounded, state[their]), their
            compared += 1
    assert (
        compared
        == len(theirs.state_dict()) - sum("inv_freq" in their for their in state) - theirs.config.tie_word_embeddings
    )
    theirs = theirs.float()
    wide = {key: value.numpy() for key, value in theirs.state_dict().items()}
    for key, leaf in named_leaves(ours).items():
        if rows[key].names:
            leaf[...] = jnp.asarray(rows[key].from_memory(wide.__getitem__), leaf[...].dtype)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 40))
    with torch.no_grad():
        found = theirs(torch.from_numpy(tokens)).logits.numpy()
    wanted = np.asarray(ours(jnp.asarray(tokens))[0])
    error = np.abs(found - wanted).max() / wanted.std()
    print(f"{name} as {dtype}: error of the logits {error:.1e} of their spread")
    assert error < 1e-4
