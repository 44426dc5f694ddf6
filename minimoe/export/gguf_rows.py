"""Our arrays as llama.cpp names them: a table like those of `minimoe.hub.layouts`, for the two families that both know.

    ours                            theirs
    [D, H] attention.q_proj    <->  [H, D] attn_q.weight                                  in "glm4moe"
                                    the same, each head's halves taken in turn            in "llama", which has Mixtral
    [E, D, 2F] gate_up_proj    <->  [E, F, D] ffn_gate_exps.weight and ffn_up_exps.weight

llama.cpp turns the halves of a head in "glm4moe", as we do, and pairs of neighbours in "llama".

Axes: D model width, F hidden width, E experts, H heads times their width.
"""

from __future__ import annotations

import numpy as np

from minimoe.attention import GroupedQueryConfig
from minimoe.config import LayerConfig, ModelConfig
from minimoe.errors import UserError
from minimoe.hub.layouts.layout import SWAP, ZERO, Change, Row, column_order, same, side_by_side, swapped

ARCHITECTURES = {"glm4_moe": "glm4moe", "mixtral": "llama"}  # from the family in Transformers
ONCE = {
    "embed.embedding": same("token_embd.weight"),
    "norm.scale": same("output_norm.weight"),
    "head.kernel": swapped("output.weight"),
}
ATTENTION = {
    "attention_norm.scale": same("attn_norm.weight"),
    "attention.v_proj.kernel": swapped("attn_v.weight"),
    "attention.o_proj.kernel": swapped("attn_output.weight"),
}
BIASES = {f"attention.{name}_proj.bias": same(f"attn_{name}.bias") for name in "qkv"}
QK_NORMS = {f"attention.{name}_norm.scale": same(f"attn_{name}_norm.weight") for name in "qk"}
EXPERTS = {
    "ffn.router.kernel": swapped("ffn_gate_inp.weight"),
    "ffn.experts.gate_up_proj": side_by_side("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    "ffn.experts.down_proj": swapped("ffn_down_exps.weight"),
}
SHARED = {
    "ffn.shared.gate_up_proj.kernel": side_by_side("ffn_gate_shexp.weight", "ffn_up_shexp.weight"),
    "ffn.shared.down_proj.kernel": swapped("ffn_down_shexp.weight"),
}
DENSE = {
    "ffn.gate_up_proj.kernel": side_by_side("ffn_gate.weight", "ffn_up.weight"),
    "ffn.down_proj.kernel": swapped("ffn_down.weight"),
}


def architecture_of(config: ModelConfig, family: str) -> str:
    """llama.cpp's name for a family of Transformers.

    Raises:
      UserError: for a model that llama.cpp would read and compute otherwise, with the reason.
    """
    if family not in ARCHITECTURES:
        known = " and ".join(ARCHITECTURES)
        raise UserError(f"GGUF is written for {known}, and this model is a {family}; choose another --format")
    if all(layer.moe is None for layer in config.layers):  # whose expert count would be 0
        raise UserError("glm4moe of llama.cpp needs experts, and this model is dense; choose another --format")
    for moe in (layer.moe for layer in config.layers if family == "glm4_moe" and layer.moe is not None):
        if moe.num_groups > 1:  # it would choose among all experts
            raise UserError(f"glm4moe of llama.cpp has no groups, and this model has num_groups={moe.num_groups}")
        if not moe.num_shared_experts:  # it would add what goes into the layer in the shared expert's place
            raise UserError("glm4moe of llama.cpp needs a shared expert, and this model has num_shared_experts=0")
    return ARCHITECTURES[family]


def rows(config: ModelConfig, architecture: str) -> dict[str, Row]:
    """The whole table, by our names."""
    found = {ours: row for ours, row in ONCE.items() if not (ours == "head.kernel" and config.tie_embeddings)}
    for i, layer in enumerate(config.layers):
        table = _layer(layer, architecture)
        found |= {f"layers.{i}.{ours}": row.within(f"blk.{i}.") for ours, row in table.items()}
    return found


def _layer(layer: LayerConfig, architecture: str) -> dict[str, Row]:
    attention, plain = layer.attention, architecture == "llama"
    assert isinstance(attention, GroupedQueryConfig)  # the families have no other
    found = ATTENTION | {"ffn_norm.scale": same("ffn_norm.weight" if plain else "post_attention_norm.weight")}
    for name, heads in (("q", attention.num_heads), ("k", attention.num_kv_heads)):
        change = SWAP.then(in_turn(heads, attention.head_dim)) if plain else SWAP
        found[f"attention.{name}_proj.kernel"] = Row((f"attn_{name}.weight",), change)
    found |= BIASES if attention.bias else {}
    found |= QK_NORMS if attention.qk_norm else {}
    if layer.moe is None:
        return found | DENSE
    bias = ZERO if plain else same("exp_probs_b.bias")
    return found | EXPERTS | {"ffn.router.bias": bias} | (SHARED if layer.moe.num_shared_experts else {})


def in_turn(heads: int, width: int) -> Change:
    """From halves to pairs: the columns 0, 1, 2, 3 of a head of width 4 stand at 0, 2, 1, 3 there.

    Example:
      >>> in_turn(1, 4).write(np.arange(4))
      array([0, 2, 1, 3])
    """
    head = np.arange(width).reshape(-1, 2).T.reshape(-1)
    return column_order((np.arange(heads)[:, None] * width + head).reshape(-1))
