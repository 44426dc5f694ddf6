"""How good does DeepSeek-V4's whole block become at the size of ``small``, for the same tokens?

``v4-small`` is trained by the recipe of ``small``: the same text in the same order, 6,500 steps, AdamW, the same rates. So
the two differ in their blocks alone: 1.430 bits per byte against 1.429, with a cache 18 times smaller at 256 tokens.

There is one seed: the distance between the two is a fact about these two models. The trained model is the one that the
package ships as ``v4-small``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimoe.experiments.mtp import drafted
from minimoe.experiments.run import Run


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``v4-small`` by the recipe of ``small``."""
    return [Run("v4-small", "v4-small", scores=(drafted,))]
