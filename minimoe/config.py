"""Configurations: frozen dataclasses that refuse impossible values when they are made, and the presets.

A model is the sizes of its parts: one config for its attention, one for its experts, one for its residual stream.
Attention and residuals come in kinds, which are registered where they are written: `minimoe.attention.ATTENTIONS` and
`minimoe.layers.RESIDUALS`.

Axis letters, here and everywhere (see README): B batch, L sequence, T = B*L tokens, D model width, N query heads,
M key/value heads, H head width, F expert hidden width, E experts, K experts per token, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from minimoe.attention import ATTENTIONS, AttentionConfig, GroupedQueryConfig
from minimoe.checks import choice_fields, dtype_fields, flag_fields, number_fields, require, whole, whole_fields
from minimoe.errors import UserError
from minimoe.layers import ADD, RESIDUALS, ResidualConfig

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

    @property
    def expert_params(self) -> int:
        """Weights of one expert: three matrices D x F."""
        return 3 * self.d_model * self.d_expert

    @property
    def router_params(self) -> int:
        """Weights of the router, D x E; noisy top-k has a second matrix, for the size of its noise."""
        return (2 if self.select == "noisy_topk" else 1) * self.d_model * self.num_experts

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
class LayerConfig:
    """What one block is made of. In a pattern, None takes what the model says for all its blocks.

    Args:
      attention: its attention.
      moe: its experts; exclusive with ``d_ff``.
      d_ff: hidden width of its dense SwiGLU.

    Example:
      >>> LayerConfig(d_ff=512).moe is None
      True
    """

    attention: AttentionConfig | None = None
    moe: MoEConfig | None = None
    d_ff: int | None = None

    def __post_init__(self) -> None:
        _check_attention(self, optional=True)
        _check_feed_forward(self, optional=True)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model, sparse (``moe`` given) or dense (``d_ff`` given).

    Args:
      vocab_size: V. ``d_model``: D. ``num_layers``: blocks.
      attention: of every block, see `minimoe.attention.ATTENTIONS`.
      moe: the experts of every block; exclusive with ``d_ff``.
      d_ff: hidden width of a dense SwiGLU in every block.
      first_layers: the first blocks, where they differ from what is said above: some models begin with dense or
        hash-routed blocks.
      pattern: the blocks after those, taken in turn again and again: for models that alternate kinds.
      residual: how branches join the stream, see `minimoe.layers.RESIDUALS`.
      context_length: most positions one sequence may take.
      norm_eps: inside the square root of RMSNorm.
      tie_embeddings: the output head reuses the embedding matrix.
      dropout: rate on the two branches of each block while training, 0..<1.
      dtype: of activations between the float32 islands (norms, softmax, router, loss).
      param_dtype: of stored weights.

    Raises:
      UserError: naming the value and the repair.

    Example:
      >>> attention = GroupedQueryConfig(num_heads=4, num_kv_heads=2, head_dim=32)
      >>> moe = MoEConfig(d_model=128, d_expert=128, num_experts=8, top_k=2)
      >>> config = ModelConfig(2048, 128, 4, attention, moe, first_layers=(LayerConfig(d_ff=512),))
      >>> [layer.d_ff for layer in config.layers]
      [512, None, None, None]
    """

    vocab_size: int
    d_model: int
    num_layers: int
    attention: AttentionConfig
    moe: MoEConfig | None = None
    d_ff: int | None = None
    first_layers: tuple[LayerConfig, ...] = ()
    pattern: tuple[LayerConfig, ...] = ()
    residual: ResidualConfig = ADD
    context_length: int = 256
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    dropout: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        whole_fields(self, "vocab_size", "d_model", "num_layers", "context_length")
        number_fields(self, "dropout", low=0, high=1, hint="use 0 for none")
        number_fields(self, "norm_eps", low=1e-30, high=1, hint="1e-5 is usual")
        flag_fields(self, "tie_embeddings")
        dtype_fields(self, "dtype", "param_dtype")
        _check_attention(self)
        _check_feed_forward(self)
        known = tuple(RESIDUALS.values())
        kinds = f"residual={self.residual!r} must be one of {', '.join(c.__name__ for c in known)}"
        require(isinstance(self.residual, known), self, f"{kinds}; ModelConfig.from_dict reads plain values")
        self._check_pattern()
        for moe in self._all_experts():
            self._check_experts(moe)

    def _check_pattern(self) -> None:
        for name in ("first_layers", "pattern"):
            given = getattr(self, name)
            right = isinstance(given, list | tuple) and all(isinstance(layer, LayerConfig) for layer in given)
            require(right, self, f"{name}={given!r} must be a tuple of LayerConfig; use () for none")
            object.__setattr__(self, name, tuple(given))
        first = len(self.first_layers)
        room = f"first_layers holds {first} layers, more than num_layers={self.num_layers}"
        require(first <= self.num_layers, self, f"{room}; shorten it or raise num_layers")
        sparse = self.moe is not None or not self._all_experts()
        require(sparse, self, "a layer has experts, but moe=None; give moe, and d_ff to the layers that are dense")

    def _check_experts(self, moe: MoEConfig) -> None:
        widths = f"moe.d_model={moe.d_model} must equal d_model={self.d_model}"
        require(moe.d_model == self.d_model, self, f"{widths}; make them the same")
        rows = f"moe.hash_vocab_size={moe.hash_vocab_size} must equal vocab_size={self.vocab_size}"
        fits = moe.select != "hash" or moe.hash_vocab_size == self.vocab_size
        require(fits, self, f"{rows}, since ids choose experts; make them the same")

    def _all_experts(self) -> tuple[MoEConfig, ...]:
        """The model's own experts and those that its pattern names."""
        given = (self.moe, *(layer.moe for layer in (*self.first_layers, *self.pattern)))
        return tuple(moe for moe in given if moe is not None)

    def _resolve(self, layer: LayerConfig) -> LayerConfig:
        attention = self.attention if layer.attention is None else layer.attention
        if layer.moe is None and layer.d_ff is None:
            return LayerConfig(attention, self.moe, self.d_ff)
        return LayerConfig(attention, layer.moe, layer.d_ff)

    @property
    def layers(self) -> tuple[LayerConfig, ...]:
        """What each block is made of, nothing left open: one record a block."""
        rest = self.num_layers - len(self.first_layers)
        turn = self.pattern or (LayerConfig(),)
        repeated = (turn * (rest // len(turn) + 1))[:rest]
        return tuple(self._resolve(layer) for layer in (*self.first_layers, *repeated))

    @property
    def layer_counts(self) -> dict[LayerConfig, int]:
        """The different blocks and how many there are of each; quick even for a model that nobody could build."""
        counts: dict[LayerConfig, int] = {}
        turn = self.pattern or (LayerConfig(),)
        whole_turns, left = divmod(self.num_layers - len(self.first_layers), len(turn))
        often = [*((layer, 1) for layer in self.first_layers)]
        often += [(layer, whole_turns + (place < left)) for place, layer in enumerate(turn)]
        for layer, count in often:
            resolved = self._resolve(layer)
            counts[resolved] = counts.get(resolved, 0) + count
        return {layer: count for layer, count in counts.items() if count}

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

    def replace_attention(self, **changes: Any) -> ModelConfig:
        """A copy with some fields of its attention changed; blocks with an attention of their own keep it."""
        return dataclasses.replace(self, attention=dataclasses.replace(self.attention, **changes))  # type: ignore[type-var]

    def replace_moe(self, **changes: Any) -> ModelConfig:
        """A copy with some fields of its experts changed, in every block that has experts.

        Raises:
          UserError: if the model is dense.
        """
        if self.moe is None:
            raise UserError(
                "this model is dense (moe=None), so its experts cannot be changed; start from a sparse preset"
            )
        return self._with_experts(lambda moe: {"moe": dataclasses.replace(moe, **changes)})

    def dense_equivalent(self) -> ModelConfig:
        """The dense model that spends the same FLOPs per token in its feed-forward layers (router left out).

        Its width is ``(top_k + num_shared_experts) * d_expert`` of each block.
        """
        return self._with_experts(
            lambda moe: {"moe": None, "d_ff": (moe.top_k + moe.num_shared_experts) * moe.d_expert}
        )

    def _with_experts(self, change: Callable[[MoEConfig], dict[str, Any]]) -> ModelConfig:
        """A copy in which ``change`` gives the new fields of each block that has experts."""

        def changed(layer: LayerConfig) -> LayerConfig:
            return layer if layer.moe is None else dataclasses.replace(layer, **change(layer.moe))

        return dataclasses.replace(
            self,
            first_layers=tuple(changed(layer) for layer in self.first_layers),
            pattern=tuple(changed(layer) for layer in self.pattern),
            **({} if self.moe is None else change(self.moe)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a part that comes in kinds names its own."""
        return _plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; dictionaries from before attention was a part are read as well.

        Raises:
          UserError: for missing or unknown keys, naming all of them.
        """
        values = _from_flat(values)
        for name in ("first_layers", "pattern"):
            if isinstance(values.get(name), list | tuple):
                values[name] = tuple(from_fields(LayerConfig, _read_parts(layer)) for layer in values[name])
        return from_fields(cls, _read_parts(values))


def _check_attention(owner: Any, optional: bool = False) -> None:
    known = tuple(ATTENTIONS.values())
    right = isinstance(owner.attention, known) or (optional and owner.attention is None)
    kinds = f"attention={owner.attention!r} must be one of {', '.join(c.__name__ for c in known)}"
    require(right, owner, f"{kinds}; ModelConfig.from_dict reads plain values")


def _check_feed_forward(owner: Any, optional: bool = False) -> None:
    """Experts or a width, not both; neither only where it is ``optional``."""
    right = owner.moe is None or isinstance(owner.moe, MoEConfig)
    require(right, owner, f"moe={owner.moe!r} must be a MoEConfig; ModelConfig.from_dict reads plain values")
    given = f"moe={'given' if owner.moe else None}, d_ff={owner.d_ff}"
    count = (owner.moe is not None) + (owner.d_ff is not None)
    fits = count == 1 or (optional and count == 0)
    require(fits, owner, f"{given}: give either moe (sparse) or d_ff (dense)")
    if owner.d_ff is not None:
        whole_fields(owner, "d_ff")


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


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, tuples as lists; a kind is named first."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    kind = {"kind": value.kind} if hasattr(value, "kind") else {}
    return kind | {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _read_parts(values: Any) -> dict[str, Any]:
    """The sub-configs of a model or of a block, made from plain values."""
    if not isinstance(values, Mapping):
        raise UserError(f"{values!r} must be a table of keys and values; the file is from another version")
    values = dict(values)
    for name, kinds in (("attention", ATTENTIONS), ("residual", RESIDUALS)):
        if isinstance(values.get(name), Mapping):
            values[name] = _read_kind(name, kinds, values[name])
    if isinstance(values.get("moe"), Mapping):
        values["moe"] = from_fields(MoEConfig, values["moe"])
    return values


def _read_kind(name: str, kinds: Mapping[str, type[Any]], values: Mapping[str, Any]) -> Any:
    rest = dict(values)
    kind = rest.pop("kind", None)
    if kind not in kinds:
        raise UserError(f"{name}: kind={kind!r} is not known; choose one of {', '.join(kinds)}")
    return from_fields(kinds[kind], rest)


def _from_flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Files of version 0.1 hold the sizes of grouped-query attention among those of the model."""
    values = dict(values)
    old = ("num_heads", "num_kv_heads", "head_dim", "rope_theta")
    if "attention" not in values and any(name in values for name in old):
        found = {name: values.pop(name) for name in old if name in values}
        values["attention"] = {"kind": GroupedQueryConfig.kind} | found
    return values


def _sparse(d_model: int, d_expert: int, num_experts: int, num_heads: int) -> ModelConfig:
    moe = MoEConfig(d_model, d_expert, num_experts, top_k=2, num_shared_experts=1, score="sigmoid")
    attention = GroupedQueryConfig(num_heads, num_kv_heads=num_heads // 2, head_dim=32)
    return ModelConfig(vocab_size=2048, d_model=d_model, num_layers=4, attention=attention, moe=moe)


# Both are expressible as Transformers' glm4_moe: grouped-query attention, sigmoid scores with a selection bias, a
# shared expert, normalised weights.
PRESETS: dict[str, ModelConfig] = {
    "nano": _sparse(128, 128, 8, num_heads=4),
    "small": _sparse(256, 192, 16, num_heads=8),
}
