"""FLOPs of a dispatch: how many it executes, and how many are useful.

Axes: T tokens, D width, F expert width, E experts, K per token, C slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from minimoe.config import MoEConfig
from minimoe.errors import UserError
from minimoe.moe.capacity import expert_capacity
from minimoe.moe.dropless import BLOCK_ROWS, FEW_ASSIGNMENTS, slots_per_expert
from minimoe.moe.selectors import SELECTORS


@dataclasses.dataclass(frozen=True)
class DispatchFlops:
    """Forward FLOPs of the routed experts' matmuls of one layer; a multiply-add counts as 2.

    Attributes:
      useful: what the chosen pairs of token and expert need.
      executed: what the dispatch multiplies, zeros and unchosen experts included.
    """

    useful: float
    executed: float

    @property
    def overhead(self) -> float:
        """``executed / useful``: 1.0 when nothing is wasted; below 1 where a small capacity drops tokens."""
        return self.executed / self.useful if self.useful else 0.0


def dispatch_flops(config: MoEConfig, tokens: int, load: Sequence[int | float] | None = None) -> DispatchFlops:
    """Rows that enter experts, times ``2 * (D*2F + F*D)`` FLOPs a row; router and shared experts left out.

    Useful rows are the A = T*K assignments (E*C under expert choice). Executed are

    - ``loop``, ``dense``: E*T;
    - ``capacity``: E*C, filled or not;
    - ``ragged``: E*A on a CPU, which runs every group over all rows (an accelerator's kernel runs about A);
    - ``dropless``: E times its slots, and whole blocks of rows for each expert whose load exceeds them; A for the few
      tokens of a decoding step. It depends on the load, which is taken as even if none is given.

    Args:
      config: the layer; ``dispatch`` and ``select`` say what is counted.
      tokens: T.
      load: assignments per expert, E counts that sum to A (T for every expert under expert choice, whose unchosen
        pairs reach this dispatch too).

    Raises:
      UserError: if ``load`` has not E entries.

    Example:
      >>> config = MoEConfig(d_model=8, d_expert=16, num_experts=8, top_k=2, dispatch="dense")
      >>> flops = dispatch_flops(config, tokens=64)
      >>> flops.useful, flops.overhead
      (98304.0, 4.0)
    """
    experts, by_expert = config.num_experts, SELECTORS[config.select].lists_all_experts
    capacity = expert_capacity(tokens, config)
    assignments = tokens * (experts if by_expert else config.top_k)
    if load is not None and len(load) != experts:
        raise UserError(f"load has {len(load)} entries but num_experts={experts}; give one count per expert")
    executed: int | float = {
        "loop": experts * tokens,
        "dense": experts * tokens,
        "capacity": experts * capacity,
        "ragged": experts * assignments,
        "dropless": _dropless_rows(assignments, experts, load),
    }[config.dispatch]
    useful = experts * capacity if by_expert else assignments
    row = 2 * 3 * config.d_model * config.d_expert
    return DispatchFlops(float(row * useful), float(row * executed))


def _dropless_rows(assignments: int, num_experts: int, load: Sequence[int | float] | None) -> int | float:
    if assignments <= FEW_ASSIGNMENTS:
        return assignments
    slots = slots_per_expert(assignments, num_experts)
    over = [max(0, int(count) - slots) for count in load or []]
    return num_experts * slots + BLOCK_ROWS * sum(-(-rows // BLOCK_ROWS) for rows in over)
