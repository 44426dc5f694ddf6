"""How good does ``nano`` become with ten times the tokens of the tour?

One run of the preset ``nano``, 3,000 steps. The trained model is the one that the package ships as ``nano``. The students
that learn to reason, and the specialists, begin from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimoe.experiments.run import Run


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``nano`` for six million tokens, ten times the tour's: what the package ships."""
    return [Run("nano", "nano", {"steps": 3000, "eval_every": 500})]
