"""Parameter counts from a config, by part: total, and active per token."""

from __future__ import annotations

import dataclasses

from minimoe.config import ModelConfig
from minimoe.layers import norm_params, swiglu_params


@dataclasses.dataclass(frozen=True)
class ParamCount:
    """Parameters by part. ``head`` is 0 when the embedding is tied; the selection bias is not a parameter.

    Attributes:
      embedding: V * D. head: V * D or 0. attention, norms (and residuals), router, shared (or dense feed-forward): whole
        model.
      routed: all routed experts of all layers. routed_active: those that one token uses.
      mtp: the head for multi-token prediction with its block, all of it. It is not active: only training and drafts use it.
      output_tied: whether the output head reuses the embedding.
    """

    embedding: int
    head: int
    attention: int
    norms: int
    router: int
    shared: int
    routed: int
    routed_active: int
    output_tied: bool
    mtp: int = 0

    @property
    def total(self) -> int:
        """Everything that is stored, tied matrices once."""
        trunk = self.attention + self.norms + self.router + self.shared + self.routed
        return self.embedding + self.head + trunk + self.mtp

    @property
    def active(self) -> int:
        """What one token multiplies with: the input embedding is a look-up and not counted, the output head is."""
        head = self.embedding if self.output_tied else self.head
        return head + self.attention + self.norms + self.router + self.shared + self.routed_active


def count_params(config: ModelConfig) -> ParamCount:
    """Counts from the formula alone; a test holds it against the built model.

    Under expert choice a token uses ``capacity_factor * K`` experts on average; K are counted here.

    Example:
      >>> count = count_params(ModelConfig.preset("small"))
      >>> f"{count.total / 1e6:.1f}M total, {count.active / 1e6:.1f}M active"
      '11.4M total, 3.1M active'
    """
    d, matrix = config.d_model, config.embedding_params
    residual = 2 * config.num_layers * config.residual.num_params(d) + config.residual.leave_params(d)
    attention = router = shared = routed = active = 0
    for layer, count in config.layer_counts.items():
        assert layer.attention is not None  # layer_counts leaves nothing open
        attention += count * layer.attention.num_params(d)
        if layer.moe is None:
            assert layer.d_ff is not None
            shared += count * swiglu_params(d, layer.d_ff)
            continue
        moe = layer.moe
        router += count * moe.router_params
        shared += count * moe.shared_params
        routed += count * moe.num_experts * moe.expert_params
        active += count * moe.top_k * moe.expert_params
    return ParamCount(
        embedding=matrix,
        head=0 if config.tie_embeddings else matrix,
        attention=attention,
        norms=config.norm_params + residual,
        router=router,
        shared=shared,
        routed=routed,
        routed_active=active,
        output_tied=config.tie_embeddings,
        mtp=_mtp_params(config),
    )


def _mtp_params(config: ModelConfig) -> int:
    """Of the head for multi-token prediction: M, five norms (two of them its block's), and the block with its residuals."""
    layer, d = config.mtp_layer, config.d_model
    if layer is None:
        return 0
    assert layer.attention is not None  # mtp_layer leaves nothing open
    own = 2 * d * d + 5 * norm_params(d) + 2 * config.residual.num_params(d) + config.residual.leave_params(d)
    own += layer.attention.num_params(d)
    if layer.moe is None:
        assert layer.d_ff is not None
        return own + swiglu_params(d, layer.d_ff)
    moe = layer.moe
    return own + moe.router_params + moe.shared_params + moe.num_experts * moe.expert_params
