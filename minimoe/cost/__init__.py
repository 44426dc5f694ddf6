"""Accounting: parameters, FLOPs and cache bytes as formulas on a config, ours or a published one; times and prices too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minimoe.cost.account import Account, account
from minimoe.cost.assumptions import Assumptions, published_run, weight_bits
from minimoe.cost.cache import kv_bytes_per_token
from minimoe.cost.export_cut import CutEffect, export_cut, export_effect
from minimoe.cost.flops import (
    forward_flops_per_token,
    moe_layer_flops,
    mtp_flops_per_token,
    training_flops_per_token,
)
from minimoe.cost.hardware import Chip, Number, chip, chip_names
from minimoe.cost.machine import Machine
from minimoe.cost.params import ParamCount, count_params
from minimoe.cost.price import dollars_per_million, dollars_per_million_read, quote
from minimoe.cost.published import (
    WEIGHTINGS,
    PublishedModel,
    Weighting,
    flops_shares,
    gqa_bytes_per_token,
    published_model,
    published_names,
)
from minimoe.cost.roofline import Step, communication_bound, decode_step
from minimoe.cost.traffic import Traffic, cache_read_bytes, decode_traffic, expected_distinct_experts
from minimoe.cost.training import (
    ReportedTraining,
    reported_training,
    train_flops,
    training_hours,
    training_range,
)
from minimoe.lazy import lazy_names

if TYPE_CHECKING:
    from minimoe.cost.exchange import rows_between
    from minimoe.cost.machine_clock import measure_machine
    from minimoe.cost.predicted import predicted_seconds
    from minimoe.cost.program import Work, work_of

__all__ = [
    "WEIGHTINGS",
    "Account",
    "Assumptions",
    "Chip",
    "CutEffect",
    "Machine",
    "Number",
    "ParamCount",
    "PublishedModel",
    "ReportedTraining",
    "Step",
    "Traffic",
    "Weighting",
    "Work",
    "account",
    "cache_read_bytes",
    "chip",
    "chip_names",
    "communication_bound",
    "count_params",
    "decode_step",
    "decode_traffic",
    "dollars_per_million",
    "dollars_per_million_read",
    "expected_distinct_experts",
    "export_cut",
    "export_effect",
    "flops_shares",
    "forward_flops_per_token",
    "gqa_bytes_per_token",
    "kv_bytes_per_token",
    "measure_machine",
    "moe_layer_flops",
    "mtp_flops_per_token",
    "predicted_seconds",
    "published_model",
    "published_names",
    "published_run",
    "quote",
    "reported_training",
    "rows_between",
    "train_flops",
    "training_flops_per_token",
    "training_hours",
    "training_range",
    "weight_bits",
    "work_of",
]

# These load JAX, which formulas do without.
_HOMES = {
    "exchange": "rows_between",
    "machine_clock": "measure_machine",
    "predicted": "predicted_seconds",
    "program": "Work work_of",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
