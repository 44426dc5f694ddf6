"""The sizes and choices of one Mixture-of-Experts layer, and what they cost.

Axis letters: T tokens, D model width, F expert hidden width, E experts, K experts per token, C slots per expert.
"""

from __future__ import annotations

import dataclasses
import math

from minimoe.checks import (
    COMPUTE_DTYPES,
    choice_fields,
    dtype_fields,
    flag_fields,
    number_fields,
    require,
    whole,
    whole_fields,
)
from minimoe.config.selectors import SELECTORS, SelectorFacts
from minimoe.layers import swiglu_params

SCORES = ("softmax", "sigmoid", "sqrtsoftplus")
DISPATCHES = ("loop", "dense", "capacity", "ragged", "dropless")


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """One Mixture-of-Experts layer.

    Args:
      d_model: D, width of the tokens that enter and leave.
      d_expert: F, hidden width of each SwiGLU expert.
      num_experts: E, routed experts.
      top_k: K, routed experts per token, 1..E.
      num_shared_experts: experts that every token uses; stored as one SwiGLU of width ``num_shared_experts * F``.
      score: how router logits become affinities.
      select: how affinities become choices; `minimoe.moe.selectors` describes each.
      dispatch: how tokens reach their experts; every dispatch computes the same function (``loop`` is the oracle),
        except that ``capacity`` drops what does not fit.
      capacity_factor: slots per expert over the mean load, above 0: for ``dispatch="capacity"``, and for
        ``select="expert_choice"``, where an expert takes as many tokens as it has slots.
      num_groups, top_k_groups: for ``select="group_limited"``: the experts form ``num_groups`` equal groups, and a
        token chooses within the best ``top_k_groups`` of them.
      hash_vocab_size: rows of the table of ``select="hash"``, one a token id; must be the model's vocabulary.
      normalize_weights: divide the chosen affinities by their sum (expert choice never does).
      routed_scaling_factor: multiplies the combine weights of routed experts, never the shared ones.
      swiglu_limit: largest gate, and largest magnitude of up, in routed and shared experts; None for no limit. DeepSeek-V4
        has 10.
      dtype: of the expert matmuls: float32, bfloat16, or float16 for a layer in a model of your own. float16 has three more
        bits, but ends at 65,504, and gradients below 6e-8 are 0: scale your loss. Router, affinities and combine weights are
        float32 always.
      param_dtype: of the stored expert weights: float32 or bfloat16.

    Raises:
      UserError: naming the value and the repair.

    Example:
      >>> MoEConfig(d_model=64, d_expert=32, num_experts=8, top_k=2).active_fraction
      0.25
    """

    d_model: int
    d_expert: int
    num_experts: int
    top_k: int
    num_shared_experts: int = 0
    score: str = "softmax"
    select: str = "topk"
    dispatch: str = "dropless"
    capacity_factor: int | float = 1.25
    num_groups: int = 1
    top_k_groups: int = 1
    hash_vocab_size: int | None = None
    normalize_weights: bool = True
    routed_scaling_factor: int | float = 1.0
    swiglu_limit: int | float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        whole_fields(self, "d_model", "d_expert", "num_experts", "top_k")
        require(
            self.top_k <= self.num_experts,
            self,
            f"top_k={self.top_k} must be in 1..num_experts={self.num_experts}; lower top_k or raise num_experts",
        )
        whole_fields(self, "num_shared_experts", least=0, hint="use 0 for none")
        number_fields(self, "routed_scaling_factor", low=1e-6, high=1e6, hint="use 1.0 for no scaling")
        if self.swiglu_limit is not None:
            number_fields(self, "swiglu_limit", low=0, high=math.inf, ends="()", hint="10 is usual, None is no limit")
        flag_fields(self, "normalize_weights")
        choice_fields(self, "score", choices=SCORES)
        choice_fields(self, "select", choices=SELECTORS)
        choice_fields(self, "dispatch", choices=DISPATCHES)
        hint = '1.25 is usual; dispatch="dropless" has no limit at all'
        number_fields(self, "capacity_factor", low=1e-6, high=1e6, hint=hint)
        self._check_groups()
        self._check_hash()
        dtype_fields(self, "dtype", choices=COMPUTE_DTYPES)
        dtype_fields(self, "param_dtype")

    def _check_groups(self) -> None:
        whole_fields(self, "num_groups", "top_k_groups")
        experts, groups, kept = self.num_experts, self.num_groups, self.top_k_groups
        even = f"num_experts={experts} must be a multiple of num_groups={groups}; change one of them"
        require(experts % groups == 0, self, even)
        known = f"top_k_groups={kept} must be in 1..num_groups={groups}; lower top_k_groups or raise num_groups"
        require(kept <= groups, self, known)
        inside = kept * (experts // groups)
        room = f"top_k={self.top_k} does not fit in top_k_groups={kept} groups of {experts // groups} experts"
        require(inside >= self.top_k, self, f"{room}; raise top_k_groups or lower top_k")

    def _check_hash(self) -> None:
        if self.hash_vocab_size is not None:
            whole_fields(self, "hash_vocab_size")
        missing = self.facts.uses_token_ids and self.hash_vocab_size is None
        needs = f'select="{self.select}" keeps one row of experts a token id'
        require(not missing, self, f"hash_vocab_size=None, but {needs}; set hash_vocab_size to the vocabulary size")

    @property
    def active_fraction(self) -> float:
        """Share of this layer's experts that one token uses, shared ones included."""
        return (self.top_k + self.num_shared_experts) / (self.num_experts + self.num_shared_experts)

    @property
    def facts(self) -> SelectorFacts:
        """What is true of the selector."""
        return SELECTORS[self.select]

    @property
    def expert_params(self) -> int:
        """Weights of one expert."""
        return swiglu_params(self.d_model, self.d_expert)

    @property
    def shared_params(self) -> int:
        """Weights of the shared experts."""
        return self.num_shared_experts * self.expert_params

    @property
    def router_params(self) -> int:
        """Weights of the router, D x E; learned noise has a second matrix, for its size."""
        return (2 if self.facts.uses_noise else 1) * self.d_model * self.num_experts

    def slots(self, tokens: int) -> int:
        """C = ``ceil(capacity_factor * T * K / E)``, never above T: no token can use a second slot of one expert."""
        slots = self.capacity_factor * tokens * self.top_k / self.num_experts
        return min(tokens, math.ceil(round(slots, 6)))  # 1.1 * 10 is a little more than 11 in binary

    def flops(self, tokens: int) -> float:
        """Useful forward FLOPs of the layer on T tokens: router, chosen experts, shared experts.

        Learned noise is left out. Where experts choose tokens, every expert fills all its slots.
        """
        by_expert = self.facts.counts_slots
        assignments = self.num_experts * self.slots(tokens) if by_expert else tokens * self.top_k
        router = tokens * 2 * self.d_model * self.num_experts
        return float(router + 2 * self.expert_params * (assignments + tokens * self.num_shared_experts))

    def fine_grained(self, factor: int) -> MoEConfig:
        """Splits every expert into ``factor`` smaller ones and chooses ``factor`` times as many.

        Expert parameters stay as they were, in all and per token; the number of possible combinations explodes. Only
        the router grows, from ``D*E`` to ``factor*D*E``.

        Args:
          factor: m, a divisor of ``d_expert``.

        Raises:
          UserError: if it does not divide ``d_expert``.

        Example:
          >>> fine = MoEConfig(d_model=64, d_expert=32, num_experts=8, top_k=2).fine_grained(4)
          >>> fine.num_experts, fine.top_k, fine.d_expert, fine.active_fraction
          (32, 8, 8, 0.25)

        References:
          Dai et al., `DeepSeekMoE <https://arxiv.org/abs/2401.06066>`_, section 3.1.
        """
        factor = whole("factor", factor, hint="1 changes nothing", owner="fine_grained")
        width = f"d_expert={self.d_expert} must be a multiple of the factor"
        require(self.d_expert % factor == 0, self, f"fine_grained({factor}): {width}; choose a divisor of d_expert")
        return dataclasses.replace(
            self,
            num_experts=factor * self.num_experts,
            top_k=factor * self.top_k,
            d_expert=self.d_expert // factor,
            num_shared_experts=factor * self.num_shared_experts,
        )
