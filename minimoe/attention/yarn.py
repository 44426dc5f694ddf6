"""Frequencies of rotary positions, and how YaRN stretches them for long contexts.

YaRN looks at how often a pair turns within the length trained before. With the ramp g going from 0 to 1:

    turns within that length     more than beta_fast     between        less than beta_slow
    frequency                    f                       mixed          f / factor

    f' = (1 - g) f + g f / factor                      (equation 23 in the report on YaRN)

Axis: R rotary dims.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from minimoe.checks import number_fields, require, whole_fields


@dataclasses.dataclass(frozen=True)
class YarnConfig:
    """Frequencies for contexts longer than those of training.

    Args:
      factor: how many times longer the context becomes, at least 1. original_length: the length trained before, in tokens.
      beta_fast: turns within ``original_length`` above which a frequency stays. beta_slow: below which it is divided.
      mscale: weight of ``ln(factor)`` in the size of cosine and sine, see `wave_scale`.
      mscale_all_dim: its weight in the scale of the scores, see `score_scale`.

    DeepSeek-V3 has 1 for both: only its scores are scaled. DeepSeek-V4 has 0 for both: nothing is. Configs of Transformers
    with neither scale cosine and sine; that is ``mscale=1``.

    Raises:
      UserError: naming the value and the repair.

    Example:
      >>> yarn = YarnConfig(factor=40, original_length=4096, mscale=1, mscale_all_dim=1)
      >>> yarn.wave_scale, round(yarn.score_scale, 4)
      (1.0, 1.8739)

    References:
      Peng et al., `YaRN <https://arxiv.org/abs/2309.00071>`_, section 3.
    """

    factor: int | float
    original_length: int
    beta_fast: int | float = 32.0
    beta_slow: int | float = 1.0
    mscale: int | float = 0.0
    mscale_all_dim: int | float = 0.0

    def __post_init__(self) -> None:
        number_fields(self, "factor", low=1, high=1e6, hint="use yarn=None for no change")
        whole_fields(self, "original_length")
        number_fields(self, "beta_fast", "beta_slow", low=0, high=1e6, ends="()", hint="32 and 1 are usual")
        fast, slow = self.beta_fast, self.beta_slow
        require(fast > slow, self, f"beta_fast={fast} must be above beta_slow={slow}; exchange them")
        number_fields(self, "mscale", "mscale_all_dim", low=0, high=1e6, hint="0 scales nothing")

    @property
    def wave_scale(self) -> float:
        """Factor of cosine and sine: ``s(mscale) / s(mscale_all_dim)``, where ``s(m) = 0.1 * m * ln(factor) + 1``."""
        return self._size(self.mscale) / self._size(self.mscale_all_dim)

    @property
    def score_scale(self) -> float:
        """Factor of the scores: ``s(mscale_all_dim) ** 2``."""
        return self._size(self.mscale_all_dim) ** 2

    def _size(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1.0


def check_yarn(owner: Any) -> None:
    """A field ``yarn`` is a `YarnConfig` or None.

    Raises:
      UserError: if it is anything else.
    """
    right = owner.yarn is None or isinstance(owner.yarn, YarnConfig)
    require(right, owner, f"yarn={owner.yarn!r} must be a YarnConfig or None; ModelConfig.from_dict reads plain values")


def rotary_frequencies(rope_dim: int, theta: float, yarn: YarnConfig | None = None) -> Float[np.ndarray, "_"]:
    """Radians a position for each pair i: ``f = theta**(-2i/R)``, or what YaRN makes of it.

    Example:
      >>> rotary_frequencies(4, 100.0).tolist()
      [1.0, 0.10000000149011612]
    """
    plain = theta ** (-np.arange(0, rope_dim, 2) / rope_dim)
    if yarn is None:
        return plain.astype(np.float32)

    def pair_that_turns(times: float) -> float:
        """The (fractional) pair that turns so many times within the original length."""
        return rope_dim * math.log(yarn.original_length / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), rope_dim - 1)
    width = high - low if high != low else 0.001  # a step: no pair lies between
    ramp = np.clip((np.arange(rope_dim // 2) - low) / width, 0, 1)
    return (plain * (1 - ramp) + plain / yarn.factor * ramp).astype(np.float32)
