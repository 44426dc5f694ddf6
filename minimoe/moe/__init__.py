"""Mixture of Experts: routing, balancing, dispatch and the layer that joins them."""

from minimoe.moe.accounting import DispatchFlops, dispatch_flops
from minimoe.moe.balance import (
    bias_update,
    global_balance_loss,
    importance_loss,
    load_balance_loss,
    sequence_balance_loss,
    z_loss,
)
from minimoe.moe.capacity import capacity_dispatch, drop_rate, expert_capacity
from minimoe.moe.dispatch import DISPATCHERS, dense_dispatch, depends_on_batch, dropless_dispatch, loop_dispatch
from minimoe.moe.independence import experts_choose, sparse_layers, without_drops
from minimoe.moe.layer import Experts, MoELayer, with_dispatch
from minimoe.moe.measures import (
    dead_experts,
    global_max_violation,
    load_cv,
    load_entropy,
    max_violation,
    stack_loads,
    straggler_factor,
)
from minimoe.moe.pairs import one_hot_experts, row_shares, used_experts, weights_by_expert
from minimoe.moe.ragged import ragged_dispatch
from minimoe.moe.routing import (
    AFFINITIES,
    HashTable,
    Router,
    RouterBias,
    Routing,
    combine_weights,
    expert_load,
    normalized_weights,
)
from minimoe.moe.selectors import (
    SELECTORS,
    Selector,
    make_hash_table,
    noisy_logits,
    select_expert_choice,
    select_group_limited,
    select_hash,
    select_topk,
)
from minimoe.moe.specialisation import mutual_information

__all__ = [
    "AFFINITIES",
    "DISPATCHERS",
    "SELECTORS",
    "DispatchFlops",
    "Experts",
    "HashTable",
    "MoELayer",
    "Router",
    "RouterBias",
    "Routing",
    "Selector",
    "bias_update",
    "capacity_dispatch",
    "combine_weights",
    "dead_experts",
    "dense_dispatch",
    "depends_on_batch",
    "dispatch_flops",
    "drop_rate",
    "dropless_dispatch",
    "expert_capacity",
    "expert_load",
    "experts_choose",
    "global_balance_loss",
    "global_max_violation",
    "importance_loss",
    "load_balance_loss",
    "load_cv",
    "load_entropy",
    "loop_dispatch",
    "make_hash_table",
    "max_violation",
    "mutual_information",
    "noisy_logits",
    "normalized_weights",
    "one_hot_experts",
    "ragged_dispatch",
    "row_shares",
    "select_expert_choice",
    "select_group_limited",
    "select_hash",
    "select_topk",
    "sequence_balance_loss",
    "sparse_layers",
    "stack_loads",
    "straggler_factor",
    "used_experts",
    "weights_by_expert",
    "with_dispatch",
    "without_drops",
    "z_loss",
]
