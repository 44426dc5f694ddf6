"""Mixture of Experts: routing, balancing, dispatch and the layer that joins them."""

from minimoe.moe.balance import (
    bias_update,
    dead_experts,
    load_balance_loss,
    load_cv,
    load_entropy,
    max_violation,
    z_loss,
)
from minimoe.moe.dispatch import DISPATCHERS, dense_dispatch, dropless_dispatch, loop_dispatch
from minimoe.moe.layer import Experts, MoELayer, with_dispatch
from minimoe.moe.routing import (
    AFFINITIES,
    SELECTORS,
    Router,
    RouterBias,
    Routing,
    combine_weights,
    expert_load,
    select_topk,
)

__all__ = [
    "AFFINITIES",
    "DISPATCHERS",
    "SELECTORS",
    "Experts",
    "MoELayer",
    "Router",
    "RouterBias",
    "Routing",
    "bias_update",
    "combine_weights",
    "dead_experts",
    "dense_dispatch",
    "dropless_dispatch",
    "expert_load",
    "load_balance_loss",
    "load_cv",
    "load_entropy",
    "loop_dispatch",
    "max_violation",
    "select_topk",
    "with_dispatch",
    "z_loss",
]
