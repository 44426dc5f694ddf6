"""Configurations: frozen dataclasses that refuse impossible values when they are made, and the presets.

Axis letters, here and everywhere (see README): B batch, L sequence, T = B*L tokens, D model width, N query heads,
M key/value heads, H head width, F expert hidden width, E experts, K experts per token, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minimoe.checks import choice_fields, dtype_fields, flag_fields, number_fields, require, whole, whole_fields
from minimoe.errors import UserError

SCORES = ("softmax", "sigmoid", "sqrtsoftplus")
SELECTORS = ("topk", "group_limited", "noisy_topk", "hash", "expert_choice")
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
      dtype: of the expert matmuls. Router, affinities and combine weights are float32 always.
      param_dtype: of the stored expert weights.

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
        flag_fields(self, "normalize_weights")
        choice_fields(self, "score", choices=SCORES)
        choice_fields(self, "select", choices=SELECTORS)
        choice_fields(self, "dispatch", choices=DISPATCHES)
        hint = '1.25 is usual; dispatch="dropless" has no limit at all'
        number_fields(self, "capacity_factor", low=1e-6, high=1e6, hint=hint)
        self._check_groups()
        self._check_hash()
        dtype_fields(self, "dtype", "param_dtype")

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
        missing = self.select == "hash" and self.hash_vocab_size is None
        needs = 'select="hash" keeps one row of experts a token id'
        require(not missing, self, f"hash_vocab_size=None, but {needs}; set hash_vocab_size to the vocabulary size")

    @property
    def active_fraction(self) -> float:
        """Share of this layer's experts that one token uses, shared ones included."""
        return (self.top_k + self.num_shared_experts) / (self.num_experts + self.num_shared_experts)

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


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model, sparse (``moe`` given) or dense (``d_ff`` given).

    Args:
      vocab_size: V. ``d_model``: D. ``num_layers``: blocks.
      num_heads: N query heads; ``num_kv_heads``: M key/value heads, a divisor of N. ``head_dim``: H, even.
      context_length: most positions one sequence may take.
      moe: the experts of every block; exclusive with ``d_ff``.
      d_ff: hidden width of a dense SwiGLU in every block.
      rope_theta: base of the rotary frequencies.
      norm_eps: inside the square root of RMSNorm.
      tie_embeddings: the output head reuses the embedding matrix.
      dropout: rate on the two branches of each block while training, 0..<1.
      dtype: of activations between the float32 islands (norms, softmax, router, loss).
      param_dtype: of stored weights.

    Example:
      >>> ModelConfig.preset("nano").moe.num_experts
      8
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int = 256
    moe: MoEConfig | None = None
    d_ff: int | None = None
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    dropout: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        whole_fields(self, "vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim")
        whole_fields(self, "context_length")
        n, m, h = self.num_heads, self.num_kv_heads, self.head_dim
        require(n % m == 0, self, f"num_heads={n} must be a multiple of num_kv_heads={m}; change one of them")
        require(h % 2 == 0, self, f"head_dim={h} must be even, because rotary embeddings turn pairs; use {h + 1}")
        number_fields(self, "dropout", low=0, high=1, hint="use 0 for none")
        number_fields(self, "rope_theta", low=1, high=1e12, hint="10000.0 is usual")
        number_fields(self, "norm_eps", low=1e-30, high=1, hint="1e-5 is usual")
        flag_fields(self, "tie_embeddings")
        dtype_fields(self, "dtype", "param_dtype")
        right = self.moe is None or isinstance(self.moe, MoEConfig)
        require(right, self, f"moe={self.moe!r} must be a MoEConfig; ModelConfig.from_dict reads plain values")
        given = f"moe={'given' if self.moe else None}, d_ff={self.d_ff}"
        require((self.moe is None) != (self.d_ff is None), self, f"{given}: give either moe (sparse) or d_ff (dense)")
        if self.moe is not None:
            widths = f"moe.d_model={self.moe.d_model} must equal d_model={self.d_model}"
            require(self.moe.d_model == self.d_model, self, f"{widths}; make them the same")
            rows = f"moe.hash_vocab_size={self.moe.hash_vocab_size} must equal vocab_size={self.vocab_size}"
            fits = self.moe.select != "hash" or self.moe.hash_vocab_size == self.vocab_size
            require(fits, self, f"{rows}, since ids choose experts; make them the same")
        else:
            whole_fields(self, "d_ff")

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """The named preset; `PRESETS` lists them.

        Raises:
          UserError: for an unknown name, listing the known ones.
        """
        if name not in PRESETS:
            raise UserError(f"preset {name!r} is not known; choose one of {', '.join(PRESETS)}")
        return PRESETS[name]

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def replace_moe(self, **changes: Any) -> ModelConfig:
        """A copy with some fields of its experts changed.

        Raises:
          UserError: if the model is dense.
        """
        if self.moe is None:
            raise UserError(
                "this model is dense (moe=None), so its experts cannot be changed; start from a sparse preset"
            )
        return dataclasses.replace(self, moe=dataclasses.replace(self.moe, **changes))

    def dense_equivalent(self) -> ModelConfig:
        """The dense model that spends the same FLOPs per token in its feed-forward layers (router left out).

        Its width is ``(top_k + num_shared_experts) * d_expert``.
        """
        if self.moe is None:
            return self
        width = (self.moe.top_k + self.moe.num_shared_experts) * self.moe.d_expert
        return dataclasses.replace(self, moe=None, d_ff=width)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`.

        Raises:
          UserError: for missing or unknown keys, naming all of them.
        """
        values = dict(values)
        if isinstance(values.get("moe"), Mapping):
            values["moe"] = from_fields(MoEConfig, values["moe"])
        return from_fields(cls, values)


def from_fields(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Builds the dataclass ``cls`` from a mapping and reports every unknown and missing key at once."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    missing = sorted(required - set(values))
    if unknown or missing:
        raise UserError(
            f"{cls.__name__}: unknown keys {unknown}, missing keys {missing}; the file is from another version"
        )
    return cls(**values)


def _sparse(d_model: int, d_expert: int, num_experts: int, **rest: Any) -> ModelConfig:
    moe = MoEConfig(d_model, d_expert, num_experts, top_k=2, num_shared_experts=1, score="sigmoid")
    return ModelConfig(vocab_size=2048, d_model=d_model, moe=moe, **rest)


# Both are expressible as Transformers' glm4_moe: grouped-query attention, sigmoid scores with a selection bias, a
# shared expert, normalised weights.
PRESETS: dict[str, ModelConfig] = {
    "nano": _sparse(128, 128, 8, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=32),
    "small": _sparse(256, 192, 16, num_layers=4, num_heads=8, num_kv_heads=4, head_dim=32),
}
