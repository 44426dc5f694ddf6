"""Folders that Transformers wrote: the same logits, continuations and gradients here; every broken folder is one line."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from transformers_models import FAMILIES, FOLDER, NEW_TOKENS, write_model


def check_parity(folder: Path, family: str, expected: dict[str, np.ndarray]) -> float:
    """Logits, chunked decoding, greedy continuation and the gradients of one block; returns the error of the logits."""
    from minimoe import generate
    from minimoe.hub import from_transformers
    from minimoe.hub.layouts import LAYOUTS
    from minimoe.model.paths import named_leaves

    model = from_transformers(folder)
    tokens, logits = jnp.asarray(expected["tokens"], jnp.int32), expected["logits"]
    error = float(np.abs(np.asarray(jax.jit(lambda m, t: m(t)[0])(model, tokens)) - logits).max() / logits.std())
    assert error < 1e-4

    cache, parts = model.init_cache(2, tokens.shape[1]), []
    extend = jax.jit(lambda m, t, cache: m.extend(t, cache))
    for start, end in ((0, 3), (3, 4), (4, 11), (11, 21)):
        part, _, cache = extend(model, tokens[:, start:end], cache)
        parts.append(part)
    assert np.abs(np.concatenate(parts, axis=1) - logits).max() / logits.std() < 1e-4

    greedy = jnp.asarray(expected["greedy"], jnp.int32)
    found = generate(model, greedy[:, :-NEW_TOKENS], NEW_TOKENS, temperature=0)
    np.testing.assert_array_equal(found, greedy)

    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    grads = jax.jit(jax.grad(lambda p: jnp.square(nnx.merge(graphdef, p, rest)(tokens)[0]).mean()))(params)
    rows, checked = LAYOUTS[family].rows(model.config), 0
    for name, gradient in named_leaves(grads).items():
        if name.startswith("layers.1."):
            wanted = rows[name].from_memory(expected.__getitem__)
            scale = max(float(np.abs(wanted).max()), 1e-3)
            assert np.abs(np.asarray(gradient[...]) - wanted).max() / scale < 1e-3, name
            checked += 1
    assert checked > 8
    return error


@pytest.mark.parametrize("family", FAMILIES)
def test_a_committed_folder_computes_what_transformers_computed(family):
    check_parity(FOLDER / family, family, load_file(FOLDER / family / "expected.safetensors"))


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_model_of_transformers_computes_the_same(family, tmp_path):
    seed = random.randrange(10**6)
    print(f"{family}, seed {seed}")
    expected = write_model(family, tmp_path, seed)
    print(f"{family}, error of the logits {check_parity(tmp_path, family, expected):.1e} of their spread")


def copied(family: str, tmp_path: Path) -> Path:
    folder = tmp_path / family
    shutil.copytree(FOLDER / family, folder)
    return folder


def changed(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder: Path, match: str) -> None:
    from minimoe import UserError
    from minimoe.hub import from_transformers

    with pytest.raises(UserError, match=match) as caught:
        from_transformers(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "values", "match"),
    [
        ("mixtral", {"model_type": "llama"}, "model_type='llama' is not known; choose one of mixtral, glm4_moe"),
        ("mixtral", {"model_type": {"name": "mixtral"}}, "is not known; choose one of mixtral, glm4_moe"),
        ("deepseek_v3", {"qk_rope_head_dim": 2**31}, "parameters against .* bytes of tensors"),
        ("deepseek_v3", {"kv_lora_rank": 2**31}, "parameters against .* bytes of tensors"),
        ("mixtral", {"num_hidden_layers": 9_999}, "parameters against .* bytes of tensors"),
        ("mixtral", {"sliding_window": 8}, "sliding_window=8 is not supported, only None is; set it to null"),
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ("mixtral", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "rope_scaling=.* beside rope_parameters"),
        ("deepseek_v3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "one of the two is; delete the one"),
        ("mixtral", {"rope_parameters": None}, "lacks rope_theta"),
        ("deepseek_v3", {"num_hidden_layers": None}, "num_hidden_layers=None"),
        ("mixtral", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "rope_type='linear'"),
        (
            "mixtral",
            {"max_position_embeddings": 10**18},
            "context_length=10{18} must be a whole number in 1..2147483647",
        ),
        ("mixtral", {"hidden_size": -4}, "d_model=-4 must be a whole number"),
        ("mixtral", {"quantization_config": {"quant_method": "gptq"}}, "convert it to bfloat16 first"),
        (
            "glm4_moe",
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": float("inf")}},
            "config.json is broken",
        ),
        (
            "glm4_moe",
            {"num_hidden_layers": 10**8, "first_k_dense_replace": 10**8},
            "num_hidden_layers=100000000 is not",
        ),
        ("deepseek_v3", {"num_hidden_layers": 10**8, "first_k_dense_replace": 10**8}, "at most 10,000 are"),
        ("glm4_moe", {"n_group": 7, "n_routed_experts": 7}, "groups of two experts or more"),
        ("deepseek_v3", {"attention_bias": True}, "attention_bias=True is not supported, only False is"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave=False is not supported"),
        ("mixtral", {"hidden_size": 99}, "instead of|bytes of tensors"),
    ],
)
def test_a_config_that_cannot_be_expressed_is_one_line(family, values, match, tmp_path):
    folder = copied(family, tmp_path)
    changed(folder, **values)
    refused(folder, match)


@pytest.mark.parametrize("name", ["routed_scaling_factor", "n_group", "topk_group", "n_shared_experts"])
def test_what_each_family_would_fill_in_with_a_number_of_its_own_is_asked_for(name, tmp_path):
    folder = copied("deepseek_v3", tmp_path)
    values = json.loads((folder / "config.json").read_text())
    del values[name]
    (folder / "config.json").write_text(json.dumps(values))
    refused(folder, f"lacks {name}")


def test_the_turned_share_of_a_head_is_read_in_both_places(tmp_path):
    from minimoe.hub import from_transformers

    folder = copied("glm4_moe", tmp_path)
    wanted = from_transformers(folder).config.attention.rope_dim
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    share = rope.pop("partial_rotary_factor")
    changed(folder, rope_parameters=rope, partial_rotary_factor=share)
    assert from_transformers(folder).config.attention.rope_dim == wanted
    changed(folder, partial_rotary_factor=2 * share)
    assert from_transformers(folder).config.attention.rope_dim == 2 * wanted


@pytest.mark.parametrize("folder", [FOLDER / "mixtral", FOLDER.parent / "deepseek_v4"], ids=lambda folder: folder.name)
def test_tied_in_config_and_stored_apart(folder, tmp_path):
    """As Transformers decides: a head of its own counts, an equal one is the embedding, a lone one is the embedding too."""
    from minimoe.hub import from_transformers
    from minimoe.model.paths import named_leaves

    tensors = {name: value for path in folder.glob("model*.safetensors") for name, value in load_file(path).items()}
    head = next(name for name in ("lm_head.weight", "head.weight") if name in tensors)
    embed = next(name for name in ("model.embed_tokens.weight", "embed.weight") if name in tensors)
    shutil.copy(folder / "config.json", tmp_path)
    changed(tmp_path, tie_word_embeddings=True)

    def loaded(some):
        save_file(some, tmp_path / "model.safetensors")
        model = from_transformers(tmp_path)
        leaves = named_leaves(model)
        assert model.config.tie_embeddings == ("head.kernel" not in leaves)
        return np.asarray(leaves["embed.embedding"][...]), leaves.get("head.kernel")

    found, kernel = loaded(tensors)
    np.testing.assert_array_equal(found, tensors[embed])
    np.testing.assert_array_equal(kernel[...], tensors[head].T)
    equal = tensors | {head: tensors[embed]}
    for some in (equal, {n: v for n, v in equal.items() if n != head}, {n: v for n, v in equal.items() if n != embed}):
        found, kernel = loaded(some)
        assert kernel is None
        np.testing.assert_array_equal(found, tensors[embed])
    save_file(tensors | {head: tensors[head][:-1]}, tmp_path / "model.safetensors")
    refused(tmp_path, head)
    changed(tmp_path, tie_word_embeddings=False)
    save_file({name: value for name, value in tensors.items() if name != head}, tmp_path / "model.safetensors")
    refused(tmp_path, r"has no .*head\.weight, .* does not say tie_word_embeddings: true; write that")


def test_a_single_file_goes_before_an_index(tmp_path):
    """As in Transformers, which looks for model.safetensors first."""
    from minimoe.hub import from_transformers

    folder = copied("mixtral", tmp_path)
    tensors = {name: value for path in folder.glob("model-*") for name, value in load_file(path).items()}
    name = "model.norm.weight"
    save_file(tensors | {name: tensors[name] + 1}, folder / "model.safetensors")
    np.testing.assert_array_equal(from_transformers(folder).norm.scale[...], tensors[name] + 1)


def test_an_index_that_is_not_of_these_files_is_refused(tmp_path):
    folder = copied("mixtral", tmp_path)
    path = folder / "model.safetensors.index.json"
    whole = json.loads(path.read_text())
    (name, home), other = next(iter(whole["weight_map"].items())), sorted(set(whole["weight_map"].values()))[-1]
    assert home != other
    for change, said in (({"ghost.weight": home}, "'ghost.weight'"), ({name: other}, f"{other} holds '{name}'")):
        path.write_text(json.dumps({**whole, "weight_map": whole["weight_map"] | change}))
        refused(folder, f"{said}, which it does not")


def test_broken_files_are_one_line_each(tmp_path):
    folder = copied("mixtral", tmp_path)
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-40])
    refused(folder, "no readable safetensors file")
    shard.unlink()
    refused(folder, f"lacks {shard.name}, which model.safetensors.index.json names")
    shard.write_bytes(whole)
    tensors = load_file(shard)
    name = "model.embed_tokens.weight"
    save_file({other: value for other, value in tensors.items() if other != name}, shard)
    refused(folder, f"missing {name}")
    save_file(tensors | {"model.layers.0.extra.weight": np.zeros(2, np.float32)}, shard)
    refused(folder, "unexpected model.layers.0.extra.weight")
    save_file(tensors | {name: tensors[name][:-1]}, shard)
    refused(folder, f"wrong {name} is")
    save_file(tensors | {name: tensors[name].astype(np.int64)}, shard)
    refused(folder, f"{name} holds whole numbers")
    index = folder / "model.safetensors.index.json"
    whole = index.read_text()
    index.write_text("[]")
    refused(folder, "^[^;]*index.json is broken [^;]*; copy the whole folder again$")
    index.write_text(whole)
    refused(tmp_path / "none", "does not exist")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json is broken")
