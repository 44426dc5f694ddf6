"""DeepSeek-V3: multi-head latent attention, dense layers first, then sigmoid experts chosen within groups.

DeepSeek turns neighbouring pairs of numbers, ``(0, 1), (2, 3), ...``; we turn halves, ``(0, P/2), (1, P/2 + 1), ...``. A
query and a key are only ever multiplied with each other, so their columns may stand in any order if it is the same in
both. The rotary columns are therefore read in the order ``0, 2, 4, ..., 1, 3, 5, ...``: of each head in ``q_b_proj``, and
once in ``kv_a_proj``. Matrices are transposed. Gate and up of a dense or shared feed-forward are two matrices there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minimoe.attention import MultiHeadLatentConfig, YarnConfig
from minimoe.config import ModelConfig
from minimoe.errors import UserError
from minimoe.hub.layouts import common
from minimoe.hub.layouts.layout import SWAP, Layout, Row, column_order, same, swapped
from minimoe.hub.layouts.settings import Settings

LATENT_EPS = 1e-6  # of the norms of the two latents, whatever config.json says of the others


def halves(width: int, rotary: int) -> np.ndarray:
    """The order of ``width`` columns of which the last ``rotary`` are pairs and become halves.

    Example:
      >>> print(halves(7, 4))
      [0 1 2 3 5 4 6]
    """
    columns = np.arange(width)
    still, turned = columns[: width - rotary], columns[width - rotary :]
    return np.concatenate([still, turned[0::2], turned[1::2]])


def attention_rows(attention: MultiHeadLatentConfig) -> dict[str, Row]:
    """Of one layer."""
    width, rotary = attention.head_dim, attention.rope_dim
    heads = np.arange(attention.num_heads)[:, None] * width + halves(width, rotary)[None, :]
    queries = SWAP.then(column_order(heads.reshape(-1)))
    entries = SWAP.then(column_order(halves(attention.kv_rank + rotary, rotary)))
    found = {
        "attention.kv_a_proj.kernel": Row(("self_attn.kv_a_proj_with_mqa.weight",), entries),
        "attention.kv_norm.scale": same("self_attn.kv_a_layernorm.weight"),
        "attention.kv_b_proj.kernel": swapped("self_attn.kv_b_proj.weight"),
        "attention.o_proj.kernel": swapped("self_attn.o_proj.weight"),
    }
    if attention.q_rank is None:
        return found | {"attention.q_proj.kernel": Row(("self_attn.q_proj.weight",), queries)}
    return found | {
        "attention.q_a_proj.kernel": swapped("self_attn.q_a_proj.weight"),
        "attention.q_norm.scale": same("self_attn.q_a_layernorm.weight"),
        "attention.q_b_proj.kernel": Row(("self_attn.q_b_proj.weight",), queries),
    }


def rows(config: ModelConfig) -> dict[str, Row]:
    """The whole table."""
    attention = config.attention
    assert isinstance(attention, MultiHeadLatentConfig)
    always = common.NORMS | attention_rows(attention)
    return common.table(config, [always | common.feed_forward(layer) for layer in config.layers])


def yarn_of(settings: Settings) -> YarnConfig | None:
    """The stretched rotary positions of config.json, None for plain ones."""
    rope = settings.rope()
    if rope["rope_type"] == "default":
        return None
    if rope["rope_type"] != "yarn":
        settings.refuse(f"rope_type={rope['rope_type']!r}", "only 'default' and 'yarn' are")
    for name, usual in (("attention_factor", None), ("truncate", True)):
        if rope.get(name, usual) != usual:
            settings.refuse(f"{name}={rope[name]!r} of YaRN", f"only {usual!r} is")
    wave, scores = rope.get("mscale") or 0, rope.get("mscale_all_dim") or 0
    if scores and not wave:
        settings.refuse(f"mscale_all_dim={scores!r} without mscale", "only both or neither are")
    return YarnConfig(
        factor=rope["factor"],
        original_length=rope.get("original_max_position_embeddings") or settings.get("max_position_embeddings"),
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        mscale=wave if scores else 1.0,  # Transformers takes 1 unless both are given
        mscale_all_dim=scores,
    )


def read_config(settings: Settings, dtype: str) -> ModelConfig:
    """The config of the same model here."""
    settings.only("attention_bias", False)
    settings.only("rope_interleave", True)
    attention = MultiHeadLatentConfig(
        num_heads=settings.get("num_attention_heads"),
        kv_rank=settings.get("kv_lora_rank"),
        q_rank=settings.get("q_lora_rank"),
        nope_dim=settings.get("qk_nope_head_dim"),
        rope_dim=settings.get("qk_rope_head_dim"),
        v_dim=settings.get("v_head_dim"),
        rope_theta=settings.rope()["rope_theta"],
        yarn=yarn_of(settings),
        norm_eps=LATENT_EPS,
    )
    return ModelConfig(attention=attention, **common.feed_forwards(settings, dtype), **common.sizes(settings, dtype))


def written_rope(theta: int | float, yarn: YarnConfig | None) -> dict[str, Any]:
    """The inverse of `yarn_of`, with the base of the frequencies."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(theta)}
    if yarn is None:
        return rope
    rope |= {"rope_type": "yarn", "factor": float(yarn.factor)}
    rope |= {"original_max_position_embeddings": yarn.original_length}
    rope |= {"beta_fast": float(yarn.beta_fast), "beta_slow": float(yarn.beta_slow)}
    if yarn.mscale_all_dim:
        rope |= {"mscale": float(yarn.mscale), "mscale_all_dim": float(yarn.mscale_all_dim)}
    return rope


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_config`."""
    attention = config.layers[0].attention
    if not isinstance(attention, MultiHeadLatentConfig):
        raise UserError("its attention is not multi-head latent")
    return (
        common.written_sizes(config, "DeepseekV3ForCausalLM", "deepseek_v3")
        | common.written_sigmoid_experts(config)
        | {
            "num_attention_heads": attention.num_heads,
            "num_key_value_heads": attention.num_heads,
            "kv_lora_rank": attention.kv_rank,
            "q_lora_rank": attention.q_rank,
            "qk_nope_head_dim": attention.nope_dim,
            "qk_rope_head_dim": attention.rope_dim,
            "v_head_dim": attention.v_dim,
            "rope_parameters": written_rope(attention.rope_theta, attention.yarn),
            "rope_interleave": True,
            "attention_bias": False,
        }
    )


LAYOUT = Layout("deepseek_v3", read_config, rows, write_config, ignored=common.prediction_layer)
