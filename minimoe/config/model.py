"""The config of a whole language model: its sizes, and which block stands where.

A model is the sizes of its parts: one config for its attention, one for its experts, one for its residual stream.
Attention and residuals come in kinds, which are registered where they are written: `minimoe.attention.ATTENTIONS` and
`minimoe.layers.RESIDUALS`.

Axis letters, here and everywhere (see README): B batch, L sequence, T = B*L tokens, D model width, N query heads,
M key/value heads, H head width, F expert hidden width, E experts, K experts per token, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from minimoe.attention import AttentionConfig
from minimoe.checks import COMPUTE_DTYPES, dtype_fields, flag_fields, number_fields, require, whole_fields
from minimoe.config.dicts import from_fields, model_fields, plain
from minimoe.config.layer import LayerConfig, check_attention, check_feed_forward
from minimoe.config.moe import MoEConfig
from minimoe.config.mtp import MTPConfig
from minimoe.errors import UserError
from minimoe.layers import ADD, RESIDUALS, ResidualConfig, norm_params


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model, sparse (``moe`` given) or dense (``d_ff`` given).

    Args:
      vocab_size: V. ``d_model``: D. ``num_layers``: blocks.
      attention: of every block, see `minimoe.attention.ATTENTIONS`.
      moe: the experts of every block; exclusive with ``d_ff``.
      d_ff: hidden width of a dense SwiGLU in every block.
      swiglu_limit: as `MoEConfig.swiglu_limit`, for the dense blocks.
      first_layers: the first blocks, where they differ from what is said above: some models begin with dense or
        hash-routed blocks.
      pattern: the blocks after those, taken in turn again and again: for models that alternate kinds.
      residual: how branches join the stream, see `minimoe.layers.RESIDUALS`.
      context_length: most positions one sequence may take.
      norm_eps: inside the square root of RMSNorm.
      tie_embeddings: the output head reuses the embedding matrix.
      dropout: rate on the two branches of each block while training, 0..<1.
      dtype: of activations between the float32 islands (norms, softmax, router, loss): float32 or bfloat16.
      param_dtype: of stored weights.
      mtp: a head that also predicts the token after the next; None for none.

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
    swiglu_limit: int | float | None = None
    first_layers: tuple[LayerConfig, ...] = ()
    pattern: tuple[LayerConfig, ...] = ()
    residual: ResidualConfig = ADD
    context_length: int = 256
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    dropout: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"
    mtp: MTPConfig | None = None

    def __post_init__(self) -> None:
        whole_fields(self, "vocab_size", "d_model", "num_layers")
        whole_fields(self, "context_length", most=2**31 - 1, hint="positions are int32")
        number_fields(self, "dropout", low=0, high=1, hint="use 0 for none")
        number_fields(self, "norm_eps", low=1e-30, high=1, hint="1e-5 is usual")
        if self.swiglu_limit is not None:
            number_fields(self, "swiglu_limit", low=0, high=math.inf, ends="()", hint="10 is usual, None is no limit")
        flag_fields(self, "tie_embeddings")
        dtype_fields(self, "dtype", choices=COMPUTE_DTYPES)
        dtype_fields(self, "param_dtype")
        self._check_range("dtype", self.dtype)
        check_attention(self)
        check_feed_forward(self)
        known = tuple(RESIDUALS.values())
        kinds = f"residual={self.residual!r} must be one of {', '.join(c.__name__ for c in known)}"
        require(isinstance(self.residual, known), self, f"{kinds}; ModelConfig.from_dict reads plain values")
        right = self.mtp is None or isinstance(self.mtp, MTPConfig)
        require(right, self, f"mtp={self.mtp!r} must be a MTPConfig or None; ModelConfig.from_dict reads plain values")
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

    def _check_range(self, name: str, dtype: str) -> None:
        vanish = "a model's small gradients vanish in it, since training here does not scale the loss"
        require(dtype != "float16", self, f"{name}='float16': {vanish}; use bfloat16, whose range is that of float32")

    def _check_experts(self, moe: MoEConfig) -> None:
        self._check_range("moe.dtype", moe.dtype)
        widths = f"moe.d_model={moe.d_model} must equal d_model={self.d_model}"
        require(moe.d_model == self.d_model, self, f"{widths}; make them the same")
        rows = f"moe.hash_vocab_size={moe.hash_vocab_size} must equal vocab_size={self.vocab_size}"
        fits = not moe.facts.uses_token_ids or moe.hash_vocab_size == self.vocab_size
        require(fits, self, f"{rows}, since ids choose experts; make them the same")

    def _all_experts(self) -> tuple[MoEConfig, ...]:
        """The model's own experts and those that its pattern names."""
        given = (self.moe, *(layer.moe for layer in (*self.first_layers, *self.pattern, *self._mtp_layers())))
        return tuple(moe for moe in given if moe is not None)

    def _mtp_layers(self) -> tuple[LayerConfig, ...]:
        return () if self.mtp is None or self.mtp.layer is None else (self.mtp.layer,)

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
    def mtp_layer(self) -> LayerConfig | None:
        """What the block of the head ``mtp`` is made of, nothing left open; None without such a head."""
        if self.mtp is None:
            return None
        turn = self.pattern or (LayerConfig(),)
        rest = self.num_layers - len(self.first_layers)
        last = self._resolve(turn[(rest - 1) % len(turn)] if rest else self.first_layers[-1])
        own = self.mtp.layer or last
        attention = last.attention if own.attention is None else own.attention
        filled = last if own.moe is None and own.d_ff is None else own
        return LayerConfig(attention, filled.moe, filled.d_ff)

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

    @property
    def embedding_params(self) -> int:
        """V x D, of the embedding and again of the output head, if that has a matrix of its own."""
        return self.vocab_size * self.d_model

    @property
    def norm_params(self) -> int:
        """Of all norms, two a block and one before the head."""
        return (2 * self.num_layers + 1) * norm_params(self.d_model)

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """The named preset; `PRESETS` lists them.

        Raises:
          UserError: for an unknown name, listing the known ones.
        """
        from minimoe.config.presets import PRESETS

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

    def with_vocabulary(self, size: int) -> ModelConfig:
        """A copy for a vocabulary of this size; tables of hash routing, which have a row for each token id, follow."""

        def resized(moe: MoEConfig) -> dict[str, Any]:
            hashed = moe.hash_vocab_size is not None
            return {"moe": dataclasses.replace(moe, hash_vocab_size=size) if hashed else moe}

        return self._with_experts(resized, vocab_size=size)

    def with_mtp(self) -> ModelConfig:
        """A copy with a head for multi-token prediction; a head that is there stays as it is."""
        return self.replace(mtp=self.mtp or MTPConfig())

    def dense_equivalent(self) -> ModelConfig:
        """The dense model that spends the same FLOPs per token in its feed-forward layers (router left out).

        Its width is ``(top_k + num_shared_experts) * d_expert`` of each block.
        """
        dense = self._with_experts(
            lambda moe: {"moe": None, "d_ff": (moe.top_k + moe.num_shared_experts) * moe.d_expert}
        )
        return dense if self.moe is None else dense.replace(swiglu_limit=self.moe.swiglu_limit)

    def _with_experts(self, change: Callable[[MoEConfig], dict[str, Any]], **fields: Any) -> ModelConfig:
        """A copy in which ``change`` gives the new fields of each block that has experts, and with these of its own."""

        def changed(layer: LayerConfig) -> LayerConfig:
            return layer if layer.moe is None else dataclasses.replace(layer, **change(layer.moe))

        return dataclasses.replace(
            self,
            first_layers=tuple(changed(layer) for layer in self.first_layers),
            pattern=tuple(changed(layer) for layer in self.pattern),
            mtp=self.mtp and dataclasses.replace(self.mtp, layer=self.mtp.layer and changed(self.mtp.layer)),
            **({} if self.moe is None else change(self.moe)),
            **fields,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a part that comes in kinds names its own."""
        return plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; dictionaries from before attention was a part are read as well.

        Raises:
          UserError: for missing or unknown keys, naming all of them.
        """
        return from_fields(cls, model_fields(values))
