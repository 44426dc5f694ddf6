"""What the families share: names outside the layers, dense feed-forwards, and the router that GLM-4-MoE and V3 have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from minimoe.config import LayerConfig, ModelConfig, MoEConfig
from minimoe.hub.layouts.codes import Coding
from minimoe.hub.layouts.layout import Row, experts, layer_number, same, side_by_side, swapped
from minimoe.hub.layouts.settings import Settings

MOST_LAYERS = 10_000
ONCE = {
    "embed.embedding": same("model.embed_tokens.weight"),
    "norm.scale": same("model.norm.weight"),
    "head.kernel": swapped("lm_head.weight"),
}
NORMS = {
    "attention_norm.scale": same("input_layernorm.weight"),
    "ffn_norm.scale": same("post_attention_layernorm.weight"),
}
ATTENTION = {
    f"attention.{name}.kernel": swapped(f"self_attn.{name}.weight") for name in ("q_proj", "k_proj", "v_proj", "o_proj")
}
DENSE = {
    "ffn.gate_up_proj.kernel": side_by_side("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "ffn.down_proj.kernel": swapped("mlp.down_proj.weight"),
}
# The router and experts of GLM-4-MoE and DeepSeek-V3.
SPARSE = {
    "ffn.router.kernel": swapped("mlp.gate.weight"),  # [E, D] -> [D, E]
    "ffn.router.bias": same("mlp.gate.e_score_correction_bias"),
    "ffn.experts.gate_up_proj": experts(  # [E, 2F, D] -> [E, D, 2F]
        "mlp.experts.gate_up_proj", "mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight"
    ),
    "ffn.experts.down_proj": experts("mlp.experts.down_proj", "mlp.experts.{e}.down_proj.weight"),
}
SHARED = {
    "ffn.shared.gate_up_proj.kernel": side_by_side(
        "mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight"
    ),
    "ffn.shared.down_proj.kernel": swapped("mlp.shared_experts.down_proj.weight"),
}


def table(config: ModelConfig, layers: Iterable[Mapping[str, Row]]) -> dict[str, Row]:
    """All rows of a model: `ONCE`, and the rows of each layer under its number."""
    found = {ours: row for ours, row in ONCE.items() if not (ours == "head.kernel" and config.tie_embeddings)}
    for i, rows in enumerate(layers):
        found |= {f"layers.{i}.{ours}": row.within(f"model.layers.{i}.") for ours, row in rows.items()}
    return found


def feed_forward(layer: LayerConfig) -> dict[str, Row]:
    """The rows of a layer's feed-forward in GLM-4-MoE and DeepSeek-V3."""
    if layer.moe is None:
        return DENSE
    return SPARSE | SHARED if layer.moe.num_shared_experts else SPARSE


def sizes(settings: Settings, dtype: str) -> dict[str, Any]:
    """The fields of `ModelConfig` that all families call by the same names.

    Raises:
      UserError: for what none of our models has.
    """
    settings.only("hidden_act", "silu")
    settings.one_rope()
    Coding.read(settings)
    return {
        "vocab_size": settings.get("vocab_size"),
        "d_model": settings.get("hidden_size"),
        "num_layers": layer_count(settings),
        "context_length": settings.get("max_position_embeddings"),
        "norm_eps": settings.get("rms_norm_eps"),
        "tie_embeddings": settings.get("tie_word_embeddings", False),
        "dtype": dtype,
        "param_dtype": dtype,
    }


def layer_count(settings: Settings) -> Any:
    """The number of layers, which no model has a thousand of: a list of billions would fill the memory.

    Raises:
      UserError: for more than `MOST_LAYERS`.
    """
    count = settings.get("num_hidden_layers")
    if not isinstance(count, int):
        settings.refuse(f"num_hidden_layers={count!r}", "a whole number is", "copy the whole folder again")
    if count > MOST_LAYERS:
        settings.refuse(f"num_hidden_layers={count}", f"at most {MOST_LAYERS:,} are", "copy the whole folder again")
    return count


def rotary_share(turned: int, width: int) -> float:
    """``partial_rotary_factor``: Transformers multiplies it by the width and cuts to a whole number, which must be P again.

    Example:
      >>> int(44 * (30 / 44)), int(44 * rotary_share(30, 44))
      (29, 30)
    """
    share = turned / width
    return share if int(width * share) == turned else math.nextafter(share, 1)


def sigmoid_experts(settings: Settings, dtype: str) -> MoEConfig:
    """The experts of GLM-4-MoE and V3: sigmoid affinities, a selection bias, groups, shared experts.

    Transformers scores a group by the sum of its two best experts and has no rule for groups of one.
    """
    count, groups = settings.get("n_routed_experts"), settings.get("n_group")
    if groups == count:
        settings.refuse(f"n_group={groups} with n_routed_experts={count}", "groups of two experts or more are")
    return MoEConfig(
        d_model=settings.get("hidden_size"),
        d_expert=settings.get("moe_intermediate_size"),
        num_experts=count,
        top_k=settings.get("num_experts_per_tok"),
        num_shared_experts=settings.get("n_shared_experts") or 0,
        score="sigmoid",
        select="topk" if groups == 1 else "group_limited",
        num_groups=groups,
        top_k_groups=settings.get("topk_group"),
        normalize_weights=settings.get("norm_topk_prob", True),
        routed_scaling_factor=settings.get("routed_scaling_factor"),
        dtype=dtype,
        param_dtype=dtype,
    )


def feed_forwards(settings: Settings, dtype: str) -> dict[str, Any]:
    """The fields of `ModelConfig` for feed-forwards in GLM-4-MoE and V3: dense layers first, then `sigmoid_experts`."""
    count, width = settings.get("first_k_dense_replace"), settings.get("intermediate_size")
    if count >= layer_count(settings):
        return {"d_ff": width}
    return {"moe": sigmoid_experts(settings, dtype), "first_layers": (LayerConfig(d_ff=width),) * count}


def written_sizes(config: ModelConfig, architecture: str, model_type: str) -> dict[str, Any]:
    """What config.json of every family says: the inverse of `sizes`."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "use_cache": True,
    }


def written_sigmoid_experts(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `feed_forwards`."""
    moe = next((layer.moe for layer in reversed(config.layers) if layer.moe is not None), None)
    dense = [layer for layer in config.layers if layer.moe is None]
    if moe is None:  # no layer is what these say, and they have to be there
        moe = MoEConfig(config.d_model, d_expert=1, num_experts=1, top_k=1, num_shared_experts=1, score="sigmoid")
    return {
        "moe_intermediate_size": moe.d_expert,
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "n_shared_experts": moe.num_shared_experts,
        "n_group": moe.num_groups,
        "topk_group": moe.top_k_groups,
        "norm_topk_prob": moe.normalize_weights,
        "routed_scaling_factor": float(moe.routed_scaling_factor),
        "first_k_dense_replace": len(dense),
        "intermediate_size": dense[0].d_ff if dense else moe.d_expert,
        "num_nextn_predict_layers": 0,
    }


def prediction_layer(name: str, settings: Settings) -> bool:
    """Whether a tensor belongs to the layers for multi-token prediction, which published files number after the others.

    Our models have no place for them, and the next token does not depend on them.
    """
    number, layers = layer_number(name), settings.get("num_hidden_layers")
    return number is not None and layers <= number < layers + settings.get("num_nextn_predict_layers", 1)
