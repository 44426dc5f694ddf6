"""The language model. Axes: B batch, L sequence, T = B*L tokens, D model width, V vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe import checks
from minimoe.attention import Cache, IndexLoss, KVCache
from minimoe.attention.cache import checked_caches
from minimoe.config import LayerConfig, ModelConfig
from minimoe.errors import UserError
from minimoe.layers import RMSNorm, SwiGLU, as_mask
from minimoe.layers.token_ids import TokenIds, as_token_ids, known_ids
from minimoe.model.mtp import MTPHead
from minimoe.model.paths import path_name
from minimoe.moe import MoELayer, Routing

NO_HEAD = "the model has no head for multi-token prediction; give its config mtp=MTPConfig()"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """What the model makes of a batch.

    Attributes:
      logits: scores of the next token ``[B, L, V]`` float32.
      hidden: what the output head multiplies, after the last norm, ``[B, L, D]``.
      routing: one `Routing` a sparse layer, in order; none for a dense model. With ``mtp_logits`` the block of that head
        is the last layer.
      mtp_logits: scores of the token after the next ``[B, L, V]``; None unless they were asked for.
      stream: what the last block gives at all positions, ``[B, L, D]``, with hyper-connections ``[B, L, n, D]``: what
        `MoETransformer.look_ahead` begins with.
      index_loss: what the indexers of compressed sparse attention lost, mean over their layers, see
        `minimoe.attention.indexer.index_loss`; None unless a layer teaches one.
    """

    logits: Float[Array, "B L V"]
    hidden: Float[Array, "B L D"]
    routing: tuple[Routing, ...]
    mtp_logits: Float[Array, "B L V"] | None = None
    stream: Float[Array, "B _ ..."] | None = None
    index_loss: Float[Array, ""] | None = None


class Block(nnx.Module):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``; the feed-forward is sparse or dense.

    With another kind of residual, ``x`` is the stream: a branch reads from it, and its output is written to it.

    Args:
      config: of the model. layer: what this block is made of, from ``config.layers``.
      rngs: source of the initial weights.
    """

    def __init__(self, config: ModelConfig, layer: LayerConfig, *, rngs: nnx.Rngs):
        # Residual branches start small enough that their sum over the depth stays near unit size.
        out_scale = (2 * config.num_layers) ** -0.5
        dtypes: dict[str, Any] = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        norm: dict[str, Any] = {"epsilon": config.norm_eps, "rngs": rngs} | _dtypes(config)
        assert layer.attention is not None  # the config resolves its layers
        self.attention_norm = RMSNorm(config.d_model, **norm)
        self.attention = layer.attention.build(config.d_model, out_scale=out_scale, rngs=rngs, **dtypes)
        self.attention_residual = config.residual.build(config.d_model, rngs=rngs)
        self.ffn_norm = RMSNorm(config.d_model, **norm)
        if layer.moe is not None:
            self.ffn: MoELayer | SwiGLU = MoELayer(layer.moe, out_scale=out_scale, rngs=rngs)
        else:
            assert layer.d_ff is not None
            sizes = {"out_scale": out_scale, "limit": config.swiglu_limit}
            self.ffn = SwiGLU(config.d_model, layer.d_ff, rngs=rngs, **sizes, **dtypes)
        self.ffn_residual = config.residual.build(config.d_model, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        x: Float[Array, "B L ..."],
        tokens: Int[Array, "B L"],
        *,
        where: Bool[Array, "B L"] | None = None,
        rngs: nnx.Rngs | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "B L ..."], Routing | None, Cache | IndexLoss | None]:
        seen, kept = self.attention_residual.read(x)
        attended, left = self.attention(self.attention_norm(seen), cache)
        x = self.attention_residual.write(x, self._drop(attended, rngs), kept)
        seen, kept = self.ffn_residual.read(x)
        y, routing = self._feed_forward(self.ffn_norm(seen), tokens, where, rngs)
        return self.ffn_residual.write(x, self._drop(y, rngs), kept), routing, left

    def _feed_forward(self, x, tokens, where, rngs) -> tuple[Float[Array, "B L D"], Routing | None]:
        batch, length, width = x.shape
        if not isinstance(self.ffn, MoELayer):
            return self.ffn(x), None
        segments = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), length)
        flat_where = None if where is None else where.reshape(-1)
        y, routing = self.ffn(
            x.reshape(-1, width), tokens=tokens.reshape(-1), where=flat_where, segments=segments, rngs=rngs
        )
        return y.reshape(batch, length, width), routing

    def _drop(self, x: Float[Array, "B L D"], rngs: nnx.Rngs | None) -> Float[Array, "B L D"]:
        return x if rngs is None else self.dropout(x, deterministic=False, rngs=rngs)


def _dtypes(config: ModelConfig) -> dict[str, Any]:
    return {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}


class MoETransformer(nnx.Module):
    """Decoder-only transformer: embedding, blocks, RMSNorm, output head (the embedding itself if tied).

    Args:
      config: sizes; `ModelConfig.preset` has ready ones. With ``config.d_ff`` it is dense.
      rngs: source of the initial weights; one seed decides everything.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> logits, routing = model(jnp.zeros((1, 8), jnp.int32))
      >>> logits.shape, len(routing), routing[0].experts.shape
      ((1, 8, 2048), 4, (8, 2))
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtypes = _dtypes(config)
        init = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(config.vocab_size, config.d_model, embedding_init=init, rngs=rngs, **dtypes)
        self.layers = nnx.List([Block(config, layer, rngs=rngs) for layer in config.layers])
        self.leave = config.residual.build_leave(config.d_model, rngs=rngs)
        self.norm = RMSNorm(config.d_model, epsilon=config.norm_eps, rngs=rngs, **dtypes)
        head = None
        if not config.tie_embeddings:
            head = nnx.Linear(config.d_model, config.vocab_size, use_bias=False, kernel_init=init, rngs=rngs, **dtypes)
        self.head = nnx.data(head)
        layer = config.mtp_layer
        mtp = None if layer is None else MTPHead(config, Block(config, layer, rngs=rngs), rngs=rngs)
        self.mtp = nnx.data(mtp)

    def __call__(
        self,
        tokens: TokenIds,
        *,
        where: Bool[Array, "B L"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "B L V"], tuple[Routing, ...]]:
        """Scores the next token at every position.

        Args:
          tokens: ids ``[B, L]``, an array of any integer dtype or lists; L at most ``config.context_length``.
          where: True for real tokens; padding is not counted by the routers.
          rngs: with a ``dropout`` stream while training; None means evaluation, no dropout and no noise.

        Returns:
          ``logits [B, L, V]`` float32 and one `Routing` a sparse layer (none for a dense model).

        An id outside the vocabulary is an error; under `jax.jit`, where no value is known, all that depends on it is NaN.
        B and L may be symbolic dimensions of `jax.export`; logits of positions from ``config.context_length`` on are then
        NaN. A length is needed where tokens compete for slots, and by the windows of DeepSeek-V4's attention.

        Raises:
          UserError: for tokens of another shape or dtype, an id outside the vocabulary, or L above
            ``config.context_length``.
        """
        output = self.forward(tokens, where=where, rngs=rngs)
        return output.logits, output.routing

    def forward(
        self,
        tokens: TokenIds,
        *,
        where: Bool[Array, "B L"] | None = None,
        rngs: nnx.Rngs | None = None,
        next_tokens: Int[Array, "B L"] | None = None,
    ) -> ModelOutput:
        """The same with the hidden states: what an objective may need beside the logits.

        ``next_tokens``, the ids that follow each position, ask for ``mtp_logits`` as well, of a model with ``config.mtp``.
        Where ``where`` is False they may be anything.

        Raises:
          UserError: as for a call, and for ``next_tokens`` where the model has no head for them.

        Example:
          >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
          >>> model.forward(jnp.zeros((1, 8), jnp.int32)).hidden.shape
          (1, 8, 128)
        """
        tokens = self._checked(tokens)
        where = None if where is None else as_mask(where, tokens.shape, "MoETransformer")
        x, routing, left = self._trunk(tokens, [None] * len(self.layers), where=where, rngs=rngs)
        taught = [note.value for note in left if isinstance(note, IndexLoss)]
        output = dataclasses.replace(self._scored(x, routing), index_loss=jnp.stack(taught).mean() if taught else None)
        if next_tokens is None:
            return output
        given = next_tokens if where is None else jnp.where(where, next_tokens, 0)
        ahead, record, _ = self.look_ahead(x, given, where=where, rngs=rngs)
        return dataclasses.replace(output, routing=routing + record, mtp_logits=ahead)

    def init_cache(self, batch: Any, size: Any, make: Callable[..., Cache] = KVCache.zeros) -> tuple[Cache, ...]:
        """One empty cache a layer, with room for ``size`` tokens in each of ``batch`` sequences.

        ``make(batch, size, num_kv_heads, head_dim, dtype)`` builds one: pass another kind of cache here.

        Raises:
          UserError: for sizes that are negative or no whole numbers, or a size above the model's context length.
        """
        batch, size = (checks.whole(*pair, least=0, owner="init_cache") for pair in (("batch", batch), ("size", size)))
        self._check_length(size)
        kinds = (layer.attention for layer in self.config.layers)
        dtype = jnp.dtype(self.config.dtype)
        return tuple(kind.init_cache(batch, size, make, dtype) for kind in kinds if kind is not None)

    def init_mtp_cache(self, batch: int, size: int, make: Callable[..., Cache] = KVCache.zeros) -> Cache:
        """The empty cache of the head for multi-token prediction; arguments as for `init_cache`.

        Raises:
          UserError: if the model has no such head.
        """
        layer = self.config.mtp_layer
        if layer is None or layer.attention is None:
            raise UserError(f"init_mtp_cache: {NO_HEAD}")
        return layer.attention.init_cache(batch, size, make, jnp.dtype(self.config.dtype))

    def extend(
        self, tokens: TokenIds, cache: Sequence[Cache], *, last_only: bool = False
    ) -> tuple[Float[Array, "B _ V"], tuple[Routing, ...], tuple[Cache, ...]]:
        """Scores ``tokens`` as the continuation of what ``cache`` holds.

        Args:
          tokens: the next L ids of each sequence. L > 1 is prefill, L = 1 is decoding.
          cache: from `init_cache` or an earlier `extend`; must have room for L more.
          last_only: compute the logits of the last position alone, ``[B, 1, V]``.

        Returns:
          ``(logits, routing, cache)`` with the tokens appended to the cache. Ids outside the vocabulary are treated as
          in a plain call.

        Raises:
          UserError: if the cache has no room for them, or is of another batch size or another model. Under `jax.jit`, where
            its length is not known, the logits are NaN instead, in this call and in those that follow.
        """
        output, new = self.extend_forward(tokens, cache, last_only=last_only)
        return output.logits, output.routing, new

    def extend_forward(
        self, tokens: TokenIds, cache: Sequence[Cache], *, last_only: bool = False
    ) -> tuple[ModelOutput, tuple[Cache, ...]]:
        """`extend` with the hidden states; ``stream`` is that of all positions, whatever ``last_only`` says."""
        tokens = self._checked(tokens)
        x, routing, new = self._trunk(tokens, checked_caches(cache, len(self.layers)))
        output = self._scored(x[:, -1:] if last_only else x, routing)
        return dataclasses.replace(output, stream=x), tuple(c for c in new if c is not None)

    def look_ahead(
        self,
        stream: Float[Array, "B L ..."],
        next_tokens: Int[Array, "B L"],
        *,
        cache: Cache | None = None,
        where: Bool[Array, "B L"] | None = None,
        rngs: nnx.Rngs | None = None,
        place: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B _ V"], tuple[Routing, ...], Cache | None]:
        """Scores the token after the next, from what the model made of a position and the token that follows it.

        Args:
          stream: from `ModelOutput`. next_tokens: the ids that follow each position.
          cache: of this head, from `init_mtp_cache`, holding the positions before; None where ``stream`` is all there is.
          where, rngs: as for a call.
          place: compute the logits of this position alone, ``[B, 1, V]``.

        Returns:
          Logits, the routing of the head's block (none if it is dense), and the longer cache.

        Raises:
          UserError: if the model has no such head.

        Example:
          >>> config = ModelConfig.preset("nano").replace(mtp=MTPConfig())
          >>> model, tokens = MoETransformer(config, rngs=nnx.Rngs(0)), jnp.zeros((1, 8), jnp.int32)
          >>> model.look_ahead(model.forward(tokens).stream[:, :-1], tokens[:, 1:])[0].shape
          (1, 7, 2048)
        """
        if self.mtp is None:
            raise UserError(f"next_tokens: {NO_HEAD}")
        given, known = known_ids(next_tokens, self.config.vocab_size)
        clean = jnp.cumsum(~known, axis=1) == 0  # as in a plain call, NaN from the first unknown id on
        embedded = jnp.where(clean[..., None], self.embed(given), jnp.nan)
        y, routing, cache = self.mtp(stream, embedded, given, where=where, rngs=rngs, cache=cache)
        y = y if place is None else jax.lax.dynamic_slice_in_dim(y, place, 1, axis=1)
        return self._logits(y), () if routing is None else (routing,), cache

    def named_blocks(self) -> dict[str, Block]:
        """Every block by its path, that of the head for multi-token prediction included: ``layers.0``, ``mtp.block``."""
        blocks = {f"layers.{i}": block for i, block in enumerate(self.layers)}
        return blocks if self.mtp is None else blocks | {"mtp.block": self.mtp.block}

    def _trunk(self, tokens, caches, *, where=None, rngs=None) -> tuple[Float[Array, "B L ..."], tuple, list[Any]]:
        """The stream after the last block, the routing of the sparse layers, and the longer caches."""
        tokens, known = known_ids(tokens, self.config.vocab_size)
        x = self.embed(tokens)
        if caches[0] is not None:  # the cache, too, must not look whole: what it holds of this token is NaN
            x = jnp.where(known[..., None], x, jnp.nan)
        x = self.config.residual.enter(x)
        routings, new_caches = [], []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, routing, cache = layer(x, tokens, where=where, rngs=rngs, cache=cache)
            routings.append(routing)
            new_caches.append(cache)
        if caches[0] is None:  # NaN inside would reach earlier positions, since attention multiplies it by weights of 0
            clean = jnp.cumsum(~known, axis=1) == 0
            x = jnp.where(clean.reshape(*clean.shape, *(1,) * (x.ndim - 2)), x, jnp.nan)
        return x, tuple(r for r in routings if r is not None), new_caches

    def _scored(self, x: Float[Array, "B L ..."], routing: tuple[Routing, ...]) -> ModelOutput:
        hidden = self.norm(self.leave(x))
        return ModelOutput(self._logits(hidden), hidden, routing, stream=x)

    def _logits(self, x: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        """From ``[T, D]``: the gradient of the head is then one plain matmul, a twentieth faster."""
        flat = x.reshape(-1, x.shape[-1])
        logits = self.embed.attend(flat) if self.head is None else self.head(flat)
        return logits.astype(jnp.float32).reshape(*x.shape[:2], self.config.vocab_size)

    def _checked(self, tokens: TokenIds) -> Int[Array, "B L"]:
        tokens = as_token_ids(tokens, self.config.vocab_size)
        if tokens.ndim != 2:
            raise UserError(f"tokens has shape {tuple(tokens.shape)}; give [B, L], one row a sequence")
        if jax.export.is_symbolic_dim(tokens.shape[1]):
            # Positions beyond the context count as ids outside the vocabulary.
            within = jnp.arange(tokens.shape[1], dtype=jnp.int32) < self.config.context_length
            return jnp.where(within[None, :], tokens, -1)
        self._check_length(tokens.shape[1])
        return tokens

    def _check_length(self, length: int) -> None:
        limit = self.config.context_length
        if length > limit:
            raise UserError(
                f"{length} tokens do not fit in context_length={limit}; shorten the text or use a longer context"
            )


def check_trainable(model: nnx.Module) -> None:
    """Refuses a model that holds codes instead of weights: rounding has no gradient to learn from.

    A module says so of itself, with ``holds_codes = True``.

    Raises:
      UserError: naming the first such module, and what to train instead.
    """
    for path, module in nnx.iter_modules(model):
        if getattr(module, "holds_codes", False):
            where = path_name(path) or "the model"
            repair = "train the floats, minimoe.quant.dequantize_model(model), and quantize again"
            raise UserError(f"the model is quantized ({where} holds codes), and codes have no gradient; {repair}")
