"""A whole DeepSeek-V4 with the weights of a model of Transformers: its logits, text, decoding in chunks and gradients."""

from __future__ import annotations

import dataclasses
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
import v4_oracle
import v4_transformers
from flax import nnx
from safetensors.numpy import load_file
from v4_parity import check, check_chunks, check_logits_and_text

from minimoe import LayerConfig, ModelConfig, MoEConfig, MoETransformer
from minimoe.attention import CompressedSparseConfig, HeavilyCompressedConfig, SlidingWindowConfig, YarnConfig
from minimoe.layers import HyperConnectionConfig
from minimoe.model.paths import filled_state, named_leaves

FIXTURE = v4_transformers.FIXTURE
# Our words for the published ones; what is left of a name after these is the same.
WORDS = {
    "q_a_proj": "wq_a", "q_b_proj": "wq_b", "kv_proj": "wkv", "o_a_proj": "wo_a", "o_b_proj": "wo_b",
    "gate_proj": "wgate", "place_bias": "ape", "sink": "attn_sink", "attention": "attn", "attention_norm": "attn_norm",
    "router": "gate", "shared": "shared_experts", "table": "tid2eid", "q_proj": "wq_b", "embedding": "weight",
    "kernel": "weight", "scale": "weight",
}  # fmt: skip


def config_of(settings):
    """Our config of the same model."""
    s, rope = settings, settings["rope_parameters"]
    yarn = YarnConfig(
        factor=rope["compress"]["factor"],
        original_length=rope["compress"]["original_max_position_embeddings"],
        beta_fast=rope["compress"]["beta_fast"],
        beta_slow=rope["compress"]["beta_slow"],
    )
    sizes = {
        "num_heads": s["num_attention_heads"], "head_dim": s["head_dim"], "rope_dim": s["qk_rope_head_dim"],
        "q_rank": s["q_lora_rank"], "window": s["sliding_window"], "out_groups": s["o_groups"],
        "out_rank": s["o_lora_rank"],
    }  # fmt: skip
    far = sizes | {"rope_theta": rope["compress"]["rope_theta"], "yarn": yarn}
    index = {"index_heads": s["index_n_heads"], "index_dim": s["index_head_dim"], "index_top_k": s["index_topk"]}
    kinds = {
        "sliding_attention": SlidingWindowConfig(**sizes, rope_theta=rope["main"]["rope_theta"]),
        "compressed_sparse_attention": CompressedSparseConfig(
            **far, **index, ratio=s["compress_rates"]["compressed_sparse_attention"]
        ),
        "heavily_compressed_attention": HeavilyCompressedConfig(
            **far, ratio=s["compress_rates"]["heavily_compressed_attention"]
        ),
    }
    moe = MoEConfig(
        d_model=s["hidden_size"], d_expert=s["moe_intermediate_size"], num_experts=s["n_routed_experts"],
        top_k=s["num_experts_per_tok"], num_shared_experts=1, score="sqrtsoftplus",
        routed_scaling_factor=s["routed_scaling_factor"], swiglu_limit=s["swiglu_limit"],
    )  # fmt: skip
    routing = {"moe": moe, "hash_moe": dataclasses.replace(moe, select="hash", hash_vocab_size=s["vocab_size"])}
    pairs = zip(s["layer_types"], s["mlp_layer_types"], strict=True)
    layers = tuple(LayerConfig(kinds[attention], routing[ffn]) for attention, ffn in pairs)
    return ModelConfig(
        vocab_size=s["vocab_size"], d_model=s["hidden_size"], num_layers=len(layers), attention=layers[0].attention,
        moe=moe, first_layers=layers, context_length=s["max_position_embeddings"], norm_eps=s["rms_norm_eps"],
        tie_embeddings=False, residual=HyperConnectionConfig(streams=s["hc_mult"], sinkhorn_iters=s["hc_sinkhorn_iters"]),
    )  # fmt: skip


def tensor(tensors, name, shape):
    """Our array, from the tensors of the published names."""
    streams = re.sub(r"(attention|ffn)_residual\.(kernel|base|scale)", r"hc_\1_\2", name)
    streams = re.sub(r"^leave\.(kernel|base|scale)", r"hc_head_\1", streams)
    if streams != name:
        value = tensors[streams.replace("attention", "attn").replace("kernel", "fn")]
        return value.T if name.endswith("kernel") else value
    words = [WORDS.get(word, word) for word in name.split(".")]
    path = ".".join(words)
    if path.endswith("ffn.gate.bias"):
        return tensors.get(path, np.zeros(shape))  # none where ids choose experts
    if "experts.gate_up_proj" in path:
        stem = path.partition("gate_up_proj")[0]
        each = [f"{stem}{e}." for e in range(shape[0])] if "shared" not in name else [stem]
        found = np.stack([np.concatenate([tensors[f"{e}w{i}.weight"] for i in (1, 3)]).T for e in each])
        return found if "shared" not in name else found[0]
    if "experts.down_proj" in path:
        stem = path.partition("down_proj")[0]
        if "shared" in name:
            return tensors[f"{stem}w2.weight"].T
        return np.stack([tensors[f"{stem}{e}.w2.weight"].T for e in range(shape[0])])
    if "wo_a" in path:
        return np.swapaxes(tensors[path].reshape(shape[0], shape[2], shape[1]), 1, 2)
    return tensors[path].T if words[-1] == "weight" and name.endswith("kernel") else tensors[path]


@pytest.fixture(scope="module")
def model():
    """The committed one."""
    config = config_of(json.loads((FIXTURE / "config.json").read_text(encoding="utf-8")))
    tensors = v4_oracle.published(load_file(FIXTURE / "model.safetensors"))
    graphdef, state = nnx.split(nnx.eval_shape(lambda: MoETransformer(config, rngs=nnx.Rngs(0))))

    def filled(name, leaf):
        value = tensor(tensors, name, leaf.shape)
        assert value.shape == leaf.shape, name
        return leaf.replace(jnp.asarray(value, leaf.dtype))

    return nnx.merge(graphdef, filled_state(state, filled))


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(FIXTURE / "expected.npz"))


def test_logits_text_and_the_gradient_of_a_block_are_those_of_transformers(model, expected):
    gradient, layer = check_logits_and_text(model, expected), int(expected["layer"])
    theirs = {name.partition(f"model.layers.{layer}.")[2]: value for name, value in expected.items() if "/" in name}
    found = {name.partition(f"layers.{layer}.")[2]: value[...] for name, value in named_leaves(gradient).items()}
    for ours, name, change in (
        ("attention.q_a_proj.kernel", "self_attn.q_a_proj.weight", np.transpose),
        ("attention.q_norm.scale", "self_attn.q_a_norm.weight", np.asarray),
        ("attention.q_b_proj.kernel", "self_attn.q_b_proj.weight", np.transpose),
        ("attention.kv_proj.kernel", "self_attn.kv_proj.weight", np.transpose),
        ("attention.kv_norm.scale", "self_attn.kv_norm.weight", np.asarray),
        ("attention.sink", "self_attn.sinks", np.asarray),
        ("attention.o_b_proj.kernel", "self_attn.o_b_proj.weight", np.transpose),
        ("attention.compressor.kv_proj.kernel", "self_attn.compressor.kv_proj.weight", np.transpose),
        ("attention.compressor.gate_proj.kernel", "self_attn.compressor.gate_proj.weight", np.transpose),
        ("attention.compressor.place_bias", "self_attn.compressor.position_bias", np.asarray),
        ("attention_residual.kernel", "attn_hc.fn", np.transpose),
        ("ffn_residual.base", "ffn_hc.base", np.asarray),
        ("ffn.router.kernel", "mlp.gate.weight", np.transpose),
        ("ffn.experts.gate_up_proj", "mlp.experts.gate_up_proj", lambda value: np.swapaxes(value, 1, 2)),
        ("ffn.experts.down_proj", "mlp.experts.down_proj", lambda value: np.swapaxes(value, 1, 2)),
    ):
        check(found[ours], change(theirs[name]), 1e-3)


def test_decoding_in_chunks_is_that_of_transformers(model, expected):
    check_chunks(model, expected)
