"""Small parts that every other room uses: rotary positions, SwiGLU, initial weights. RMSNorm is `flax.nnx.RMSNorm`."""

from minimoe.layers.initializers import fan_in
from minimoe.layers.residual import ADD, RESIDUALS, AddConfig, ResidualConfig
from minimoe.layers.rope import apply_rope, rope_angles
from minimoe.layers.swiglu import SwiGLU, swiglu

__all__ = [
    "ADD",
    "RESIDUALS",
    "AddConfig",
    "ResidualConfig",
    "SwiGLU",
    "apply_rope",
    "fan_in",
    "rope_angles",
    "swiglu",
]
