"""DeepSeek-V4: a window, CSA or HCA in each layer, streams joined by hyper-connections, hash-routed experts first.

Matrices are transposed. Rotary positions turn the same neighbouring pairs of the last dims on both sides, so no column
moves. In memory Transformers has names of its own. In files it writes those of the published checkpoints behind
``model.``, such as ``attn.wq_a``, with one exception: the norm of the rows is ``attn.norm`` there, not ``attn.kv_norm``.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from minimoe.attention import CompressedSparseConfig, HeavilyCompressedConfig, SlidingWindowConfig, YarnConfig
from minimoe.config import LayerConfig, ModelConfig, MoEConfig
from minimoe.errors import UserError
from minimoe.hub.layouts import common
from minimoe.hub.layouts.deepseek_v3 import written_rope
from minimoe.hub.layouts.layout import ZERO, Change, Layout, Row, experts, same, swapped
from minimoe.hub.layouts.settings import COPY, Settings
from minimoe.layers import HyperConnectionConfig

KINDS = {
    f"{kind.kind}_attention": kind for kind in (SlidingWindowConfig, CompressedSparseConfig, HeavilyCompressedConfig)
}
NORMS = {
    "attention_norm.scale": same("input_layernorm.weight", "attn_norm.weight"),
    "ffn_norm.scale": same("post_attention_layernorm.weight", "ffn_norm.weight"),
}
ATTENTION = {
    "attention.q_a_proj.kernel": swapped("self_attn.q_a_proj.weight", "attn.wq_a.weight"),
    "attention.q_norm.scale": same("self_attn.q_a_norm.weight", "attn.q_norm.weight"),
    "attention.q_b_proj.kernel": swapped("self_attn.q_b_proj.weight", "attn.wq_b.weight"),
    "attention.kv_proj.kernel": swapped("self_attn.kv_proj.weight", "attn.wkv.weight"),
    "attention.kv_norm.scale": same("self_attn.kv_norm.weight", "attn.norm.weight"),
    "attention.sink": same("self_attn.sinks", "attn.attn_sink"),
    "attention.o_b_proj.kernel": swapped("self_attn.o_b_proj.weight", "attn.wo_b.weight"),
}
INDEXER = {
    "attention.indexer.q_proj.kernel": swapped(
        "self_attn.compressor.indexer.q_b_proj.weight", "attn.indexer.wq_b.weight"
    ),
    "attention.indexer.weights_proj.kernel": swapped(
        "self_attn.compressor.indexer.scorer.weights_proj.weight", "attn.indexer.weights_proj.weight"
    ),
}
FEED_FORWARD = {
    "ffn.router.kernel": swapped("mlp.gate.weight", "ffn.gate.weight"),
    "ffn.experts.gate_up_proj": experts(
        "mlp.experts.gate_up_proj", "ffn.experts.{e}.w1.weight", "ffn.experts.{e}.w3.weight"
    ),
    "ffn.experts.down_proj": experts("mlp.experts.down_proj", "ffn.experts.{e}.w2.weight"),
    "ffn.shared.gate_up_proj.kernel": dataclasses.replace(
        common.SHARED["ffn.shared.gate_up_proj.kernel"],
        files=("ffn.shared_experts.w1.weight", "ffn.shared_experts.w3.weight"),
    ),
    "ffn.shared.down_proj.kernel": swapped("mlp.shared_experts.down_proj.weight", "ffn.shared_experts.w2.weight"),
}


def hyper_connection(ours: str, theirs: str, file: str) -> dict[str, Row]:
    """The generator of one place where streams are mixed; ``theirs`` and ``file`` end before its last word."""
    return {
        f"{ours}.kernel": swapped(f"{theirs}fn", f"{file}fn"),
        f"{ours}.base": same(f"{theirs}base", f"{file}base"),
        f"{ours}.scale": same(f"{theirs}scale", f"{file}scale"),
    }


def compressor(ours: str, theirs: str, file: str) -> dict[str, Row]:
    """What pools tokens into entries."""
    return {
        f"{ours}.kv_proj.kernel": swapped(f"{theirs}.kv_proj.weight", f"{file}.wkv.weight"),
        f"{ours}.gate_proj.kernel": swapped(f"{theirs}.gate_proj.weight", f"{file}.wgate.weight"),
        f"{ours}.place_bias": same(f"{theirs}.position_bias", f"{file}.ape"),
        f"{ours}.norm.scale": same(f"{theirs}.kv_norm.weight", f"{file}.norm.weight"),
    }


def grouped(groups: int) -> Change:
    """The output matrices of the groups: ``[g*r, i]`` there, one below the other, and ``[g, i, r]`` here."""

    def read(theirs: np.ndarray) -> np.ndarray:
        return np.swapaxes(theirs.reshape(groups, -1, theirs.shape[1]), 1, 2)

    def write(ours: np.ndarray) -> np.ndarray:
        return np.swapaxes(ours, 1, 2).reshape(-1, ours.shape[1])

    return Change(read, write)


def expert_ids(num_experts: int) -> Change:
    """The table of a hash-routed layer, whose ids must be those of experts."""

    def read(theirs: np.ndarray) -> np.ndarray:
        if theirs.size and not (theirs.min() >= 0 and theirs.max() < num_experts):
            found = f"{theirs.min()}..{theirs.max()}"
            raise UserError(f"a tid2eid table holds expert ids {found}, but ids are 0..{num_experts - 1}; {COPY}")
        return theirs

    return Change(read, lambda ours: ours)


def attention_rows(attention: Any) -> dict[str, Row]:
    """Of one layer."""
    out = Row(("self_attn.o_a_proj.weight",), grouped(attention.out_groups), ("attn.wo_a.weight",))
    found = ATTENTION | {"attention.o_a_proj.kernel": out}
    if not isinstance(attention, SlidingWindowConfig):
        found |= compressor("attention.compressor", "self_attn.compressor", "attn.compressor")
    if isinstance(attention, CompressedSparseConfig):
        names = "attention.indexer.compressor", "self_attn.compressor.indexer", "attn.indexer.compressor"
        found |= compressor(*names) | INDEXER
    return found


def feed_forward_rows(moe: MoEConfig) -> dict[str, Row]:
    """Of one layer; a hash-routed one has a table and no bias."""
    if moe.select != "hash":
        bias = same("mlp.gate.e_score_correction_bias", "ffn.gate.bias")
        return FEED_FORWARD | {"ffn.router.bias": bias}
    table = Row(("mlp.gate.tid2eid",), expert_ids(moe.num_experts), ("ffn.gate.tid2eid",))
    return FEED_FORWARD | {"ffn.router.bias": ZERO, "ffn.router.table": table}


def layer_rows(layer: LayerConfig) -> dict[str, Row]:
    """Of one layer."""
    assert layer.moe is not None
    streams = hyper_connection("attention_residual", "attn_hc.", "hc_attn_")
    streams |= hyper_connection("ffn_residual", "ffn_hc.", "hc_ffn_")
    return NORMS | streams | attention_rows(layer.attention) | feed_forward_rows(layer.moe)


def rows(config: ModelConfig) -> dict[str, Row]:
    """The whole table."""
    found = common.table(config, [layer_rows(layer) for layer in config.layers])
    if not config.tie_embeddings:
        found["head.kernel"] = swapped("lm_head.weight", "head.weight")
    end = "model.hc_head.hc_"
    return found | hyper_connection("leave", end, end)


def rotary(settings: Settings, kind: str) -> dict[str, Any]:
    """Base and YaRN of layers with a window alone (``main``) or of the others (``compress``)."""
    given = settings.get("rope_parameters")
    rope = given.get(kind) if isinstance(given, dict) else None
    if not isinstance(rope, dict):
        settings.refuse(f"rope_parameters={given!r}", 'a table with "main" and "compress" is')
    assert isinstance(rope, dict)  # refused above
    rope = Settings(rope, f"{settings.source}: rope_parameters of {kind}")
    share = rope.get("partial_rotary_factor", settings.get("partial_rotary_factor", None))
    width, turned = settings.get("head_dim"), settings.get("qk_rope_head_dim")
    if share is not None and int(width * share) != turned:  # Transformers turns by the share
        rope.refuse(
            f"partial_rotary_factor={share}, {int(width * share)} of {width} dims,", f"qk_rope_head_dim={turned} is"
        )
    if rope.only("rope_type", "default", "yarn") == "default":
        return {"rope_theta": rope.get("rope_theta"), "yarn": None}
    rope.only("attention_factor", 1.0)
    if "attention_factor" not in rope.values:
        rope.refuse("YaRN without attention_factor", "V4 has it as 1.0", "add it if the model was trained so")
    yarn = YarnConfig(
        factor=rope.get("factor"),
        original_length=rope.get("original_max_position_embeddings"),
        beta_fast=rope.get("beta_fast", 32.0) or 32.0,
        beta_slow=rope.get("beta_slow", 1.0) or 1.0,
    )
    return {"rope_theta": rope.get("rope_theta"), "yarn": yarn}


def attention_kind(settings: Settings, layer_type: str) -> Any:
    """The attention of a layer of this type."""
    if layer_type not in KINDS:
        settings.refuse(f"a layer of type {layer_type!r}", f"only {', '.join(KINDS)} are")
    kind = KINDS[layer_type]
    sizes = {
        "num_heads": settings.get("num_attention_heads"),
        "head_dim": settings.get("head_dim"),
        "rope_dim": settings.get("qk_rope_head_dim"),
        "q_rank": settings.get("q_lora_rank"),
        "window": settings.get("sliding_window"),
        "out_groups": settings.get("o_groups"),
        "out_rank": settings.get("o_lora_rank"),
        "norm_eps": settings.get("rms_norm_eps"),
    }
    if kind is SlidingWindowConfig:
        return kind(**sizes, **rotary(settings, "main"))
    sizes |= {"ratio": settings.get("compress_rates")[layer_type]} | rotary(settings, "compress")
    if kind is CompressedSparseConfig:
        index = {"index_heads": "index_n_heads", "index_dim": "index_head_dim", "index_top_k": "index_topk"}
        sizes |= {ours: settings.get(theirs) for ours, theirs in index.items()}
    return kind(**sizes)


def experts_config(settings: Settings, dtype: str) -> MoEConfig:
    """The experts of a layer that is not hash-routed. Transformers normalises weights and has one shared expert always."""
    settings.only("scoring_func", "sqrtsoftplus")
    settings.only("norm_topk_prob", True)
    settings.only("n_shared_experts", 1)
    return MoEConfig(
        d_model=settings.get("hidden_size"),
        d_expert=settings.get("moe_intermediate_size"),
        num_experts=settings.get("n_routed_experts"),
        top_k=settings.get("num_experts_per_tok"),
        num_shared_experts=1,
        score="sqrtsoftplus",
        routed_scaling_factor=settings.get("routed_scaling_factor"),
        swiglu_limit=settings.get("swiglu_limit"),
        dtype=dtype,
        param_dtype=dtype,
    )


def read_config(settings: Settings, dtype: str) -> ModelConfig:
    """The config of the same model here: each layer is named, since attention and routing change from one to the next."""
    for name in ("attention_bias", "mlp_bias"):
        settings.only(name, False)
    settings.only("num_key_value_heads", 1)
    shared, moe = common.sizes(settings, dtype), experts_config(settings, dtype)
    hashed = dataclasses.replace(moe, select="hash", hash_vocab_size=shared["vocab_size"])
    routing = {"moe": moe, "hash_moe": hashed}
    types, ffns = settings.get("layer_types"), settings.get("mlp_layer_types")
    kinds = {name: attention_kind(settings, name) for name in dict.fromkeys(types)}
    if len(types) != len(ffns):
        settings.refuse(f"layer_types of {len(types)} layers and mlp_layer_types of {len(ffns)}", "equally many are")
    pairs = zip(types, ffns, strict=True)
    layers = tuple(LayerConfig(kinds[attention], routing[ffn]) for attention, ffn in pairs)
    streams = HyperConnectionConfig(
        streams=settings.get("hc_mult"),
        sinkhorn_iters=settings.get("hc_sinkhorn_iters"),
        eps=settings.get("hc_eps"),
        norm_eps=settings.get("rms_norm_eps"),
    )
    return ModelConfig(attention=kinds[types[0]], moe=moe, first_layers=layers, residual=streams, **shared)


def prediction_layer(name: str, settings: Settings) -> bool:
    """Whether a tensor belongs to the layers for multi-token prediction, which Transformers leaves out as well."""
    return re.match(r"(model\.)?mtp\.", name) is not None


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_config`."""
    kinds, streams = [layer.attention for layer in config.layers], config.residual
    known = all(isinstance(kind, tuple(KINDS.values())) for kind in kinds)
    routed = [layer.moe for layer in config.layers]
    moe = next((one for one in routed if one is not None and one.select != "hash"), None)
    if not isinstance(streams, HyperConnectionConfig) or not known or moe is None or None in routed:
        raise UserError("it has not hyper-connections, a window in each layer, and experts that a router chooses")
    if moe.swiglu_limit is None:
        raise UserError(
            "swiglu_limit=None, but Transformers always has a limit; a large one, such as 1e6, changes nothing"
        )
    found = common.written_sizes(config, "DeepseekV4ForCausalLM", "deepseek_v4") | _written_attention(kinds)
    return found | {
        "mlp_layer_types": ["hash_moe" if one is not None and one.select == "hash" else "moe" for one in routed],
        "moe_intermediate_size": moe.d_expert,
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "n_shared_experts": moe.num_shared_experts,
        "scoring_func": moe.score,
        "norm_topk_prob": moe.normalize_weights,
        "routed_scaling_factor": float(moe.routed_scaling_factor),
        "swiglu_limit": moe.swiglu_limit,
        "hc_mult": streams.streams,
        "hc_sinkhorn_iters": streams.sinkhorn_iters,
        "hc_eps": streams.eps,
        "num_nextn_predict_layers": 0,
    }


def _written_attention(kinds: list[Any]) -> dict[str, Any]:
    """What config.json says of the attention of all layers."""
    one = kinds[0]
    rope = {}
    for kind in kinds:
        rope["main" if isinstance(kind, SlidingWindowConfig) else "compress"] = _written_rope(kind)
    rope.setdefault("main", rope[next(iter(rope))])
    rope.setdefault("compress", rope["main"])
    index = next((kind for kind in kinds if isinstance(kind, CompressedSparseConfig)), None)
    found = {
        "layer_types": [f"{kind.kind}_attention" for kind in kinds],
        "compress_rates": {
            f"{kind.kind}_attention": kind.ratio for kind in kinds if not isinstance(kind, SlidingWindowConfig)
        },
        "num_attention_heads": one.num_heads,
        "num_key_value_heads": 1,
        "head_dim": one.head_dim,
        "qk_rope_head_dim": one.rope_dim,
        "q_lora_rank": one.q_rank,
        "sliding_window": one.window,
        "o_groups": one.out_groups,
        "o_lora_rank": one.out_rank,
        "rope_parameters": rope,
    }
    if index is not None:
        found |= {
            "index_n_heads": index.index_heads,
            "index_head_dim": index.index_dim,
            "index_topk": index.index_top_k,
        }
    return found


def _written_rope(kind: Any) -> dict[str, Any]:
    share = {"partial_rotary_factor": common.rotary_share(kind.rope_dim, kind.head_dim)}
    found = written_rope(kind.rope_theta, kind.yarn) | share
    return found if kind.yarn is None else found | {"attention_factor": 1.0}


LAYOUT = Layout("deepseek_v4", read_config, rows, write_config, ignored=prediction_layer)
