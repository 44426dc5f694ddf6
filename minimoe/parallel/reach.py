"""How many devices a token has to reach: the expected number, with and without a limit on groups.

Axes: E experts, K experts per token, N devices along the mesh axis ``expert``.
"""

from __future__ import annotations

import math

from minimoe.checks import whole
from minimoe.config import MoEConfig
from minimoe.errors import UserError

SLACK = 1.25  # rows of a round over the mean


def devices_per_token(config: MoEConfig, devices: int) -> float:
    """Devices that hold at least one of a token's experts, on average, if every choice is equally likely.

    ``N * (1 - C(E - E/N, K) / C(E, K))``. Under a group limit the groups are chosen first, and then K experts of those.

    Args:
      config: of the layer. devices: N, a divisor of E.

    Raises:
      UserError: if ``devices`` does not divide E, or groups and devices cut across each other.

    Example:
      >>> sizes = {"d_model": 8, "d_expert": 8, "num_experts": 16, "top_k": 4}
      >>> limited = MoEConfig(**sizes, select="group_limited", num_groups=4, top_k_groups=2)
      >>> round(devices_per_token(MoEConfig(**sizes), 4), 2), round(devices_per_token(limited, 4), 2)
      (2.91, 1.97)
    """
    experts, top_k = config.num_experts, config.top_k
    _check_devices(config, devices)
    if config.facts.lists_all_experts:
        return float(devices)  # each expert chooses among all tokens: no bound but this one
    groups, kept = (config.num_groups, config.top_k_groups) if config.select == "group_limited" else (1, 1)
    size, held = experts // groups, experts // devices
    if held % size and size % held:
        raise UserError(f"groups of {size} experts and devices with {held} cut across each other; change num_groups")
    open_experts = kept * size
    if held < size:  # a group spans devices
        return devices * kept / groups * _hit(open_experts, held, top_k)
    whole_groups = held // size
    ways = math.comb(groups, kept)
    total = 0.0
    for here in range(1, min(whole_groups, kept) + 1):
        share = math.comb(whole_groups, here) * math.comb(groups - whole_groups, kept - here) / ways
        total += share * _hit(open_experts, here * size, top_k)
    return devices * total


def _check_devices(config: MoEConfig, devices: int) -> None:
    whole("devices", devices, 1, config.num_experts)
    if config.num_experts % devices:
        raise UserError(f"devices={devices} does not divide num_experts={config.num_experts}; choose a divisor")


def _hit(experts: int, held: int, top_k: int) -> float:
    """Probability that at least one of K different experts is among those held."""
    return 1 - math.comb(experts - held, top_k) / math.comb(experts, top_k)


def rows_per_device(config: MoEConfig, devices: int, tokens: int) -> int:
    """R: rows that one device with ``tokens`` tokens sends to each of ``devices`` in a round of ``rows="mean"``.

    The mean times `SLACK`, rounded up to a multiple of 8; never above ``tokens``, which has room for all.

    Raises:
      UserError: if ``devices`` does not divide E, or ``tokens`` is below 0.

    Example:
      >>> rows_per_device(MoEConfig(d_model=8, d_expert=8, num_experts=16, top_k=2), 4, 256)
      144
    """
    _check_devices(config, devices)
    whole("tokens", tokens, 0)
    try:
        reached = devices_per_token(config, devices)
    except UserError:  # groups that cut across devices: as if there were no limit
        reached = devices * _hit(config.num_experts, config.num_experts // devices, config.top_k)
    return min(tokens, 8 * math.ceil(SLACK * tokens * reached / devices / 8))
