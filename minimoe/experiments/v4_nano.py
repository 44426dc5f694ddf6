"""How good does DeepSeek-V4's whole block become at the size of ``nano``, for the same tokens?

``v4-nano`` has all parts at once: compressed attention, hyper-connections, a hash-routed first layer, the clamp, a head for
multi-token prediction. It is trained by Muon, as V4 was, on the tokens that the package's ``nano`` saw: 3,000 steps,
6.1 million. Two parts of the recipe change at once against ``nano``, the block and the optimizer, so ``nano`` is also
trained by Muon, for as long: the distance between these two is the block's.

Two thirds of the distance are the optimizer's: 1.66 bits per byte, 1.56 with Muon, 1.51 with the block as well. The last step
is no proof: there is one seed, and in ``v4-parts`` seeds alone lie 0.06 apart. The trained model is the one that the package
ships as ``v4-nano``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimoe.experiments.mtp import drafted
from minimoe.experiments.run import Run
from minimoe.experiments.v4_parts import MUON_RATE

STEPS = 3000  # as the experiment ``nano``


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``v4-nano`` and ``nano``, both by Muon, for the tokens of the package's ``nano``."""
    changes = {"steps": STEPS, "eval_every": 500, "optimizer": "muon", "learning_rate": MUON_RATE}
    return [
        Run("v4-nano", "v4-nano", changes, scores=(drafted,)),
        Run("nano", "nano", changes),
    ]
