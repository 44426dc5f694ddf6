"""The ONNX file against the model: equal logits for any batch, length and cache; what cannot be written is refused."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax import nnx

from minimoe import ModelConfig, MoEConfig, MoETransformer, UserError
from minimoe.export import OnnxModel, export_onnx, onnx_bytes
from minimoe.export.onnx_model import int8_columns
from minimoe.hub import load_pretrained
from minimoe.inference import generate
from minimoe.model.paths import filled_state
from minimoe.moe import sparse_layers
from minimoe.quant import quantize_model

KINDS = {
    "softmax": {"score": "softmax"},
    "sigmoid-not-normalized": {"score": "sigmoid", "normalize_weights": False, "routed_scaling_factor": 2.5},
    "groups": {"score": "sqrtsoftplus", "select": "group_limited", "num_groups": 3, "top_k_groups": 2},
    "hash-clamped": {"score": "sqrtsoftplus", "select": "hash", "hash_vocab_size": 41, "swiglu_limit": 0.05},
}


def small_model(kind: str = "softmax", **attention) -> MoETransformer:
    """Two layers, the first dense, of odd sizes; biases and norms that are not what they begin with."""
    moe = MoEConfig(d_model=20, d_expert=12, num_experts=6, top_k=3, num_shared_experts=1, **KINDS[kind])
    config = ModelConfig.preset("nano").replace(
        vocab_size=41, d_model=20, num_layers=2, context_length=40, moe=moe, tie_embeddings=kind != "groups"
    )
    sizes = {"num_heads": 6, "num_kv_heads": 3, "head_dim": 10} | attention
    config = config.replace(attention=dataclasses.replace(config.attention, **sizes))
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    for layer in sparse_layers(model):
        layer.router.kernel[...] = layer.router.kernel[...] * 10
        layer.router.bias[...] = jnp.asarray(rng.normal(size=6) / 10, jnp.float32)
    norms = [m for _, m in nnx.iter_modules(model) if isinstance(m, nnx.RMSNorm)]
    for norm in norms:
        norm.scale[...] = jnp.asarray(rng.uniform(0.5, 1.5, norm.scale.shape), jnp.float32)
    return model


def written(model: MoETransformer, folder, **options) -> OnnxModel:
    return OnnxModel(export_onnx(model, folder, **options))


def logits(model: MoETransformer, tokens) -> np.ndarray:
    return np.asarray(nnx.jit(lambda model, tokens: model(tokens)[0])(model, jnp.asarray(tokens)))


def close(found, wanted) -> None:
    np.testing.assert_allclose(found, wanted, atol=2e-5 * float(np.std(wanted)) + 1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        ("softmax", {"qk_norm": True}),
        ("sigmoid-not-normalized", {"bias": True}),
        ("groups", {"rope_dim": 4}),
        ("hash-clamped", {"num_kv_heads": 6}),
    ],
    ids=["softmax", "sigmoid", "groups", "hash"],
)
def test_the_file_gives_the_logits_of_the_model(tmp_path, kind, attention):
    model = small_model(kind, **attention)
    ours = written(model, tmp_path / "onnx")
    for shape in ((1, 1), (2, 37)):
        tokens = np.random.default_rng(2).integers(0, 41, shape)
        close(ours.logits(tokens), logits(model, tokens))


def test_a_cache_in_irregular_chunks_gives_what_the_whole_text_gives(tmp_path):
    model = small_model()
    ours = written(model, tmp_path / "onnx")
    tokens = np.random.default_rng(3).integers(0, 41, (2, 14))
    cache, found = ours.empty_cache(2), []
    for piece in np.split(tokens, [5, 6, 12], axis=1):
        scored, cache = ours.extend(piece, cache)
        found.append(scored)
    close(np.concatenate(found, axis=1), logits(model, tokens))
    assert {name: array.shape for name, array in cache.items()}["past.1.value"] == (2, 3, 14, 10)


def test_an_expert_that_nobody_chose_and_one_that_all_chose(tmp_path):
    model = small_model()
    for layer in sparse_layers(model):
        layer.router.bias[...] = jnp.array([9.0, 8.0, 7.0, 0.0, 0.0, 0.0])
    tokens = np.arange(12).reshape(2, 6)
    close(written(model, tmp_path / "onnx").logits(tokens), logits(model, tokens))


def test_int8_is_the_model_whose_matrices_are_rounded_by_column(tmp_path):
    """Not near it: the same function of the same codes."""
    model = small_model("groups")
    graphdef, state = nnx.split(model)

    def rounded(name, leaf):
        array = np.asarray(leaf[...])
        if array.ndim < 2 or name.startswith(("embed", "layers.0.ffn.router", "layers.1.ffn.router")):
            return leaf
        stacked = array if array.ndim == 3 else array[None]
        values = np.stack([codes * scale for codes, scale in map(int8_columns, stacked)])
        return leaf.replace(jnp.asarray(values.reshape(array.shape), jnp.float32))

    twin = nnx.merge(graphdef, filled_state(state, rounded))
    ours = written(model, tmp_path / "onnx", dtype="int8")
    tokens = np.random.default_rng(4).integers(0, 41, (2, 9))
    close(ours.logits(tokens), logits(twin, tokens))
    whole = export_onnx(model, tmp_path / "whole")
    sizes = [(folder / "model.onnx").stat().st_size for folder in (tmp_path / "onnx", whole)]
    constants = {c.name: c.data_type for c in onnx.load(tmp_path / "onnx" / "model.onnx").graph.initializer}
    assert sizes[0] < sizes[1]
    assert constants["layers.1.ffn.experts.5.down.codes"] == onnx.TensorProto.INT8
    assert constants["layers.1.ffn.router.kernel"] == onnx.TensorProto.FLOAT


def test_a_trained_model_writes_the_same_text(tmp_path):
    model, tokenizer, _ = load_pretrained("small")
    folder = export_onnx(model, tmp_path / "onnx", tokenizer)
    ours = OnnxModel(folder)
    assert ours.tokenizer.fingerprint == tokenizer.fingerprint
    ids = tokenizer.encode("In the beginning, the é 🙂")
    wanted = generate(model, jnp.asarray([ids]), 24, temperature=0)[0].tolist()
    assert ours.generate(ids, 24) == wanted


def test_what_cannot_be_written_is_refused_with_its_reason_and_leaves_nothing(tmp_path):
    latent = MoETransformer(ModelConfig.preset("v4-nano"), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"layer 0 has attention of kind .* only 'grouped_query'"):
        export_onnx(latent, tmp_path / "v4")
    with pytest.raises(UserError, match=r"dtype 'int4' .* float32, int8"):
        export_onnx(small_model(), tmp_path / "v4", dtype="int4")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="mine"):
        export_onnx(small_model(), tmp_path / "mine")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["mine", "thesis.txt"]


def test_a_quantized_model_is_written_with_the_values_of_its_codes(tmp_path):
    model = quantize_model(small_model(), "int8")
    tokens = np.arange(8)[None]
    close(written(model, tmp_path / "onnx").logits(tokens), logits(model, tokens))


def test_a_damaged_folder_is_one_line(tmp_path):
    folder = export_onnx(small_model(), tmp_path / "onnx")
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[:-9])
    with pytest.raises(UserError, match=r"model\.onnx is missing or was altered"):
        OnnxModel(folder)
    values = json.loads((folder / "config.json").read_text())
    for broken in ("", "[]", '{"format": "other"}', json.dumps(values | {"files": 3})):
        (folder / "config.json").write_text(broken)
        with pytest.raises(UserError, match="export again"):
            OnnxModel(folder)


def test_what_the_model_would_refuse_is_refused_in_its_words(tmp_path):
    """The runtime itself reads id -1 as the last of the vocabulary."""
    ours = written(small_model(), tmp_path / "onnx")
    limit = ours.config.context_length
    wrong = {
        r"tokens\[0, 0\] is 41, outside the vocabulary 0\.\.40": lambda: ours.logits([[41]]),
        r"prompt\[1\] is -1, outside the vocabulary": lambda: ours.generate([2, -1], 1),
        r"shape \(3,\); give token ids \[B, L\]": lambda: ours.logits(np.array([1, 2, 3])),
        r"shape \(1, 2\); give the ids of one text": lambda: ours.generate(np.array([[1, 2]]), 1),
        r"shape \(0,\); give the ids": lambda: ours.generate([], 1),
        r"max_new_tokens": lambda: ours.generate([1], 1.5),
        rf"{limit + 1} is above context_length={limit}": lambda: ours.logits(np.zeros((1, limit + 1), int)),
        rf"prompt of 2 tokens \+ max_new_tokens={limit - 1} is above": lambda: ours.generate([1, 2], limit - 1),
    }
    for words, call in wrong.items():
        with pytest.raises(UserError, match=words):
            call()
    assert ours.generate(np.array([1, 2], np.uint8), np.int32(1))[:2] == [1, 2]


def test_the_file_names_its_inputs_and_has_no_operator_of_one_maker():
    proto = onnx.load_from_string(onnx_bytes(small_model()))
    assert [i.name for i in proto.graph.input] == ["tokens"] + [
        f"past.{i}.{k}" for i in (0, 1) for k in ("key", "value")
    ]
    assert {node.domain for node in proto.graph.node} == {""}
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 18)]
