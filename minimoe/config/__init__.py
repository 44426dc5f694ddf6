"""Configurations: frozen dataclasses that refuse impossible values when they are made, and the presets."""

from minimoe.config.dicts import from_fields
from minimoe.config.layer import LayerConfig
from minimoe.config.model import ModelConfig
from minimoe.config.moe import DISPATCHES, SCORES, MoEConfig
from minimoe.config.mtp import MTPConfig
from minimoe.config.presets import PRESETS
from minimoe.config.selectors import SELECTORS, SelectorFacts

__all__ = [
    "DISPATCHES",
    "PRESETS",
    "SCORES",
    "SELECTORS",
    "LayerConfig",
    "MTPConfig",
    "MoEConfig",
    "ModelConfig",
    "SelectorFacts",
    "from_fields",
]
