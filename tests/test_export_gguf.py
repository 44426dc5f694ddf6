"""GGUF: every number in its place by the package's own table of names; and what llama.cpp answered to such a file.

``fixtures/gguf`` holds what llama.cpp answered, made by ``python tests/llama_cpp_answers.py --write``, which states the
version. So the answers are checked without llama.cpp; where ``llama_cpp`` is installed, it is asked again.
"""

from __future__ import annotations

import importlib.util
import json

import gguf
import llama_cpp_answers as answers
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from minimoe import ModelConfig, MoETransformer, UserError
from minimoe.data import Tokenizer, load_tokenizer
from minimoe.export import export_gguf, export_onnx, export_stablehlo
from minimoe.export.gguf_file import DTYPES, pre_tokenizer
from minimoe.hub import to_transformers


def read(folder):
    """Tensors by name as float32, and the values of the header."""
    reader = gguf.GGUFReader(folder / "model.gguf")
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


def their_tensors(model, folder, architecture):
    """What the converter of llama.cpp would write, from our folder for Transformers and the package's table of names."""
    config, found = model.config, {}
    attention = config.layers[0].attention
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture), config.num_layers)
    for name, tensor in load_file(to_transformers(model, folder) / "model.safetensors").items():
        if "experts." in name and "shared" not in name:
            before, number, after = name.partition("experts.")[0], *name.partition("experts.")[2].split(".", 1)
            found.setdefault(f"{before}experts.{after}", {})[int(number)] = tensor
            continue
        if architecture == "LLAMA" and ("q_proj" in name or "k_proj" in name):
            heads = attention.num_heads if "q_proj" in name else attention.num_kv_heads
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[-1]).swapaxes(1, 2).reshape(tensor.shape)
        found[name] = tensor
    renamed = {}
    for name, tensor in found.items():
        array = np.stack([tensor[e] for e in sorted(tensor)]) if isinstance(tensor, dict) else tensor
        name = name.replace("block_sparse_moe.gate", "mlp.gate") if architecture == "LLAMA" else name
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None and name.endswith("e_score_correction_bias"):
            theirs = names.get_name(name.replace("_bias", ""), try_suffixes=()) + ".bias"
        assert theirs is not None, name
        renamed[theirs] = array
    return renamed


@pytest.mark.parametrize("name", answers.MODELS)
def test_every_array_stands_where_llama_cpp_looks_for_it(name, tmp_path):
    model = answers.MODELS[name]()
    architecture = {"glm4moe": "GLM4_MOE", "llama": "LLAMA"}[answers.ARCHITECTURES[name]]
    found, header = read(export_gguf(model, tmp_path / "gguf"))
    wanted = their_tensors(model, tmp_path / "hf", architecture)
    assert header["general.architecture"] == answers.ARCHITECTURES[name]
    assert found.keys() == wanted.keys()
    for theirs, tensor in wanted.items():
        np.testing.assert_array_equal(found[theirs].reshape(tensor.shape), tensor, err_msg=theirs)


@pytest.mark.parametrize("name", answers.MODELS)
def test_our_logits_are_those_of_llama_cpp(name):
    recorded = answers.recorded(name)
    model = answers.MODELS[name]()
    ours = answers.our_logits(model, recorded["tokens"])
    assert np.abs(ours - recorded["logits"]).max() < 1e-4 * recorded["logits"].std()
    assert recorded["greedy"].tolist() == answers.our_text(
        answers.MODELS[name](), recorded["tokens"], len(recorded["greedy"])
    )


def test_the_recorded_answers_are_to_the_files_of_today(tmp_path):
    for name, make in answers.MODELS.items():
        assert answers.digest(export_gguf(make(), tmp_path / name)) == str(answers.recorded(name)["digest"]), name


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("name", answers.MODELS)
def test_llama_cpp_answers_as_it_did(name, tmp_path):
    found, recorded = answers.ask(answers.MODELS[name](), tmp_path / name), answers.recorded(name)
    assert np.abs(found["logits"] - recorded["logits"]).max() < 1e-4 * recorded["logits"].std()
    assert found["greedy"].tolist() == recorded["greedy"].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_in_fewer_bits_matrices_are_near_and_the_rest_exact(dtype, tmp_path):
    model = MoETransformer(ModelConfig.preset("nano").replace(num_layers=1), rngs=nnx.Rngs(0))
    (exact, _), (found, header) = (read(export_gguf(model, tmp_path / d, dtype=d)) for d in ("float32", dtype))
    assert header["general.file_type"] == {"float32": 0, "bfloat16": 32, "int8": 7}[dtype]
    for name, tensor in exact.items():
        error = np.abs(found[name] - tensor).max()
        small = dtype == "float32" or name.endswith(("norm.weight", "bias", "ffn_gate_inp.weight"))
        assert error == 0 if small else 0 < error < 2**-7 * np.abs(tensor).max(), name


def test_rows_that_32_does_not_divide_stay_floats(tmp_path):
    model = answers.MODELS["odd"]()
    assert model.config.d_model % 32
    (exact, _), (found, _) = (read(export_gguf(model, tmp_path / d, dtype=d)) for d in ("float32", "int8"))
    np.testing.assert_array_equal(found["blk.1.attn_q.weight"], exact["blk.1.attn_q.weight"])


def test_the_vocabulary_goes_along(tmp_path):
    tokenizer = load_tokenizer()
    config = ModelConfig.preset("nano").replace(num_layers=1, vocab_size=2050)
    _, header = read(export_gguf(MoETransformer(config, rngs=nnx.Rngs(0)), tmp_path / "out", tokenizer))
    tokens, content = header["tokenizer.ggml.tokens"], json.loads(tokenizer.to_json())
    assert tokens[:2048] == sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    assert tokens[2048:] == ["[unused 2048]", "[unused 2049]"]
    assert header["tokenizer.ggml.merges"] == [" ".join(pair) for pair in content["model"]["merges"]]
    assert header["tokenizer.ggml.pre"] == "qwen2"
    assert header["tokenizer.ggml.eos_token_id"] == tokenizer.eot_id
    assert header["tokenizer.ggml.token_type"][tokenizer.eot_id] == gguf.TokenType.CONTROL


def test_a_tokenizer_whose_rule_llama_cpp_lacks_is_left_out_and_it_says_so(tmp_path):
    config = ModelConfig.preset("nano").replace(num_layers=1, vocab_size=257)
    folder = export_gguf(MoETransformer(config, rngs=nnx.Rngs(0)), tmp_path / "out", load_tokenizer("byte"))
    _, header = read(folder)
    assert header["tokenizer.ggml.model"] == "no_vocab"
    assert header["glm4moe.vocab_size"] == 257
    assert "give token ids" in (folder / "README.md").read_text()
    assert pre_tokenizer(None) is None


def test_a_rule_that_only_resembles_one_of_llama_cpp_is_not_taken_for_it():
    values = json.loads(load_tokenizer().to_json())
    cut = values["pre_tokenizer"]["pretokenizers"][0]
    assert pre_tokenizer(Content(values)) == "qwen2"
    contractions = {"Regex": cut["pattern"]["Regex"].replace("(?i:'s|", "(?i:'s|'x|")}
    for change in ({"pattern": contractions}, {"behavior": "Removed"}, {"invert": True}):
        steps = [cut | change, values["pre_tokenizer"]["pretokenizers"][1]]
        assert pre_tokenizer(Content(values | {"pre_tokenizer": {"pretokenizers": steps}})) is None, change
    assert pre_tokenizer(Content(values | {"model": values["model"] | {"ignore_merges": True}})) is None


class Content(Tokenizer):
    """A tokenizer as far as its file goes."""

    def __init__(self, values):
        self.values = values

    def to_json(self):
        return json.dumps(self.values)

    def encode_documents(self, texts):
        raise NotImplementedError


@pytest.mark.parametrize("export", [export_gguf, export_onnx, export_stablehlo])
def test_a_tokenizer_of_more_ids_than_the_model_is_refused(export, tmp_path):
    model = MoETransformer(ModelConfig.preset("nano").replace(num_layers=1, vocab_size=64), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="tokenizer 'byte' has 257 ids but the model knows 64"):
        export(model, tmp_path / "out", load_tokenizer("byte"))
    assert not any(tmp_path.iterdir())


def test_what_llama_cpp_lacks_is_refused_and_leaves_nothing(tmp_path):
    nano = ModelConfig.preset("nano")
    for config, said in (
        (nano.replace_moe(select="group_limited", num_groups=4, top_k_groups=2), "num_groups=4"),
        (nano.replace_moe(num_shared_experts=0), "needs a shared expert, and this model has num_shared_experts=0"),
        (ModelConfig.preset("v4-nano").replace(mtp=None), "this model is a deepseek_v4"),
        (nano.dense_equivalent(), "this model is dense"),
        (nano.replace_moe(score="sqrtsoftplus"), "no family of Transformers can express this model"),
    ):
        with pytest.raises(UserError, match=said):
            export_gguf(MoETransformer(config.replace(num_layers=2), rngs=nnx.Rngs(0)), tmp_path / "out")
    with pytest.raises(UserError, match="dtype 'fp4' is not written as GGUF; choose one of float32"):
        export_gguf(MoETransformer(nano.replace(num_layers=1), rngs=nnx.Rngs(0)), tmp_path / "out", dtype="fp4")
    assert not any(tmp_path.iterdir())


def test_another_folder_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    model = MoETransformer(ModelConfig.preset("nano").replace(num_layers=1), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="out"):
        export_gguf(model, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    first = export_gguf(model, tmp_path / "new")
    assert export_gguf(model, tmp_path / "new", dtype="int8") == first  # an earlier export is
