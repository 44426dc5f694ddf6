"""minimoe: efficient Mixture-of-Experts models in JAX and Flax NNX, small enough to read.

Don't trust the headline, run it. The rooms, in reading order: layers, attention, config, moe, model, cost, data,
inference, training, quant, distill, hub, plots, exercises, doctor, bench, experiments, tour, cli. Each imports only
rooms before it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minimoe.attention.gqa_config import GroupedQueryConfig
    from minimoe.config import LayerConfig, ModelConfig, MoEConfig
    from minimoe.errors import UserError
    from minimoe.hub.pretrained import load_pretrained
    from minimoe.inference.generate import generate
    from minimoe.model.transformer import MoETransformer
    from minimoe.moe.layer import MoELayer

__version__ = "0.1.0"

# Loaded on first use, so that `import minimoe` and `minimoe --help` do not wait for JAX.
_HOME = {
    "GroupedQueryConfig": "minimoe.attention.gqa_config",
    "LayerConfig": "minimoe.config",
    "ModelConfig": "minimoe.config",
    "MoEConfig": "minimoe.config",
    "UserError": "minimoe.errors",
    "MoELayer": "minimoe.moe.layer",
    "MoETransformer": "minimoe.model.transformer",
    "generate": "minimoe.inference.generate",
    "load_pretrained": "minimoe.hub.pretrained",
}
_ROOMS = (
    "attention",
    "bench",
    "cost",
    "data",
    "distill",
    "doctor",
    "exercises",
    "experiments",
    "hub",
    "inference",
    "layers",
    "model",
    "moe",
    "parallel",
    "plots",
    "quant",
    "tour",
    "training",
)

__all__ = [
    "GroupedQueryConfig",
    "LayerConfig",
    "MoEConfig",
    "MoELayer",
    "MoETransformer",
    "ModelConfig",
    "UserError",
    "__version__",
    "generate",
    "load_pretrained",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"minimoe.{name}")
    raise AttributeError(f"module 'minimoe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
