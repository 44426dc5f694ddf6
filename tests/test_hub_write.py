"""Our models in the layout of Transformers: what it writes, we write; what it cannot express is refused; nothing is lost."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx
from safetensors.numpy import load_file, save_file

from minimoe import ModelConfig, MoETransformer, UserError
from minimoe.cli import app
from minimoe.data import load_tokenizer
from minimoe.hub import from_transformers, load, load_pretrained, resolve, save, to_transformers
from minimoe.hub.layouts.write import choose_layout
from minimoe.inference import generate
from minimoe.model.paths import named_leaves
from minimoe.moe import sparse_layers
from minimoe.quant import dequantize_model

FIXTURES = Path(__file__).parent / "fixtures" / "transformers"


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in folder.glob("model*.safetensors"):
        found |= load_file(path)
    return found


def same_arrays(one: MoETransformer, other: MoETransformer) -> None:
    ours, theirs = named_leaves(one), named_leaves(other)
    left = {name for name in ours if not name.startswith("mtp.")}
    assert left == set(theirs)
    for name in left:
        np.testing.assert_array_equal(np.asarray(ours[name][...]), np.asarray(theirs[name][...]), err_msg=name)


@pytest.mark.parametrize("family", ["mixtral", "glm4_moe", "deepseek_v3"])
def test_what_transformers_wrote_is_written_again_to_the_bit(family, tmp_path):
    model = from_transformers(FIXTURES / family)
    out = to_transformers(model, tmp_path / "out", shard_bytes=12_000)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    theirs, ours = tensors_of(FIXTURES / family), tensors_of(out)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype or "bias" in name
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)
    again = from_transformers(out)
    assert again.config == model.config
    same_arrays(model, again)


def test_deepseek_v4_comes_back_to_the_bit(tmp_path):
    model = MoETransformer(ModelConfig.preset("v4-nano"), rngs=nnx.Rngs(0))
    out = to_transformers(model, tmp_path / "out", load_tokenizer())
    again, tokenizer, config = load(out)
    assert json.loads((out / "config.json").read_text())["model_type"] == "deepseek_v4"
    assert [layer.attention.kind for layer in config.layers] == [layer.attention.kind for layer in model.config.layers]
    assert tokenizer.vocab_size == 2048
    same_arrays(model, again)


def test_bfloat16_rounds_matrices_alone(tmp_path):
    model, _, _ = load_pretrained("nano")
    whole, half = (to_transformers(model, tmp_path / dtype, dtype=dtype) for dtype in ("float32", "bfloat16"))
    theirs, ours = tensors_of(whole), tensors_of(half)
    kinds = {name: str(array.dtype) for name, array in ours.items()}
    assert kinds["model.layers.1.mlp.experts.3.up_proj.weight"] == "bfloat16"
    assert kinds["model.layers.1.mlp.gate.weight"] == kinds["model.norm.weight"] == "float32"
    for name, array in ours.items():
        np.testing.assert_array_equal(
            array.astype(np.float32), np.asarray(jnp.asarray(theirs[name], array.dtype), np.float32)
        )


def test_a_shorter_export_takes_the_old_shards_away(tmp_path):
    model = from_transformers(FIXTURES / "mixtral")
    to_transformers(model, tmp_path, shard_bytes=9_000)
    assert list(tmp_path.glob("model-*"))
    (tmp_path / "notes.txt").write_text("mine")
    to_transformers(model, tmp_path)
    assert not list(tmp_path.glob("model-*"))
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_rotary_share_is_cut_to_the_right_number():
    """Transformers takes ``int(width * share)``, and ``int(44 * (30 / 44))`` is 29."""
    v4 = ModelConfig.preset("v4-nano")
    kinds = [dataclasses.replace(layer.attention, head_dim=44, rope_dim=30) for layer in v4.layers[::2]]
    layers = tuple(
        dataclasses.replace(layer, attention=kind) for layer, kind in zip(v4.layers[::2], kinds, strict=True)
    )
    _, values = choose_layout(v4.replace(attention=kinds[0], num_layers=2, first_layers=layers, pattern=(), mtp=None))
    assert [int(44 * rope["partial_rotary_factor"]) for rope in values["rope_parameters"].values()] == [30, 30]
    wide = ModelConfig.preset("nano").replace_attention(head_dim=44, rope_dim=30)
    assert int(44 * choose_layout(wide)[1]["rope_parameters"]["partial_rotary_factor"]) == 30


def test_a_model_that_was_trained_on_is_not_replaced(tmp_path):
    """Transformers writes what our config.json says into that of the new model as well."""
    out = to_transformers(from_transformers(FIXTURES / "mixtral"), tmp_path / "out", card="first")
    to_transformers(from_transformers(FIXTURES / "mixtral"), out)  # its own export may be
    weights = out / "model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(UserError, match="holds something that is not a model in the layout of Transformers"):
        to_transformers(from_transformers(FIXTURES / "mixtral"), out)
    assert weights.read_bytes() != raw


def test_what_no_family_has_is_refused_with_the_reason_of_each(tmp_path):
    nano = ModelConfig.preset("nano")
    for moe, said in (
        ({"score": "sqrtsoftplus"}, r"glm4_moe has no moe\.score"),
        ({"swiglu_limit": 5.0}, r"glm4_moe has no moe\.swiglu_limit"),
        ({"select": "expert_choice"}, r"glm4_moe has no moe\.select"),
        ({"dispatch": "capacity"}, r"glm4_moe has no moe\.dispatch"),
    ):
        with pytest.raises(UserError, match=said):
            choose_layout(nano.replace(moe=dataclasses.replace(nano.moe, **moe)))
    assert choose_layout(nano.replace_moe(dispatch="dense"))[0].model_type == "glm4_moe"
    with pytest.raises(UserError, match="deepseek_v4: swiglu_limit=None"):
        choose_layout(ModelConfig.preset("v4-nano").replace_moe(swiglu_limit=None))
    model = MoETransformer(nano.replace(vocab_size=32), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="has 2048 ids"):
        to_transformers(model, tmp_path / "out", load_tokenizer())
    with pytest.raises(
        UserError, match="dtype 'int8' is not written in this layout; choose one of float32, bfloat16, fp8"
    ):
        to_transformers(model, tmp_path / "out", dtype="int8")
    assert not any(tmp_path.iterdir())


def test_a_dense_model_is_a_glm4_moe_of_dense_layers_alone(tmp_path):
    config = ModelConfig.preset("nano").dense_equivalent().replace(num_layers=2, vocab_size=33)
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    values = json.loads((to_transformers(model, tmp_path / "out") / "config.json").read_text())
    assert (values["model_type"], values["first_k_dense_replace"]) == ("glm4_moe", 2)
    again = from_transformers(tmp_path / "out")
    assert [(layer.moe, layer.d_ff) for layer in again.config.layers] == [(None, config.d_ff)] * 2
    same_arrays(model, again)
    tokens = jnp.arange(24).reshape(2, 12)
    np.testing.assert_allclose(again(tokens)[0], model(tokens)[0], rtol=1e-5, atol=1e-5)


def test_matrices_of_no_shared_experts_are_nothing(tmp_path):
    """Transformers writes them, without elements, for ``n_shared_experts: 0``."""
    config = ModelConfig.preset("nano").replace(num_layers=1, vocab_size=33).replace_moe(num_shared_experts=0)
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    out = to_transformers(model, tmp_path / "out")
    values = json.loads((out / "config.json").read_text())
    del values["files"]  # their checksums
    (out / "config.json").write_text(json.dumps(values))
    shape = (0, config.d_model)
    empty = {f"model.layers.0.mlp.shared_experts.{n}_proj.weight": np.zeros(shape, np.float32) for n in ("gate", "up")}
    save_file(load_file(out / "model.safetensors") | empty, out / "model.safetensors")
    same_arrays(model, from_transformers(out))


def bytelevel(special: list[str]) -> tokenizers.Tokenizer:
    """A tokenizer as anybody would train it, on text that is not ours."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    how = {"vocab_size": 290, "initial_alphabet": alphabet, "show_progress": False}
    made.train_from_iterator(
        ["Über die Straße läuft der Hund."] * 9, tokenizers.trainers.BpeTrainer(special_tokens=special, **how)
    )
    return made


@pytest.mark.parametrize(
    ("file", "values", "end"),
    [
        ("tokenizer_config.json", {"eos_token": "</s>"}, 1),
        ("tokenizer_config.json", {"eos_token": {"content": "<｜end▁of▁sentence｜>"}}, 2),
        ("special_tokens_map.json", {"eos_token": "</s>"}, 1),
        ("generation_config.json", {"eos_token_id": [7, 2]}, 2),  # 7 is a letter
        ("config.json", {"eos_token_id": 1}, 1),
    ],
)
def test_a_tokenizer_may_call_its_end_of_text_otherwise(file, values, end, tmp_path):
    model = MoETransformer(ModelConfig.preset("nano").replace(num_layers=1, vocab_size=290), rngs=nnx.Rngs(0))
    out = to_transformers(model, tmp_path / "out")
    tokenizer = bytelevel(["<s>", "</s>", "<｜end▁of▁sentence｜>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(out / "tokenizer.json"))
    for name in ("tokenizer_config.json", "generation_config.json"):
        (out / name).unlink(missing_ok=True)
    old = json.loads((out / file).read_text()) if (out / file).exists() else {}
    (out / file).write_text(json.dumps(old | values))
    found = load(out)[1]
    assert found.eot_id == end
    text = "Über </s> die<｜end▁of▁sentence｜>Straße\r\n\x00<s>"
    assert found.decode(found.encode(text)) == text
    assert found.byte_lengths[found.encode(text)].sum() == len(text.encode())
    assert found.decode([0, 1, 2]) == ""
    again = load(to_transformers(model, tmp_path / "again", found))[1]  # which names it in the file itself
    assert (again.fingerprint, again.eot_id) == (found.fingerprint, end)


def test_a_tokenizer_that_names_no_end_of_text_is_refused(tmp_path):
    model = MoETransformer(ModelConfig.preset("nano").replace(num_layers=1, vocab_size=290), rngs=nnx.Rngs(0))
    out = to_transformers(model, tmp_path / "out")
    bytelevel([]).save(str(out / "tokenizer.json"))
    for content in ("{", '{"eos_token": 3}', '{"eos_token": "</s>"}', "[]"):
        (out / "tokenizer_config.json").write_text(content)
        with pytest.raises(UserError, match=r"has no <\|endoftext\|> token"):
            load(out)


def test_a_bias_that_mixtral_has_no_place_for_is_not_dropped(tmp_path):
    model = from_transformers(FIXTURES / "mixtral")
    sparse_layers(model)[0].router.bias[...] = sparse_layers(model)[0].router.bias[...] + 1
    with pytest.raises(UserError, match=r"mixtral has no tensor for layers\.0\.ffn\.router\.bias"):
        to_transformers(model, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_folder_of_theirs_is_a_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert app.run(["export", "nano", "--out", "hf", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"]["model.safetensors"] == (tmp_path / "hf" / "model.safetensors").stat().st_size
    assert "licence: MIT" in (tmp_path / "hf" / "README.md").read_text()
    model, tokenizer, _, said = resolve("hf")
    assert "layout of Transformers" in said
    assert tokenizer.fingerprint == load_tokenizer().fingerprint
    same_arrays(model, from_transformers("hf"))
    assert app.run(["import", "hf", "--out", "ours", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer"] == "bpe2048"
    same_arrays(model, load("ours")[0])
    assert app.run(["cost", "--model", "hf", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["params_total"] > 10**6


def test_a_tokenizer_of_another_kind_is_named_with_the_repair(tmp_path):
    out = to_transformers(from_transformers(FIXTURES / "glm4_moe"), tmp_path / "out")
    assert load(out)[1] is None
    tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(str(out / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer\.json: .*; without that file the folder loads"):
        load(out)
    (out / "tokenizer.json").write_text(load_tokenizer().to_json(), encoding="utf-8", newline="")
    with pytest.raises(UserError, match="has 2048 ids but the model knows"):
        load(out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "nano", "--out", "new", "--format", "pickle"], "choose one of huggingface, onnx, stablehlo, gguf"),
        (["export", "nano", "--out", "new", "--dtype", "int8"], "choose one of float32, bfloat16"),
        (["export", "nosuch", "--out", "new"], "nosuch does not exist"),
        (["export", "nano", "--out", "taken"], "taken"),
        (["import", "nosuch", "--out", "new"], "nosuch does not exist"),
        (["import", "taken", "--out", "new"], "holds no config.json"),
    ],
    ids=["format", "dtype", "checkpoint", "taken", "folder", "empty"],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("precious")
    assert app.run(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["taken", "thesis.txt"]


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["nano", "small", "student", "teacher", "v4-nano"])
def test_transformers_loads_what_we_write_and_says_the_same(name, tmp_path):
    import torch
    import transformers

    model, tokenizer, _ = load_pretrained(name)
    model = dequantize_model(model)  # what is written: no file can hold that a recipe rounds activations too
    out = save(model, tmp_path / "out", tokenizer, format="huggingface")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    read = transformers.AutoTokenizer.from_pretrained(out)
    for text in ("In the beginning, é 🙂\r\n  x", "def f(x):\n\treturn  x", "a<|endoftext|>b", ""):
        assert read(text)["input_ids"] == tokenizer.encode(text)
    ids = tokenizer.encode("In the beginning")
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 40))
    with torch.no_grad():
        found = theirs(torch.from_numpy(tokens)).logits.numpy()
    wanted = np.asarray(model(jnp.asarray(tokens))[0])
    error = np.abs(found - wanted).max() / wanted.std()
    print(f"{name}: error of the logits {error:.1e} of their spread")
    assert error < 1e-4
    text = theirs.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0].tolist()
    whole = generate(model, jnp.asarray([ids]), 20, temperature=0)[0].tolist()
    assert text == whole[: len(text)]
    assert len(text) == len(whole) or text[-1] == tokenizer.eot_id  # where Transformers stops
