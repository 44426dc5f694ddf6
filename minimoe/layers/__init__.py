"""Small parts that every other room uses: rotary positions, RMSNorm, SwiGLU, initial weights, masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minimoe.lazy import lazy_names

if TYPE_CHECKING:
    from minimoe.layers.feed_forward import SwiGLU, clamp_gate_up, swiglu
    from minimoe.layers.hyper_config import HyperConnectionConfig
    from minimoe.layers.initializers import fan_in
    from minimoe.layers.masks import as_mask
    from minimoe.layers.norm import RMSNorm
    from minimoe.layers.residual import ADD, RESIDUALS, AddConfig, ResidualConfig
    from minimoe.layers.rope import apply_rope, rope_angles
    from minimoe.layers.weights import norm_params, swiglu_params

__all__ = [
    "ADD",
    "RESIDUALS",
    "AddConfig",
    "HyperConnectionConfig",
    "RMSNorm",
    "ResidualConfig",
    "SwiGLU",
    "apply_rope",
    "as_mask",
    "clamp_gate_up",
    "fan_in",
    "norm_params",
    "rope_angles",
    "swiglu",
    "swiglu_params",
]

_HOMES = {
    "feed_forward": "SwiGLU clamp_gate_up swiglu",
    "hyper_config": "HyperConnectionConfig",
    "initializers": "fan_in",
    "masks": "as_mask",
    "norm": "RMSNorm",
    "residual": "ADD AddConfig RESIDUALS ResidualConfig",
    "rope": "apply_rope rope_angles",
    "weights": "norm_params swiglu_params",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
