"""Saved folders: what goes in comes out bit for bit, in as few bytes as the bits say, and damage is named."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, MoETransformer, UserError, hub
from minimoe.data import ByteTokenizer, load_tokenizer
from minimoe.hub import folder as folders
from minimoe.hub.names import abstract_model, named_arrays
from minimoe.hub.quantized import describe
from minimoe.hub.tensorfile import TensorFile
from minimoe.quant.models import quantize_model
from minimoe.quant.recipes import QuantRecipe, Rule
from minimoe.quant.report import STORED, size_report
from minimoe.quant.specs import Group, PerTensor, Spec

TINY = ModelConfig(
    vocab_size=257, d_model=8, num_layers=1,
    attention=GroupedQueryConfig(num_heads=4, num_kv_heads=2, head_dim=4),
    context_length=24,
    moe=MoEConfig(8, 6, num_experts=4, top_k=2, num_shared_experts=1, score="sigmoid", select="noisy_topk"),
)  # fmt: skip
# Large enough that names and numbers in the headers are not what the files consist of.
MIDDLE = ModelConfig(
    vocab_size=512, d_model=128, num_layers=2, attention=GroupedQueryConfig(num_heads=4, num_kv_heads=2, head_dim=32),
    moe=MoEConfig(128, 128, num_experts=8, top_k=2, num_shared_experts=1, score="sigmoid"),
)  # fmt: skip
ZERO_POINTS = QuantRecipe(
    "mine",
    (
        Rule("experts$", Spec("int4", Group(4), scale_format="bfloat16", symmetric=False)),
        Rule("_proj$", Spec("fp8_e5m2", PerTensor())),
    ),
)
HALF = TINY.replace_moe(select="hash", hash_vocab_size=257, dtype="bfloat16", param_dtype="bfloat16")
CONFIGS = {
    "sparse": TINY,
    "untied": TINY.replace(tie_embeddings=False),
    "dense": TINY.dense_equivalent(),
    "half": HALF.replace(dtype="bfloat16", param_dtype="bfloat16"),  # and a table of integers
}
CASES = [
    ("sparse", None),
    ("half", None),
    ("sparse", "int8-w8a8"),
    ("sparse", "v4"),
    ("sparse", "nvfp4"),
    ("sparse", ZERO_POINTS),
    ("untied", "int8"),
    ("dense", "fp8"),
]


def fresh(config: ModelConfig) -> MoETransformer:
    return MoETransformer(config, rngs=nnx.Rngs(3))


def make(config: ModelConfig, recipe: str | QuantRecipe | None) -> MoETransformer:
    return fresh(config) if recipe is None else quantize_model(fresh(config), recipe)


def same(model: MoETransformer, other: MoETransformer) -> None:
    """The same modules, settings, dtypes and bits: then also the same function."""
    (graph, state), (other_graph, other_state) = nnx.split(model), nnx.split(other)
    assert graph == other_graph
    pairs = zip(nnx.to_flat_state(state), nnx.to_flat_state(other_state), strict=True)
    for (path, a), (other_path, b) in pairs:
        assert path == other_path
        a, b = (leaf[...] if isinstance(leaf, nnx.Variable) else leaf for leaf in (a, b))
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=str(path))


@pytest.fixture(scope="module")
def models():
    return {(name, recipe): make(CONFIGS[name], recipe) for name, recipe in CASES}


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory):
    """A folder of the tiny v4 model; tests copy it before they change it."""
    return hub.save(models["sparse", "v4"], tmp_path_factory.mktemp("saved") / "model", ByteTokenizer())


@pytest.fixture(scope="module")
def middle(tmp_path_factory):
    model = make(MIDDLE, "v4")
    return model, hub.save(model, tmp_path_factory.mktemp("middle") / "v4")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{getattr(case[1], 'name', case[1])}")
def test_what_is_saved_is_loaded(case, models, tmp_path):
    model = models[case]
    hub.save(model, tmp_path / "a")
    again, tokenizer, config = hub.load(tmp_path / "a")
    assert (tokenizer, config) == (None, CONFIGS[case[0]])
    same(model, again)
    hub.save(again, tmp_path / "b")  # and so on for ever
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_arrays_lie_under_the_models_own_names(saved):
    header = open_file(saved).header
    assert header["layers.0.ffn.experts.gate_up.codes"] == header["layers.0.ffn.experts.gate_up.codes"] | {
        "dtype": "U8",
        "shape": [4, 12, 4],  # [E, 2F, D/2]: two codes a byte
    }
    assert header["layers.0.ffn.experts.gate_up.scale"]["shape"] == [4, 12, 1]
    assert header["layers.0.attention.q_proj.weight.codes"]["dtype"] == "F8_E4M3"
    floats = {"embed.embedding", "norm.scale", "layers.0.attention_norm.scale", "layers.0.ffn.router.kernel"}
    assert {header[name]["dtype"] for name in floats} == {"BF16"}


def test_the_config_says_how_each_matrix_is_stored(saved):
    values = json.loads((saved / "config.json").read_text())
    assert values["format"] == "minimoe-model-1"
    assert values["quantization"]["recipe"] == "v4"
    experts = values["quantization"]["modules"]["layers.0.ffn.experts"]
    assert experts["arrays"]["down"] == {
        "shape": [4, 8, 6],
        "bits": 4 * 4 * 8 * 6 + 8 * 4 * 8,
        "spec": {
            "format": "fp4_e2m1",
            "granularity": {"kind": "group", "size": 32},
            "scale_format": "ue8m0",
            "scale_rule": "deepseek",
            "symmetric": True,
            "tensor_scale": False,
        },
    }
    assert experts["activations"]["granularity"] == {"kind": "tile", "size": 128}


def test_the_recipe_is_read_off_the_model(models):
    for (_, recipe), model in models.items():
        found = describe(model)
        assert (found and found.recipe) == ("custom" if recipe is ZERO_POINTS else recipe)
    assert describe(make(TINY, "mxfp4-ocp")).recipe == "mxfp4-ocp"  # not mxfp4, which differs in its rounding alone


def test_files_are_as_small_as_the_bits_say(middle):
    model, folder = middle
    bits = size_report(model)
    size = (folder / "model.safetensors").stat().st_size
    assert bits.bytes <= size <= 1.03 * bits.bytes
    assert size < 0.42 * bits.bfloat16_bytes


def test_loading_makes_no_float_copy(middle, monkeypatch):
    """While arrays are read, those alive are the model's own; while its modules are put in place, there are none."""
    model, folder = middle
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    as_float32 = 2 * size_report(model).bfloat16_bytes
    peak, built = [], []
    read, init = TensorFile.read, MoETransformer.__init__
    before = sum(array.nbytes for array in jax.live_arrays())

    def watched_read(self, name):
        peak.append(sum(array.nbytes for array in jax.live_arrays()) - before)
        return read(self, name)

    def watched_init(self, *arguments, **named):
        init(self, *arguments, **named)
        built.extend(jax.tree.leaves(nnx.state(self)))

    monkeypatch.setattr(TensorFile, "read", watched_read)
    monkeypatch.setattr(MoETransformer, "__init__", watched_init)
    hub.load(folder)
    assert all(isinstance(leaf, jax.core.Tracer) for leaf in built)
    assert built
    assert max(peak) <= 1.01 * own < 0.5 * as_float32


def test_trained_on_weights_are_saved_whole(tmp_path):
    """The note that weights fit bfloat16 is not believed but checked."""
    model = make(TINY, "v4")
    assert model.norm.scale.get_metadata()[STORED] == "bfloat16"
    model.norm.scale[...] = model.norm.scale[...] + 1e-4
    same_values = hub.load(hub.save(model, tmp_path / "a"))[0].norm.scale[...]
    np.testing.assert_array_equal(same_values, model.norm.scale[...])


def test_saving_again_replaces_its_own_files_only(models, tmp_path):
    tokenizer, config = load_tokenizer("bpe2048"), TINY.replace(vocab_size=2048)
    hub.save(fresh(config), tmp_path / "m", tokenizer, provenance={"seed": 3})
    (tmp_path / "m" / "notes.txt").write_text("mine")
    found = hub.load(tmp_path / "m")
    assert found[1].fingerprint == tokenizer.fingerprint
    assert hub.provenance_of(tmp_path / "m") == {"seed": 3}
    hub.save(models["sparse", "int8-w8a8"], tmp_path / "m", ByteTokenizer())
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"config.json", "model.safetensors", "notes.txt"}
    model, tokenizer, config = hub.load(tmp_path / "m")
    assert tokenizer.name == "byte"
    same(models["sparse", "int8-w8a8"], model)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_changes_nothing(error, saved, models, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}

    def fail(path, tensors):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(folders, "write_tensors", fail)
    for name in ("old", "new/below"):
        with pytest.raises((UserError, KeyboardInterrupt)):
            hub.save(models["sparse", None], tmp_path / name)
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_what_a_killed_save_left_behind_is_cleared(models, tmp_path):
    (tmp_path / "m" / ".saving-abc").mkdir(parents=True)
    (tmp_path / "m" / ".saving-abc" / "model.safetensors").write_bytes(b"half")
    hub.save(models["sparse", None], tmp_path / "m")
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"config.json", "model.safetensors"}


def test_foreign_places_are_refused(models, tmp_path):
    (tmp_path / "file").write_text("")
    for name, config in (("thesis", "years of work"), ("training", '{"format": "minimoe-training-1"}'), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    before = sorted(tmp_path.rglob("*"))
    for name in ("file", "file/below", "thesis", "training", "list"):
        with pytest.raises(UserError, match=name.partition("/")[0]):
            hub.save(models["sparse", None], tmp_path / name)
    with pytest.raises(UserError, match="format 'gguf' is not known; choose one of minimoe"):
        hub.save(models["sparse", None], tmp_path / "new", format="gguf")
    with pytest.raises(UserError, match="2048 ids but the model knows 257"):
        hub.save(models["sparse", None], tmp_path / "new", load_tokenizer("bpe2048"))
    with pytest.raises(UserError, match="provenance"):
        hub.save(models["sparse", None], tmp_path / "new", provenance={"seed": object()})
    assert sorted(tmp_path.rglob("*")) == before


def open_file(folder: Path) -> TensorFile:
    values = json.loads((folder / "config.json").read_text())
    return TensorFile(folder / "model.safetensors", folders.FileRecord(**values["files"]["model.safetensors"]))


def edit_config(folder: Path, change) -> None:
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(folders.sealed(values)))  # as if it had been saved so


def edit_unsealed(folder: Path, **moe) -> None:
    """As a person would, or a broken disk."""
    values = json.loads((folder / "config.json").read_text())
    values["model"]["moe"].update(moe)
    (folder / "config.json").write_text(json.dumps(values))


def rewrite(folder: Path, content: bytes) -> None:
    """Other tensors, with a checksum that fits them."""
    (folder / "model.safetensors").write_bytes(content)
    record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_config(folder, lambda values: values["files"].update({"model.safetensors": record}))


def other_arrays(folder: Path, change) -> None:
    file = open_file(folder)
    arrays = {name: file.read(name) for name in file.header}
    change(arrays)
    save_file(arrays, folder / "other")
    content = (folder / "other").read_bytes()
    (folder / "other").unlink()
    rewrite(folder, content)


def tensors(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def flip_a_bit(folder: Path) -> None:
    content = bytearray(tensors(folder))
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def no_json(folder: Path) -> None:
    content = tensors(folder)
    rewrite(folder, content[:8] + b"#" + content[9:])


CODES = "layers.0.attention.q_proj.weight.codes"
DAMAGE = {
    "cut short": (lambda f: (f / "model.safetensors").write_bytes(tensors(f)[:-9]), "model.safetensors is cut short"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is cut short"),
    "longer": (lambda f: (f / "model.safetensors").write_bytes(tensors(f) + b"x"), "model.safetensors is too long"),
    "one bit": (flip_a_bit, "model.safetensors was altered"),
    "header length": (
        lambda f: rewrite(f, (10**18).to_bytes(8, "little") + tensors(f)[8:]),
        "model.safetensors is no readable safetensors file",
    ),
    "header JSON": (no_json, "model.safetensors is no readable safetensors file"),
    "cut short, checksum adapted": (
        lambda f: rewrite(f, tensors(f)[:-9]),
        "model.safetensors is no readable safetensors file",
    ),
    "three bytes": (lambda f: rewrite(f, b"abc"), "model.safetensors is no readable safetensors file"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "tensors are a folder": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
        "model.safetensors is missing",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config cut short": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text()[:-99]),
        "config.json is broken",
    ),
    "config not UTF-8": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), "config.json is broken"),
    "config nested": (lambda f: (f / "config.json").write_text("[" * 10**5), "config.json is broken"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json is broken"),
    "version": (
        lambda f: edit_config(f, lambda v: v.update(format="minimoe-model-9")),
        "this version reads 'minimoe-model-1'",
    ),
    "training format": (
        lambda f: edit_config(f, lambda v: v.update(format="minimoe-training-1")),
        "this version reads 'minimoe-model-1'",
    ),
    "no checksum": (lambda f: edit_config(f, lambda v: v.update(files={})), "config.json is broken"),
    "checksum a number": (
        lambda f: edit_config(f, lambda v: v["files"]["model.safetensors"].update(sha256=7)),
        "sha256",
    ),
    "impossible model": (
        lambda f: edit_config(f, lambda v: v["model"]["attention"].update(num_heads=3)),
        "num_heads=3",
    ),
    "gigantic model": (lambda f: edit_config(f, lambda v: v["model"].update(vocab_size=10**30)), "config.json"),
    "unknown key": (lambda f: edit_config(f, lambda v: v["model"].update(nose=1)), "unknown keys ['nose']"),
    "another model": (
        lambda f: edit_config(f, lambda v: v["model"].update(num_layers=2)),
        "does not fit the config.json beside it: 2 layers against 1",
    ),
    "more layers than anybody has time to build": (
        lambda f: edit_config(f, lambda v: v["model"].update(num_layers=3000)),
        "does not fit the config.json beside it: 3000 layers against 1",
    ),
    "more experts than the file has bytes": (
        lambda f: edit_config(f, lambda v: v["model"]["moe"].update(num_experts=10**9)),
        "parameters against room for",
    ),
    "a setting edited": (lambda f: edit_unsealed(f, top_k=3), "config.json was altered"),
    "other widths": (
        lambda f: edit_config(f, lambda v: v["model"]["attention"].update(num_heads=8)),
        "where the model config has {'weight': (",
    ),
    "quantization gone": (lambda f: edit_config(f, lambda v: v.update(quantization=None)), "unexpected layers.0."),
    "a number format": (
        lambda f: edit_config(
            f, lambda v: v["quantization"]["modules"]["layers.0.ffn.experts"]["activations"].update(format="fp3")
        ),
        "format 'fp3' is unknown",
    ),
    "a granularity": (
        lambda f: edit_config(
            f,
            lambda v: v["quantization"]["modules"]["layers.0.ffn.experts"]["activations"].update(
                granularity={"kind": "tile", "size": 0}
            ),
        ),
        "size=0 must be a whole number of at least 1",
    ),
    "a module": (
        lambda f: edit_config(f, lambda v: v["quantization"]["modules"]["layers.0.ffn.experts"].update(module="magic")),
        "module 'magic' is not known",
    ),
    "a place": (
        lambda f: edit_config(
            f, lambda v: v["quantization"]["modules"].update(nose=v["quantization"]["modules"]["layers.0.ffn.experts"])
        ),
        "at nose, where the model config has nothing of the kind",
    ),
    "codes of another dtype": (
        lambda f: other_arrays(f, lambda a: a.update({CODES: a[CODES].view(np.int8)})),
        f"wrong {CODES} is int8[16, 8] instead of float8_e4m3fn[16, 8]",
    ),
    "scales of another dtype": (
        lambda f: other_arrays(f, lambda a: a.update({CODES[:-5] + "scale": np.ones((1, 1), np.float32)})),
        "is float32[1, 1] instead of uint8[1, 1]",
    ),
    "a dtype unheard of": (
        lambda f: other_arrays(f, lambda a: a.update({"norm.scale": np.ones(8)})),
        "wrong norm.scale is F64[8] instead of float32[8]",
    ),
    "tokenizer unknown": (
        lambda f: edit_config(f, lambda v: v["tokenizer"].update(name="bpe2048")),
        "tokenizer.json",
    ),
    "tokenizer altered": (
        lambda f: edit_config(f, lambda v: v["tokenizer"].update(fingerprint="0")),
        "tokenizer.json was altered",
    ),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("")), "is no saved model"),
    "gone": (lambda f: shutil.rmtree(f), "does not exist"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_line(damage, saved, tmp_path):
    harm, message = DAMAGE[damage]
    shutil.copytree(saved, tmp_path / "model")
    harm(tmp_path / "model")
    with pytest.raises(UserError) as caught:
        hub.load(tmp_path / "model")
    said = str(caught.value)
    assert message in said
    assert str(tmp_path / "model") in said
    assert "\n" not in said
    assert len(said) < 700


def test_all_wrong_names_are_reported_together(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")

    def change(arrays):
        arrays["nose"] = arrays.pop(CODES)
        arrays["norm.scale"] = np.ones(9, ml_dtypes.bfloat16)

    other_arrays(tmp_path / "model", change)
    with pytest.raises(UserError) as caught:
        hub.load(tmp_path / "model")
    for part in (f"missing {CODES}", "unexpected nose", "wrong norm.scale is bfloat16[9] instead of float32[8]"):
        assert part in str(caught.value)


def test_an_abstract_model_has_no_arrays():
    _, state = abstract_model(TINY)
    assert {type(leaf) for leaf in jax.tree.leaves(state)} == {jax.ShapeDtypeStruct}


def test_names_are_paths(models):
    names = named_arrays(models["untied", "int8"])
    assert {"embed.weight.codes", "embed.weight.scale", "head.weight.codes", "layers.0.ffn.router.kernel"} <= set(names)


def test_resolve(saved, tmp_path, monkeypatch):
    model, tokenizer, config, description = hub.resolve(saved)
    assert (tokenizer.name, config) == ("byte", TINY)
    assert description == f"saved folder {saved} (v4)"
    with pytest.raises(UserError, match=r"come with the package are: .*small"):
        hub.resolve("nosuch")
    monkeypatch.setattr("minimoe.hub.checkpoints.shipped", lambda: {"pico": lambda: (model, tokenizer, config)})
    assert hub.resolve("pico")[0] is model
    with pytest.raises(UserError, match="come with the package are: pico"):
        hub.resolve("nosuch")
    hub.save(model, tmp_path / "mute")
    with pytest.raises(UserError, match="holds no tokenizer"):
        hub.resolve_with_tokenizer(tmp_path / "mute")
