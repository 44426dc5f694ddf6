"""The sizes of a head that predicts one token further ahead."""

from __future__ import annotations

import dataclasses

from minimoe.checks import require, whole_fields
from minimoe.config.layer import LayerConfig


@dataclasses.dataclass(frozen=True)
class MTPConfig:
    """A head for multi-token prediction, see `minimoe.model.MTPHead`.

    Args:
      layer: what its block is made of; what it leaves open, and None, is as in the last block of the model.
      depth: how many tokens further it looks; only 1 is written.

    Raises:
      UserError: for another depth, or a layer that is no LayerConfig.

    Example:
      >>> MTPConfig(LayerConfig(d_ff=512)).depth
      1
    """

    layer: LayerConfig | None = None
    depth: int = 1

    def __post_init__(self) -> None:
        right = self.layer is None or isinstance(self.layer, LayerConfig)
        require(
            right, self, f"layer={self.layer!r} must be a LayerConfig or None; ModelConfig.from_dict reads plain values"
        )
        whole_fields(self, "depth", most=1, hint="use 1")
