"""Which model of Transformers a config is timed against."""

from __future__ import annotations

from typing import Any

from minimoe.bench import deepseek_v4, mixtral
from minimoe.config import ModelConfig
from minimoe.model import MoETransformer


def not_compared(config: ModelConfig) -> str | None:
    """Why there is no reference to time, a line for the reader; None when there is one."""
    reason = deepseek_v4.not_v4(config) if deepseek_v4.looks_like_v4(config) else mixtral.not_mixtral(config)
    return reason or mixtral.unavailable()


def reference_model(model: MoETransformer) -> Any:
    """The model of Transformers with the same weights."""
    if deepseek_v4.looks_like_v4(model.config):
        return deepseek_v4.v4_model(model)
    return mixtral.mixtral_model(model)
