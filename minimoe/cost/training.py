"""What training costs: FLOPs a token, hours from a peak and a utilisation, and what the reports themselves say.

    hours = FLOPs a token * tokens / (peak * utilisation * 3600)

Of DeepSeek-V3 the hours are published, so the utilisation follows. Of DeepSeek-V4 they are not: `training_range` gives
what V3's utilisation would mean.

References:
  `DeepSeek-V3 <https://arxiv.org/abs/2412.19437>`_, section 1.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from minimoe.attention.shared_kv_config import mean_visible
from minimoe.checks import number
from minimoe.config import ModelConfig
from minimoe.cost.assumptions import published_run
from minimoe.cost.flops import forward_flops_per_token, training_flops_per_token
from minimoe.cost.hardware import Chip, chip
from minimoe.cost.published import PublishedModel, published_model
from minimoe.cost.published_attention import SharedCounts
from minimoe.errors import UserError

STATED = "6 * active parameters"
# What V4 may have reached, as a share of V3's rate: nothing is published, so the range is wide on purpose.
FASTER_AND_SLOWER = (1.25, 0.75)


def mean_forward_flops(model: ModelConfig | PublishedModel, context: int) -> int | float:
    """Forward FLOPs of a token, averaged over the positions of a sequence, in the form that training uses.

    Latent attention makes keys and values there, which is cheaper than the absorbed form of decoding.
    """
    if not isinstance(model, PublishedModel):
        return forward_flops_per_token(model, context)
    total = 2.0 * model.params_active
    for kind, layers in model.attention:
        if isinstance(kind, SharedCounts):
            seen = mean_visible(context, 1, kind.window)
            if kind.ratio:
                seen += mean_visible(context, kind.ratio, kind.index_top_k or None)
            entries = mean_visible(context, kind.ratio) if kind.ratio else 0
            total += layers * 4 * kind.heads * kind.head_dim * seen
        else:
            entries = mean_visible(context, 1)
            seen = mean_visible(context, 1, kind.index_top_k or None)
            total += layers * 2 * kind.heads * (kind.nope + kind.rope + kind.value) * seen
        total += layers * 2 * kind.index_heads * kind.index_dim * entries
    return total


def train_flops(model: ModelConfig | PublishedModel, context: int) -> int | float:
    """FLOPs of a training token: forward, and a backward that costs twice as much. Multi-token prediction is left out of
    published models.

    Example:
      >>> f"{train_flops(published_model('deepseek-v3'), 4096) / 1e9:.0f} GFLOPs"
      '250 GFLOPs'
    """
    if isinstance(model, PublishedModel):
        return 3 * mean_forward_flops(model, context)
    return training_flops_per_token(model, context)


def training_hours(
    model: ModelConfig | PublishedModel,
    tokens: int | float,
    on: Chip,
    *,
    utilisation: int | float,
    compute: str = "bf16",
    context: int = 4096,
) -> int | float:
    """Chip hours for ``tokens`` tokens.

    Args:
      utilisation: reached share of the peak, 0 to 1. compute: whose peak, one of `minimoe.cost.PEAKS`.

    Example:
      >>> hours = training_hours(published_model("deepseek-v3"), 14.8e12, chip("H800"), utilisation=0.39)
      >>> f"{hours / 1e6:.2f} million hours"
      '2.67 million hours'
    """
    number("utilisation", utilisation, 0, 1, ends="(]", hint="0.4 is good")
    return train_flops(model, context) * tokens / (on.peak(compute) * utilisation * 3600)


@dataclasses.dataclass(frozen=True)
class ReportedTraining:
    """The figures of the report on DeepSeek-V3, and what follows from them.

    Attributes:
      hours: by stage, as reported. recomputed: hours of pre-training from tokens and hours per trillion tokens.
      total, dollars: of all stages. days_per_trillion: on the reported number of chips.
      rate: FLOP/s a chip that pre-training reached, by how FLOPs are counted. utilisation: of the BF16 peak.
    """

    model: str
    chip: str
    hours: dict[str, int | float]
    recomputed: int | float
    total: int | float
    dollars: int | float
    days_per_trillion: int | float
    rate: dict[str, int | float]
    utilisation: dict[str, int | float]


def reported_training(name: str = "deepseek-v3") -> ReportedTraining:
    """The reported hours of training, checked against each other.

    Raises:
      UserError: for a model whose hours are not published.

    Example:
      >>> v3 = reported_training()
      >>> f"{v3.total / 1e6:.3f}M hours, {v3.dollars / 1e6:.3f}M dollars"
      '2.788M hours, 5.576M dollars'
    """
    run = published_run(name)
    if "hours" not in run:
        raise UserError(f"the hours that trained {name} are not published; of deepseek-v3 they are")
    on, tokens, hours = chip(run["hours_chip"]), run["train_tokens"], run["hours"]
    counted = _counted(published_model(name))
    rate = {how: flops * tokens / (hours["pre-training"] * 3600) for how, flops in counted.items()}
    return ReportedTraining(
        name,
        on.name,
        dict(hours),
        recomputed=tokens / 1e12 * run["hours_per_trillion_tokens"],
        total=sum(hours.values()),
        dollars=sum(hours.values()) * run["dollars_per_hour"],
        days_per_trillion=run["hours_per_trillion_tokens"] / run["hours_chips"] / 24,
        rate=rate,
        utilisation={how: each / on.peak("bf16") for how, each in rate.items()},
    )


def training_range(name: str) -> dict[str, Any]:
    """Chip hours of pre-training on V3's chips, as a range: V3's rate, a quarter more, a quarter less, two ways to count.

    Not a report: nothing is published of the hardware, the hours or the precision that trained V4.

    Example:
      >>> found = training_range("deepseek-v4-flash")
      >>> [f"{hours / 1e6:.1f}M" for hours in found["range"]]
      ['1.6M', '2.8M']
    """
    run, v3 = published_run(name), reported_training()
    if "train_tokens" not in run:
        raise UserError(f"the tokens that trained {name} are not published")
    counted = _counted(published_model(name))
    hours = {how: counted[how] * run["train_tokens"] / v3.rate[how] / 3600 for how in counted}
    low, high = (pick(hours.values()) / share for pick, share in zip((min, max), FASTER_AND_SLOWER, strict=True))
    price = published_run("deepseek-v3")["dollars_per_hour"]
    return {
        "model": name,
        "tokens": run["train_tokens"],
        "chip": v3.chip,
        "hours_at_v3_rate": hours,
        "range": [low, high],
        "dollars_range": [low * price, high * price],
    }


def _counted(model: PublishedModel) -> dict[str, int | float]:
    """FLOPs of a training token in two conventions."""
    return {STATED: 6.0 * model.params_active, "attention at 4096 tokens too": train_flops(model, 4096)}
