"""The ways to choose experts, by name, and what other code must know of each. How they choose is `minimoe.moe.selectors`."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class SelectorFacts:
    """What is true of a selector.

    Attributes:
      uses_bias: whether the selection bias changes a choice. Bias balancing is of no use where it does not.
      uses_token_ids: whether it looks experts up by token id, and so needs ``tokens`` and a table.
      uses_noise: whether the logits get learned noise while training (added before anything is chosen).
      lists_all_experts: whether K is E, every row of ``experts`` is 0..E-1 and ``used`` says which pairs count. Weights
        are then the affinities themselves, since how many experts a token has is not its own choice.
      counts_slots: whether an expert takes only as many tokens as it has slots. The tokens of a batch then compete.
    """

    uses_bias: bool = True
    uses_token_ids: bool = False
    uses_noise: bool = False
    lists_all_experts: bool = False
    counts_slots: bool = False


SELECTORS: dict[str, SelectorFacts] = {
    "topk": SelectorFacts(),
    "group_limited": SelectorFacts(),
    "noisy_topk": SelectorFacts(uses_noise=True),
    "hash": SelectorFacts(uses_bias=False, uses_token_ids=True),
    "expert_choice": SelectorFacts(uses_bias=False, lists_all_experts=True, counts_slots=True),
}
