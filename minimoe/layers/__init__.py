"""Small parts that every other room uses: rotary positions, RMSNorm, SwiGLU, initial weights, masks."""

from minimoe.layers.hyper import HyperConnectionConfig
from minimoe.layers.initializers import fan_in
from minimoe.layers.masks import as_mask
from minimoe.layers.norm import RMSNorm, norm_params
from minimoe.layers.residual import ADD, RESIDUALS, AddConfig, ResidualConfig
from minimoe.layers.rope import apply_rope, rope_angles
from minimoe.layers.swiglu import SwiGLU, clamp_gate_up, swiglu, swiglu_params

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
