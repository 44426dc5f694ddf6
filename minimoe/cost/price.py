"""Dollars per million tokens from a roofline: a lower bound, made of assumptions that are all named."""

from __future__ import annotations

from minimoe.config import ModelConfig
from minimoe.cost.assumptions import Assumptions
from minimoe.cost.hardware import Chip
from minimoe.cost.published import PublishedModel
from minimoe.cost.roofline import Step
from minimoe.cost.training import mean_forward_flops


def dollars_per_million(step: Step, assumptions: Assumptions) -> int | float:
    """Of tokens that are written: ``chips * dollars an hour * hours of a step / (sequences * busy)``.

    Example:
      >>> from minimoe.cost import Assumptions, chip, decode_step, published_model
      >>> assumed = Assumptions(dollars_per_hour=2)
      >>> step = decode_step(published_model("deepseek-v4-flash"), chip("H800"), 256, 4096, assumed)
      >>> f"{dollars_per_million(step, assumed):.2f}"
      '0.12'
    """
    paid = step.chips * assumptions.dollars_per_hour * step.seconds / 3600
    return 1e6 * paid / (step.traffic.batch * assumptions.busy)


def dollars_per_million_read(
    model: ModelConfig | PublishedModel, chip: Chip, context: int, assumptions: Assumptions
) -> int | float:
    """Of tokens of a prompt of ``context`` tokens, which are bound by compute: all of them share one read of the weights."""
    peak = chip.peak(assumptions.kind(model, chip)) * assumptions.compute_efficiency
    hours = mean_forward_flops(model, context) / peak / 3600
    return 1e6 * hours * assumptions.dollars_per_hour / assumptions.busy
