"""Accounting: parameters, FLOPs and cache bytes as formulas on a config, ours or a published one."""

from minimoe.cost.account import Account, account
from minimoe.cost.cache import kv_bytes_per_token
from minimoe.cost.flops import (
    forward_flops_per_token,
    moe_layer_flops,
    mtp_flops_per_token,
    training_flops_per_token,
)
from minimoe.cost.params import ParamCount, count_params
from minimoe.cost.published import (
    WEIGHTINGS,
    PublishedModel,
    Weighting,
    flops_shares,
    gqa_bytes_per_token,
    published_model,
    published_names,
)

__all__ = [
    "WEIGHTINGS",
    "Account",
    "ParamCount",
    "PublishedModel",
    "Weighting",
    "account",
    "count_params",
    "flops_shares",
    "forward_flops_per_token",
    "gqa_bytes_per_token",
    "kv_bytes_per_token",
    "moe_layer_flops",
    "mtp_flops_per_token",
    "published_model",
    "published_names",
    "training_flops_per_token",
]
