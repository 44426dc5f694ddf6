"""Key/value caches that hold fewer bits, and a way to score a model through one.

Axes: B batch, L new tokens, S cache length, M key/value heads, H head width, R dims of a key kept in bfloat16.

A cache is read in full for each new token, so its bytes are what long contexts cost, in memory and in time. Each row
of H numbers (one token, one head, keys and values apart) is quantized on its own when it arrives and never again: what
the cache holds of a token does not depend on what came with it or after it.

============  ==========================================================================================
``bf16``      no scales, 2 bytes a number: what the others are compared with
``fp8``       e4m3, one power-of-two scale of one byte for each token, head and 64 dims, as in DeepSeek-V4
``fp8-rope``  the same, but the dims of a key that rotary positions turn stay in bfloat16
``int8``      one float32 scale for each token and head
``int4``      the same with two numbers a byte
============  ==========================================================================================

In V4 keys and values are one row of 512 numbers, and 64 of them are turned. The keys here are turned in all dims, so
``fp8-rope`` keeps whole keys and saves on values alone; `CacheFactory` takes any number of dims in between.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, BFloat16, Float, Int

from minimoe.attention import Cache, GroupedQueryConfig, KVCache, admitted, cache_shape
from minimoe.config import ModelConfig
from minimoe.errors import UserError
from minimoe.model import MoETransformer
from minimoe.moe import Routing
from minimoe.quant.formats import get_format
from minimoe.quant.specs import INT8_TOKEN, SCALE_BITS, Group, PerToken, Spec
from minimoe.quant.tensor import QTensor, quantize

FP8 = Spec("fp8_e4m3", Group(64), scale_format="ue8m0")
INT4 = Spec("int4", PerToken())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantKVCache:
    """Keys and values as codes and scales; the same two methods as `minimoe.attention.KVCache`.

    Attributes:
      k: codes of the last ``H - R`` dims of the keys, logically ``[B, S, M, H-R]``; None if R is H.
      k_plain: the first R dims of the keys, ``[B, S, M, R]`` bfloat16.
      v: codes of the values, logically ``[B, S, M, H]``.
      length: tokens held so far, int32 scalar; `minimoe.attention.admitted` compares it with S.
      dtype: of what `read` returns, by name.
    """

    k: QTensor | None
    k_plain: BFloat16[Array, "B S M R"]
    v: QTensor
    length: Int[Array, ""]
    dtype: str = dataclasses.field(metadata={"static": True})

    @property
    def size(self) -> int:
        """S, tokens that it has room for."""
        return self.k_plain.shape[1]

    def append(self, k: Float[Array, "B L M H"], v: Float[Array, "B L M H"]) -> QuantKVCache:
        """A cache with ``k`` and ``v`` quantized and written after the tokens it holds."""
        k, v = admitted(self.length, self.v.shape, k, v)
        zero = jnp.zeros((), jnp.int32)
        at = (zero, self.length, zero, zero)
        kept = self.k_plain.shape[-1]
        return QuantKVCache(
            None if self.k is None else _write(self.k, k[..., kept:], at),
            jax.lax.dynamic_update_slice(self.k_plain, k[..., :kept].astype(jnp.bfloat16), at),
            _write(self.v, v, at),
            self.length + k.shape[1],
            self.dtype,
        )

    def read(self) -> tuple[Float[Array, "B S M H"], Float[Array, "B S M H"]]:
        """All keys and values, dequantized: the values that attention multiplies are those of the codes."""
        dtype = jnp.dtype(self.dtype)
        k = self.k_plain.astype(dtype)
        if self.k is not None:
            k = jnp.concatenate([k, self.k.dequantize(dtype)], axis=-1)
        return k, self.v.dequantize(dtype)

    def shortened(self, length: Int[Array, ""]) -> QuantKVCache:
        """The cache as it was when it held ``length`` tokens."""
        return dataclasses.replace(self, length=length)


def _write(held: QTensor, x: Float[Array, "B L M W"], at: tuple[Array, ...]) -> QTensor:
    """``x`` quantized like ``held`` and written into its codes, scales and zero points at ``at``."""
    new = quantize(x.astype(jnp.float32), held.spec, check=False)
    pairs = zip(jax.tree.leaves(held), jax.tree.leaves(new), strict=True)
    written = [jax.lax.dynamic_update_slice(old, part, at) for old, part in pairs]
    return jax.tree.unflatten(jax.tree.structure(held), written)


@dataclasses.dataclass(frozen=True)
class CacheFactory:
    """Builds empty caches of one kind; pass it to `MoETransformer.init_cache` or as ``minimoe.generate(cache=...)``.

    Args:
      name: for messages.
      spec: of the codes, with scales along the last axis; None holds everything in bfloat16.
      rope_dims: R, leading dims of each key that stay in bfloat16, 0..H; None is H, all that rotary positions turn.

    Raises:
      UserError: for a spec with a tensor scale.

    Example:
      >>> cache = CacheFactory("half", FP8, rope_dims=16)(1, 8, 2, 32)
      >>> cache.k_plain.shape, cache.k.shape, cache.v.shape
      ((1, 8, 2, 16), (1, 8, 2, 16), (1, 8, 2, 32))
    """

    name: str
    spec: Spec | None
    rope_dims: int | None = 0

    def __post_init__(self) -> None:
        if self.spec is not None and self.spec.tensor_scale:
            repair = "use a spec whose scales stand alone, such as one in ue8m0"
            raise UserError(f"cache {self.name!r}: heads of one token would share a tensor scale; {repair}")

    def __call__(self, batch: Any, size: Any, kv_heads: Any, head_dim: Any, dtype: Any = jnp.float32) -> Cache:
        """An empty cache with room for ``size`` tokens; ``read`` gives ``dtype`` (``bf16``: bfloat16).

        Raises:
          UserError: if ``rope_dims`` is outside 0..H.
        """
        if self.spec is None:
            return KVCache.zeros(batch, size, kv_heads, head_dim, jnp.bfloat16)
        *rows, head_dim = cache_shape(batch, size, kv_heads, head_dim)
        kept = self.kept_dims(head_dim)
        return QuantKVCache(
            quantize(jnp.zeros((*rows, head_dim - kept)), self.spec) if kept < head_dim else None,
            jnp.zeros((*rows, kept), jnp.bfloat16),
            quantize(jnp.zeros((*rows, head_dim)), self.spec),
            jnp.zeros((), jnp.int32),
            jnp.dtype(dtype).name,
        )

    def kept_dims(self, head_dim: int) -> int:
        """R for keys of this width."""
        kept = head_dim if self.rope_dims is None else self.rope_dims
        if not 0 <= kept <= head_dim:
            raise UserError(f"cache {self.name!r}: rope_dims={kept} must be in 0..head_dim={head_dim}")
        return kept

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        """Of one layer: codes, scales and what stays in bfloat16, for keys and values."""
        if self.spec is None:
            return kv_heads * 2 * 2 * head_dim
        kept = self.kept_dims(head_dim)
        key = 2 * kept + _row_bytes(head_dim - kept, self.spec)
        return kv_heads * (key + _row_bytes(head_dim, self.spec))


def _row_bytes(width: int, spec: Spec) -> int:
    """Of one row of ``width`` numbers: the codes in whole bytes, its scales and its zero points."""
    if not width:
        return 0
    block = spec.granularity.block_shape((1, width))[-1]
    bits = SCALE_BITS[spec.scale_format] + (0 if spec.symmetric else 8)
    return -(-width * get_format(spec.format).bits // 8) + -(-width // block) * bits // 8


CACHES: dict[str, CacheFactory] = {
    "bf16": CacheFactory("bf16", None),
    "fp8": CacheFactory("fp8", FP8),
    "fp8-rope": CacheFactory("fp8-rope", FP8, rope_dims=None),
    "int8": CacheFactory("int8", INT8_TOKEN),
    "int4": CacheFactory("int4", INT4),
}


def kv_cache(name: str) -> CacheFactory:
    """The cache of this name: ``make(batch, size, kv_heads, head_dim, dtype)``.

    Raises:
      UserError: for an unknown name, listing the known ones.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> minimoe.generate(model, jnp.array([[1, 2, 3]]), 4, temperature=0.0, cache=kv_cache("int4")).shape
      (1, 7)
    """
    if name not in CACHES:
        raise UserError(f"cache {name!r} is not known; choose one of {', '.join(CACHES)}")
    return CACHES[name]


def cache_bytes_per_token(config: ModelConfig, name: str) -> int:
    """Bytes that one more token of context costs in all layers, scales included; the arrays are exactly this large.

    Raises:
      UserError: for an unknown name, and for attention whose cache holds no keys and values of heads.

    Example:
      >>> {name: cache_bytes_per_token(ModelConfig.preset("nano"), name) for name in CACHES}
      {'bf16': 1024, 'fp8': 528, 'fp8-rope': 776, 'int8': 576, 'int4': 320}
    """
    make, total = kv_cache(name), 0
    for layer, count in config.layer_counts.items():
        kind = layer.attention
        if kind is None:
            continue
        if not isinstance(kind, GroupedQueryConfig):
            raise UserError(
                f"cache {name!r} holds keys and values of heads, but attention of kind {kind.kind!r} keeps neither; "
                "ask minimoe.cost.kv_bytes_per_token what its own cache takes"
            )
        total += count * make.bytes_per_token(kind.num_kv_heads, kind.head_dim)
    return total


class CachedModel(nnx.Module):
    """A model whose every key and value goes through a cache before it is attended to."""

    def __init__(self, model: MoETransformer, make: Any):
        self.config = model.config
        self.model = model
        self.make = make

    def __call__(self, tokens: Int[Array, "B L"]) -> tuple[Float[Array, "B L V"], tuple[Routing, ...]]:
        """Logits and routing as the model gives them, computed by one `extend` of an empty cache."""
        batch, length = tokens.shape
        cache = self.model.init_cache(batch, length, self.make)
        logits, routing, _ = self.model.extend(tokens, cache)
        return logits, routing


def through_cache(model: MoETransformer, make: Any) -> CachedModel:
    """``model`` as it answers with the caches that ``make`` builds; `minimoe.training.evaluate` scores it.

    A token sees its own key and value through the cache too, as it does in generation.

    Args:
      model: shared, not copied.
      make: from `kv_cache`, or `KVCache.zeros`.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> logits, routing = through_cache(model, kv_cache("fp8"))(jnp.zeros((1, 8), jnp.int32))
      >>> logits.shape
      (1, 8, 2048)
    """
    return CachedModel(model, make)
