"""Rows that travel when experts are divided over devices, counted from a routing.

Axes: T tokens, K experts a token, E experts, P devices. Device p has experts ``p*E/P .. (p+1)*E/P - 1`` and tokens
``p*T/P .. (p+1)*T/P - 1``. A device that has several experts of a token gets its row once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int

from minimoe.checks import require, whole


def rows_between(experts: Any, num_experts: int, devices: int) -> Int[np.ndarray, "_ _"]:
    """``[i, j]``: how many rows device i sends to device j. A row that stays at home is not sent.

    Args:
      experts: ``[T, K]`` whole numbers in 0..E-1, such as ``routing.experts``; T a multiple of P.
      num_experts: E, a multiple of P. devices: P.

    Raises:
      UserError: for sizes that P does not divide, or ids outside 0..E-1.

    Example:
      >>> rows_between([[0, 1], [2, 3]], num_experts=4, devices=2).tolist()  # both tokens find both experts at home
      [[0, 0], [0, 0]]
      >>> rows_between([[2, 3], [0, 3]], num_experts=4, devices=2).tolist()  # one row each: two experts, one device
      [[0, 1], [1, 0]]
    """
    chosen = np.asarray(experts)
    whole("devices", devices)
    whole("num_experts", num_experts, hint="give the experts of the layer")
    require(chosen.ndim == 2, "", f"experts must be [tokens, K]; the shape is {list(chosen.shape)}")
    require(
        num_experts % devices == 0 and len(chosen) % devices == 0,
        "",
        f"{num_experts} experts and {len(chosen)} tokens cannot be divided over {devices} devices; use a divisor of both",
    )
    for end in (int(chosen.min()), int(chosen.max())) if chosen.size else ():
        require(0 <= end < num_experts, "", f"experts must be in 0..{num_experts - 1}; found {end}")
    needs = np.zeros((len(chosen), devices), bool)
    needs[np.arange(len(chosen))[:, None], chosen // (num_experts // devices)] = True
    rows = needs.reshape(devices, -1, devices).sum(1, dtype=np.int64)
    np.fill_diagonal(rows, 0)
    return rows
