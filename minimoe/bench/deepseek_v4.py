"""The Transformers reference of a DeepSeek-V4 shape: the same weights in its ``deepseek_v4``, experts by ``grouped_mm``.

Names, transpositions and settings are those by which `minimoe.hub` writes such models.
torch and transformers are imported inside the functions.
"""

from __future__ import annotations

from typing import Any

from minimoe.attention import CompressedSparseConfig, HeavilyCompressedConfig, SlidingWindowConfig
from minimoe.bench import mixtral
from minimoe.config import ModelConfig
from minimoe.errors import UserError
from minimoe.hub.layouts import LAYOUTS
from minimoe.hub.layouts.settings import Settings
from minimoe.layers import HyperConnectionConfig
from minimoe.model import MoETransformer

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
    assert LAYOUT.write_config is not None
    try:
        written = Settings(LAYOUT.write_config(config), "the reference")
        same = LAYOUT.read_config(written, "float32").layers == config.layers
    except UserError as error:
        return f"not compared: {error}"
    return None if same else "not compared: deepseek_v4 of Transformers has one size for all layers of a kind"


def v4_model(model: MoETransformer) -> Any:
    """``DeepseekV4ForCausalLM`` with a copy of the model's weights; missing or unexpected names are errors."""
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

    if reason := not_v4(model.config):
        raise UserError(reason)
    mixtral.use_all_cores()
    settings = mixtral.settings(LAYOUT, model.config)
    del settings["qk_rope_head_dim"]  # what it makes of the fraction
    reference = DeepseekV4ForCausalLM(DeepseekV4Config(**settings)).float()
    reference.set_experts_implementation(mixtral.EXPERTS_IMPLEMENTATION)
    state = mixtral.tensors(LAYOUT.rows(model.config), model)
    if model.config.tie_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    reference.load_state_dict(state, strict=True)
    return reference
