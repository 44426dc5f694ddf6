"""What one block of a model is made of."""

from __future__ import annotations

import dataclasses
from typing import Any

from minimoe.attention import ATTENTIONS, AttentionConfig
from minimoe.checks import require, whole_fields
from minimoe.config.moe import MoEConfig


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """What one block is made of. In a pattern, None takes what the model says for all its blocks.

    Args:
      attention: its attention.
      moe: its experts; exclusive with ``d_ff``.
      d_ff: hidden width of its dense SwiGLU.

    Example:
      >>> LayerConfig(d_ff=512).moe is None
      True
    """

    attention: AttentionConfig | None = None
    moe: MoEConfig | None = None
    d_ff: int | None = None

    def __post_init__(self) -> None:
        check_attention(self, optional=True)
        check_feed_forward(self, optional=True)


def check_attention(owner: Any, optional: bool = False) -> None:
    known = tuple(ATTENTIONS.values())
    right = isinstance(owner.attention, known) or (optional and owner.attention is None)
    kinds = f"attention={owner.attention!r} must be one of {', '.join(c.__name__ for c in known)}"
    require(right, owner, f"{kinds}; ModelConfig.from_dict reads plain values")


def check_feed_forward(owner: Any, optional: bool = False) -> None:
    """Experts or a width, not both; neither only where it is ``optional``."""
    right = owner.moe is None or isinstance(owner.moe, MoEConfig)
    require(right, owner, f"moe={owner.moe!r} must be a MoEConfig; ModelConfig.from_dict reads plain values")
    given = f"moe={'given' if owner.moe else None}, d_ff={owner.d_ff}"
    count = (owner.moe is not None) + (owner.d_ff is not None)
    fits = count == 1 or (optional and count == 0)
    require(fits, owner, f"{given}: give either moe (sparse) or d_ff (dense)")
    if owner.d_ff is not None:
        whole_fields(owner, "d_ff")
