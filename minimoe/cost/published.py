"""Published models as sizes in data files, and what follows from the sizes: parameters, cache bytes, FLOPs.

Nothing here can be built. The files of ``published_models/`` hold one model each, and say of every number where it is
from and how sure it is. Multi-token prediction and norms are left out of all counts.

References:
  DeepSeek-V3, `arXiv 2412.19437 <https://arxiv.org/abs/2412.19437>`_.
  DeepSeek-V4, `arXiv 2606.19348 <https://arxiv.org/abs/2606.19348>`_.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from importlib import resources
from typing import Any

from minimoe.attention.row_bytes import dtype_bytes
from minimoe.cost.published_attention import ATTENTION_COUNTS, AttentionCounts
from minimoe.errors import UserError
from minimoe.layers import swiglu_params


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """The sizes of one published model.

    Attributes:
      d_model, vocab_size: D and V; embedding and head have a matrix each.
      dense_layers, dense_width: the first blocks, where they have no experts.
      moe_layers, num_experts, top_k, shared_experts, expert_width: the other blocks.
      streams: of hyper-connections; 1 is a plain residual.
      attention: the kinds of attention, each with its number of layers.
      sources: of each number, where it is from and how sure it is.

    Example:
      >>> model = published_model("deepseek-v4-flash")
      >>> f"{model.params_total / 1e9:.1f}B, {model.params_active / 1e9:.2f}B active"
      '284.3B, 13.27B active'
    """

    name: str
    d_model: int
    vocab_size: int
    dense_layers: int
    dense_width: int
    moe_layers: int
    num_experts: int
    top_k: int
    shared_experts: int
    expert_width: int
    streams: int
    attention: tuple[tuple[AttentionCounts, int], ...]
    sources: Any = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def num_layers(self) -> int:
        """Blocks, multi-token prediction left out."""
        return self.dense_layers + self.moe_layers

    @property
    def params(self) -> dict[str, int]:
        """All parameters by part."""
        d, n = self.d_model, self.streams
        expert = swiglu_params(d, self.expert_width)
        generator = (2 * n + n * n) * n * d if n > 1 else 0
        return {
            "routed experts": self.moe_layers * self.num_experts * expert,
            "shared experts": self.moe_layers * self.shared_experts * expert,
            "dense feed-forward": self.dense_layers * swiglu_params(d, self.dense_width),
            "attention": sum(layers * kind.projection_params(d) for kind, layers in self.attention),
            "compressors and indexers": sum(layers * kind.selection_params(d) for kind, layers in self.attention),
            "router": self.moe_layers * d * self.num_experts,
            "hyper-connections": 2 * self.num_layers * generator,
            "embedding": self.vocab_size * d,
            "head": self.vocab_size * d,
        }

    @property
    def params_by_part_active(self) -> dict[str, int]:
        """What one token multiplies with, by part: K of E experts, and no input embedding, which is a look-up."""
        parts = self.params
        return parts | {"routed experts": parts["routed experts"] * self.top_k // self.num_experts, "embedding": 0}

    @property
    def params_total(self) -> int:
        """All parameters."""
        return sum(self.params.values())

    @property
    def params_active(self) -> int:
        """What one token multiplies with."""
        return sum(self.params_by_part_active.values())

    def kv_bytes_per_token(self, dtype: str | None = None) -> int | float:
        """Bytes that one more token of context adds; ``dtype`` of all numbers, or None for the published storage."""
        return sum(sum(kind.bytes_per_token(_width(dtype))) * layers for kind, layers in self.attention)

    def cache_bytes(self, context: int, dtype: str | None = None) -> dict[str, int | float]:
        """Bytes of one sequence's decoding state after ``context`` tokens, by part.

        The window and the tails do not grow with the context. Tails are float32 whatever ``dtype`` says.
        """
        parts = {"entries": 0.0, "indexer keys": 0.0, "window": 0.0, "tails": 0.0}
        for kind, layers in self.attention:
            entries, keys = kind.bytes_per_token(_width(dtype))
            parts["entries"] += layers * entries * context
            parts["indexer keys"] += layers * keys * context
            parts["window"] += layers * kind.window_bytes(_width(dtype), context)
            parts["tails"] += layers * kind.tail_bytes()
        return parts

    def flops(self, context: int) -> dict[str, int | float]:
        """FLOPs of the token at position ``context`` in decoding, by part; a multiply-add counts as 2."""
        head = 2.0 * self.vocab_size * self.d_model
        return {
            "linear": 2.0 * self.params_active - head,
            "head": head,
            "indexer": sum(layers * kind.indexer_flops(context) for kind, layers in self.attention),
            "attention core": sum(layers * kind.core_flops(context) for kind, layers in self.attention),
        }


def _width(dtype: str | None) -> int | None:
    return None if dtype is None else dtype_bytes(dtype)


def published_names() -> tuple[str, ...]:
    """The models that have a data file.

    Example:
      >>> published_names()
      ('deepseek-v3', 'deepseek-v3.2', 'deepseek-v4-flash', 'deepseek-v4-pro')
    """
    folder = resources.files("minimoe.cost") / "published_models"
    return tuple(sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json")))


@functools.cache
def published_model(name: str) -> PublishedModel:
    """The sizes of a published model.

    Raises:
      UserError: for an unknown name, listing the known ones.

    Example:
      >>> published_model("deepseek-v3.2").kv_bytes_per_token()
      48068
    """
    if name not in published_names():
        raise UserError(f"published model {name!r} is not known; choose one of {', '.join(published_names())}")
    file = resources.files("minimoe.cost") / "published_models" / f"{name}.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    attention = tuple((ATTENTION_COUNTS[a["kind"]](**a["sizes"]), a["layers"]) for a in data["attention"])
    return PublishedModel(name, **data["sizes"], attention=attention, sources=data["sources"])


def gqa_bytes_per_token(num_layers: int, num_kv_heads: int = 8, head_dim: int = 128, dtype: str = "bfloat16") -> int:
    """The usual yardstick: grouped-query attention, a key and a value of every head in every layer.

    Example:
      >>> f"{published_model('deepseek-v4-pro').kv_bytes_per_token() / gqa_bytes_per_token(61):.1%}"
      '2.0%'
    """
    return num_layers * 2 * num_kv_heads * head_dim * dtype_bytes(dtype)


@dataclasses.dataclass(frozen=True)
class Weighting:
    """What one FLOP of a part counts, when "equivalent FP8 FLOPs" are meant. The report publishes no weights.

    Attributes:
      latent_core, shared_core: of the attention core of V3.2, and of V4. fp4_indexer: of V4's 4-bit indexer.
      head: whether the output head counts.
    """

    name: str
    latent_core: int | float = 1.0
    shared_core: int | float = 1.0
    fp4_indexer: int | float = 1.0
    head: bool = True

    def flops(self, model: PublishedModel, context: int) -> int | float:
        """Weighted FLOPs of the token at position ``context``."""
        parts = model.flops(context)
        total = parts["linear"] + self.head * parts["head"]
        for kind, layers in model.attention:
            core = self.shared_core if kind.shares_key_and_value else self.latent_core
            index = self.fp4_indexer if kind.shares_key_and_value else 1.0
            total += layers * (core * kind.core_flops(context) + index * kind.indexer_flops(context))
        return total


WEIGHTINGS = (
    Weighting("every operation counts 1"),
    Weighting("both cores count 2 (bfloat16)", 2, 2),
    Weighting("both cores 2, FP4 indexer 0.5", 2, 2, 0.5),
    Weighting("V4's core 2, FP4 indexer 0.5", 1, 2, 0.5),
    Weighting("V4's core 2, FP4 indexer 0.5, no output head", 1, 2, 0.5, head=False),
    Weighting("both cores 1, FP4 indexer 0.5", 1, 1, 0.5),
)


def flops_shares(model: PublishedModel, against: PublishedModel, context: int) -> dict[str, int | float]:
    """FLOPs of ``model`` as a share of ``against``, under each of `WEIGHTINGS`: a range, not a verification.

    Example:
      >>> pro, v32 = published_model("deepseek-v4-pro"), published_model("deepseek-v3.2")
      >>> shares = flops_shares(pro, v32, 2**20).values()
      >>> f"{min(shares):.1%} to {max(shares):.1%}"
      '20.6% to 31.9%'
    """
    return {w.name: w.flops(model, context) / w.flops(against, context) for w in WEIGHTINGS}
