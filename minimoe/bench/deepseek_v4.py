"""The Transformers reference of a DeepSeek-V4 shape: the same weights in its ``deepseek_v4``, experts by ``grouped_mm``.

Names and transpositions are those by which `minimoe.hub.from_transformers` reads such models; here they are written.
torch and transformers are imported inside the functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from minimoe.attention import CompressedSparseConfig, HeavilyCompressedConfig, SlidingWindowConfig
from minimoe.bench import mixtral
from minimoe.config import ModelConfig
from minimoe.errors import UserError
from minimoe.hub.layouts import LAYOUTS
from minimoe.hub.layouts.settings import Settings
from minimoe.layers import HyperConnectionConfig
from minimoe.model import MoETransformer
from minimoe.model.paths import named_leaves

KINDS = (SlidingWindowConfig, CompressedSparseConfig, HeavilyCompressedConfig)
LAYOUT = LAYOUTS["deepseek_v4"]


def looks_like_v4(config: ModelConfig) -> bool:
    """Whether every layer has one of V4's attentions, which no other family has."""
    return all(isinstance(layer.attention, KINDS) for layer in config.layers)


def not_v4(config: ModelConfig) -> str | None:
    """Why ``deepseek_v4`` of Transformers cannot express ``config``, or None if it can."""
    if not looks_like_v4(config) or not isinstance(config.residual, HyperConnectionConfig) or config.moe is None:
        return "not compared: DeepSeek-V4 has its own attentions, hyper-connections and experts in every layer"
    if config.mtp is not None:
        return "not compared: deepseek_v4 of Transformers has no head for multi-token prediction"
    if any(
        isinstance(layer.attention, CompressedSparseConfig) and layer.attention.index_loss for layer in config.layers
    ):
        return "not compared: Transformers does not teach the indexer; compare with index_loss=0"
    if config.dropout or {config.dtype, config.param_dtype} != {"float32"}:
        return "not compared: the reference runs in float32 without dropout"
    if reason := mixtral.unaligned(config.moe):
        return reason
    try:
        same = LAYOUT.read_config(Settings(v4_settings(config), "the reference"), "float32").layers == config.layers
    except UserError as error:
        return f"not compared: {error}"
    return None if same else "not compared: deepseek_v4 of Transformers has one size for all layers of a kind"


def v4_settings(config: ModelConfig) -> dict[str, Any]:
    """What ``config.json`` would say of the same model; no end token, so that generation never stops."""
    attention: Any = {type(layer.attention): layer.attention for layer in config.layers}
    any_kind = attention.get(SlidingWindowConfig) or next(iter(attention.values()))
    moe, streams = config.moe, config.residual
    assert moe is not None
    assert isinstance(streams, HyperConnectionConfig)
    sparse, heavy = attention.get(CompressedSparseConfig), attention.get(HeavilyCompressedConfig)
    names = [f"{layer.attention.kind}_attention" for layer in config.layers if layer.attention is not None]
    ways = ["hash_moe" if layer.moe is not None and layer.moe.select == "hash" else "moe" for layer in config.layers]
    turned = {"partial_rotary_factor": any_kind.rope_dim / any_kind.head_dim, "rope_type": "default"}
    thetas = {"main": any_kind.rope_theta, "compress": (sparse or heavy or any_kind).rope_theta}
    indexer = {} if sparse is None else {
        "index_n_heads": sparse.index_heads, "index_head_dim": sparse.index_dim, "index_topk": sparse.index_top_k,
    }  # fmt: skip
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "layer_types": names,
        "mlp_layer_types": ways,
        "num_attention_heads": any_kind.num_heads,
        "num_key_value_heads": 1,
        "head_dim": any_kind.head_dim,
        "partial_rotary_factor": turned["partial_rotary_factor"],
        "qk_rope_head_dim": any_kind.rope_dim,
        "q_lora_rank": any_kind.q_rank,
        "sliding_window": any_kind.window,
        "o_groups": any_kind.out_groups,
        "o_lora_rank": any_kind.out_rank,
        "rope_parameters": {name: turned | {"rope_theta": theta} for name, theta in thetas.items()},
        "compress_rates": {
            "compressed_sparse_attention": sparse.ratio if sparse else 4,
            "heavily_compressed_attention": heavy.ratio if heavy else 128,
        },
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "n_shared_experts": moe.num_shared_experts,
        "moe_intermediate_size": moe.d_expert,
        "scoring_func": moe.score,
        "norm_topk_prob": moe.normalize_weights,
        "routed_scaling_factor": moe.routed_scaling_factor,
        "swiglu_limit": moe.swiglu_limit,
        "hc_mult": streams.streams,
        "hc_sinkhorn_iters": streams.sinkhorn_iters,
        "hc_eps": streams.eps,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    } | indexer


def v4_model(model: MoETransformer) -> Any:
    """``DeepseekV4ForCausalLM`` with a copy of the model's weights; missing or unexpected names are errors."""
    import torch
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

    if reason := not_v4(model.config):
        raise UserError(reason)
    mixtral.use_all_cores()
    settings = v4_settings(model.config)
    del settings["qk_rope_head_dim"]  # what it makes of the fraction
    reference = DeepseekV4ForCausalLM(DeepseekV4Config(**settings)).float()
    reference.set_experts_implementation(mixtral.EXPERTS_IMPLEMENTATION)
    leaves = named_leaves(nnx.state(model, nnx.Not(nnx.RngState)))
    state: dict[str, Any] = {}
    for ours, row in LAYOUT.rows(model.config).items():
        for name, array in row.to_memory(np.asarray(leaves[ours][...])).items():
            state[name] = torch.from_numpy(np.array(array, order="C"))
    if model.config.tie_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    reference.load_state_dict(state, strict=True)
    return reference
