"""DeepSeek-V4 as Transformers writes it: the same logits, continuation, decoding in chunks and gradients here."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import v4_transformers
from safetensors.numpy import load_file, save_file
from v4_parity import check, check_chunks, check_logits_and_text

from minimoe import UserError
from minimoe.hub import from_transformers
from minimoe.hub.layouts import LAYOUTS
from minimoe.model.paths import named_leaves

FIXTURE = v4_transformers.FIXTURE


def check_everything(folder, expected):
    """All that `v4_transformers.computed` says of the model in ``folder``."""
    model = from_transformers(folder)
    gradient = check_logits_and_text(model, expected)
    check_gradient(gradient, model.config, expected)
    check_chunks(model, expected)
    return model


def check_gradient(gradient, config, expected):
    """Of every weight of one layer that has one there; the indexer has none, and ours is 0."""
    leaves, rows = named_leaves(gradient), LAYOUTS["deepseek_v4"].rows(config)
    layer, compared = f"layers.{int(expected['layer'])}.", 0
    for ours in (name for name in leaves if name.startswith(layer)):
        for theirs, value in rows[ours].to_memory(np.asarray(leaves[ours][...])).items():
            key = f"gradient/{theirs}"
            if key in expected:
                check(value, expected[key], 1e-3)
                compared += 1
            else:
                assert ".indexer." in ours
                np.testing.assert_array_equal(value, 0)
    assert compared == sum(key.startswith("gradient/") for key in expected)


def test_the_committed_model_computes_what_transformers_did():
    model = check_everything(FIXTURE, dict(np.load(FIXTURE / "expected.npz")))
    kinds = [layer.attention.kind for layer in model.config.layers]
    assert kinds == ["sliding", "heavily_compressed", "compressed_sparse"]
    assert [layer.moe.select for layer in model.config.layers] == ["hash", "topk", "topk"]


@pytest.mark.live
@pytest.mark.parametrize("model", range(3))
def test_fresh_models_of_transformers_compute_the_same_here(model, tmp_path):
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    sizes = v4_transformers.random_sizes(seed)
    theirs = v4_transformers.random_model(sizes, seed)
    layer = int(np.random.default_rng(seed).integers(sizes["num_hidden_layers"]))
    expected = v4_transformers.computed(theirs, v4_transformers.random_prompt(sizes, seed), [1, 2, 5, 1, 8], layer)
    v4_transformers.saved(theirs, tmp_path)
    check_everything(tmp_path, expected)


def changed_copy(folder, **changes):
    """The committed model with other values in its config.json."""
    shutil.copytree(FIXTURE, folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(settings | changes), encoding="utf-8")
    return folder


def rope(**changes):
    settings = json.loads((FIXTURE / "config.json").read_text(encoding="utf-8"))["rope_parameters"]
    return settings | {"compress": settings["compress"] | changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scoring_func": "sigmoid"}, "scoring_func='sigmoid' is not supported, only 'sqrtsoftplus' is"),
        ({"n_shared_experts": 2}, "n_shared_experts=2"),
        ({"hc_mult": 1}, "streams=1 has nothing to mix"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"layer_types": ["full_attention"] * 3}, "a layer of type 'full_attention'"),
        ({"mlp_layer_types": ["moe"] * 2}, "layer_types of 3 layers and mlp_layer_types of 2"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, r"rope_scaling=\{.* beside rope_parameters"),
        (
            {"rope_parameters": rope(partial_rotary_factor=0.9)},
            r"compress: partial_rotary_factor=0\.9, .* qk_rope_head_dim=",
        ),
        ({"rope_parameters": {"rope_type": "default"}}, 'a table with "main" and "compress"'),
        ({"rope_parameters": rope(attention_factor=1.2)}, r"compress: attention_factor=1\.2"),
        ({"rope_parameters": rope(rope_type="linear")}, "compress: rope_type='linear'"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quant_method='mxfp4' is not supported, only 'fp8' is"),
        ({"sliding_window": 5, "o_lora_rank": 6}, r"attn\.wo_a\.weight is \(15, 24\) instead of \(18, 24\)"),
        ({"layer_types": ["sliding_attention"] * 3}, r"unexpected .*attn\.compressor\.ape"),
    ],
)
def test_what_our_models_cannot_express_is_refused(changes, said, tmp_path):
    with pytest.raises(UserError, match=said):
        from_transformers(changed_copy(tmp_path / "changed", **changes))


def test_ids_of_experts_that_do_not_exist_are_refused(tmp_path):
    folder = changed_copy(tmp_path / "changed")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.ffn.gate.tid2eid"][3, 1] = 5
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"expert ids 0\.\.5, but ids are 0\.\.4"):
        from_transformers(folder)
