"""Accounting: parameters, FLOPs and cache bytes as formulas on a config."""

from minimoe.cost.cache import kv_bytes_per_token
from minimoe.cost.flops import forward_flops_per_token, moe_layer_flops, training_flops_per_token
from minimoe.cost.params import ParamCount, count_params

__all__ = [
    "ParamCount",
    "count_params",
    "forward_flops_per_token",
    "kv_bytes_per_token",
    "moe_layer_flops",
    "training_flops_per_token",
]
