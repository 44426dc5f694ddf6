"""Useful floating-point operations from a config. A multiply-add counts as 2.

Ours, because XLA's cost analysis takes the larger branch of a conditional, counts a loop body once and `ragged_dot`
once per expert.
"""

from __future__ import annotations

from minimoe.config import ModelConfig, MoEConfig
from minimoe.cost.params import count_params
from minimoe.layers import swiglu_params


def forward_flops_per_token(config: ModelConfig, context: int | None = None) -> float:
    """FLOPs of one token's forward pass, averaged over the positions of a sequence of ``context`` tokens.

    ``2 * (active parameters without norms)`` for the matmuls and ``4 * N * H`` a layer and attended position;
    a token attends to ``(context + 1) / 2`` positions on average. Norms, softmax and rotations are left out (under 1%).

    Args:
      config: the model.
      context: tokens in the sequence; the config's context length by default.
    """
    context = config.context_length if context is None else context
    count = count_params(config)
    attention = sum(
        number * layer.attention.flops_per_token(config.d_model, context)
        for layer, number in config.layer_counts.items()
        if layer.attention is not None
    )
    residual = 2 * config.num_layers * config.residual.flops_per_token(config.d_model)  # two branches a block
    residual += config.residual.leave_flops_per_token(config.d_model)
    return 2.0 * (count.active - count.norms - count.attention) + attention + residual


def training_flops_per_token(config: ModelConfig, context: int | None = None) -> float:
    """Forward plus backward, which costs twice the forward: 3 times `forward_flops_per_token` and `mtp_flops_per_token`."""
    return 3 * (forward_flops_per_token(config, context) + mtp_flops_per_token(config, context))


def mtp_flops_per_token(config: ModelConfig, context: int | None = None) -> float:
    """FLOPs of the head for multi-token prediction, its use of the output head included, counted as in a forward pass.

    Training and drafts pay for it, plain decoding does not; 0 without such a head.
    """
    layer, d = config.mtp_layer, config.d_model
    if layer is None:
        return 0.0
    assert layer.attention is not None  # mtp_layer leaves nothing open
    context = config.context_length if context is None else context
    residual = 2 * config.residual.flops_per_token(d) + config.residual.leave_flops_per_token(d)
    joined = 2 * d * d * config.residual.streams
    around = 2.0 * (joined + config.embedding_params) + layer.attention.flops_per_token(d, context) + residual
    if layer.moe is None:
        assert layer.d_ff is not None
        return around + 2 * swiglu_params(d, layer.d_ff)
    moe = layer.moe
    return around + 2 * (moe.router_params + moe.shared_params + moe.top_k * moe.expert_params)


def moe_layer_flops(config: MoEConfig, tokens: int) -> float:
    """Useful forward FLOPs of one sparse layer on ``tokens`` tokens: `minimoe.MoEConfig.flops`."""
    return config.flops(tokens)
