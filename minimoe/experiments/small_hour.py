"""How good does ``small`` become in about an hour on two processor cores?

One run of the preset ``small`` by its own recipe. The record has the curve and the score of the whole validation text.
The trained model is the one that the package ships as ``small``, and other experiments begin from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimoe.experiments.run import Run


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``small`` for about an hour on two cores: the curve, and bits per byte on the whole validation text."""
    return [Run("small", "small")]
