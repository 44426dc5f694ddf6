"""What one step of decoding reads, sends and multiplies, for B sequences that each get one token.

    weights   all that every token uses, once, and the distinct experts that the B tokens hit
    cache     of every sequence, what its attention reads of it
    links     K rows of D numbers to experts and back, a token and sparse layer

Axes: B sequences, D model width, E experts, K experts a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from minimoe.attention import CompressedSparseConfig
from minimoe.attention.row_bytes import dtype_bytes, index_key_bytes
from minimoe.checks import number, require, whole
from minimoe.config import ModelConfig
from minimoe.cost.account import account
from minimoe.cost.assumptions import Assumptions, weight_bits
from minimoe.cost.published import PublishedModel
from minimoe.layers import swiglu_params

EMBEDDINGS = ("embedding", "head")
ROUTED = "routed experts"


def expected_distinct_experts(
    num_experts: int, top_k: int, tokens: int, popularity: Iterable[Any] | None = None
) -> int | float:
    """Experts of a layer that at least one of ``tokens`` tokens chooses, on average: ``E * (1 - (1 - K/E)^tokens)``.

    Tokens choose independently of each other. With ``popularity`` expert e is chosen by a token with probability
    ``K * popularity[e]``, and the sum runs over experts; a skewed load hits fewer of them.

    Args:
      num_experts, top_k: E and K. tokens: 0 or more.
      popularity: share of the assignments that goes to each expert; even if None.

    Raises:
      UserError: for ``top_k`` above ``num_experts``, or shares that do not sum to 1.

    Example:
      >>> expected_distinct_experts(256, 8, 1), round(expected_distinct_experts(256, 8, 64))
      (8.0, 222)
    """
    whole("num_experts", num_experts)
    whole("top_k", top_k, 1, num_experts, hint="lower top_k or raise num_experts")
    whole("tokens", tokens, 0)
    if popularity is None:
        return num_experts * (1 - (1 - top_k / num_experts) ** tokens)
    shares = [number("popularity", share, 0, 1, ends="[]") for share in popularity]
    fits = len(shares) == num_experts and abs(sum(shares) - 1) < 1e-6
    require(
        fits, "", f"popularity must be {num_experts} shares that sum to 1; there are {len(shares)}, sum {sum(shares):g}"
    )
    return sum(1 - (1 - min(1.0, top_k * share)) ** tokens for share in shares)


def sparse_layers(model: ModelConfig | PublishedModel) -> list[tuple[int, int, int, int]]:
    """``(layers, E, K, parameters of an expert)`` of each kind of sparse block."""
    if isinstance(model, PublishedModel):
        expert = swiglu_params(model.d_model, model.expert_width)
        return [(model.moe_layers, model.num_experts, model.top_k, expert)]
    counts = model.layer_counts.items()
    return [(n, la.moe.num_experts, la.moe.top_k, la.moe.expert_params) for la, n in counts if la.moe is not None]


def cache_read_bytes(model: ModelConfig | PublishedModel, context: int, dtype: str | None = None) -> int | float:
    """Bytes of one sequence's cache that one decoding step reads, at ``context`` tokens.

    An indexer reads all its keys and then the K entries that it chose; other attention reads all that it keeps. The
    uncompressed tails are left out: they are read only when an entry is made.

    Example:
      >>> from minimoe.cost import published_model
      >>> f"{cache_read_bytes(published_model('deepseek-v4-pro'), 2**20) / 1e6:.0f} MB"
      '706 MB'
    """
    if isinstance(model, PublishedModel):
        return _published_read(model, context, dtype)
    kept = model.dtype if dtype is None else dtype
    total = 0.0
    for layer, count in model.layer_counts.items():
        assert layer.attention is not None  # layer_counts leaves nothing open
        parts = layer.attention.cache_parts(context, kept)
        entries: int | float = parts["entries"]
        if isinstance(layer.attention, CompressedSparseConfig):
            number_of = context // layer.attention.ratio
            keys = number_of * index_key_bytes(layer.attention.index_dim, kept)
            entries = keys + (entries - keys) * _chosen(layer.attention.index_top_k, number_of)
        total += count * (entries + parts.get("window", 0))
    return total


def _published_read(model: PublishedModel, context: int, dtype: str | None) -> int | float:
    parts = model.cache_bytes(context, dtype)
    total = parts["indexer keys"] + parts["window"]
    width = None if dtype is None else dtype_bytes(dtype)
    for kind, layers in model.attention:
        entries = layers * context * kind.bytes_per_token(width)[0]
        number_of = context / (getattr(kind, "ratio", 1) or 1)
        total += entries * (_chosen(kind.index_top_k, number_of) if kind.index_top_k else 1)
    return total


def _chosen(top_k: int, entries: int | float) -> int | float:
    return min(1.0, top_k / entries) if entries else 1.0


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Of one decoding step for ``batch`` sequences, on all chips together.

    Attributes:
      dense_bytes: weights that every token uses. expert_bytes: of the distinct routed experts that are hit.
      cache_bytes: read, all sequences. link_bytes: if every row went to another chip.
      flops: a multiply-add counts as 2.
      dense_stored, experts_stored: weights to be held. cache_stored: of one sequence.
      distinct: experts hit in a layer, on average over the layers, and E.
    """

    batch: int
    context: int
    dense_bytes: int | float
    expert_bytes: int | float
    cache_bytes: int | float
    link_bytes: int | float
    flops: int | float
    dense_stored: int | float
    experts_stored: int | float
    cache_stored: int | float
    distinct: tuple[int | float, int | float]


def decode_traffic(
    model: ModelConfig | PublishedModel, batch: int, context: int, assumptions: Assumptions | None = None
) -> Traffic:
    """What one step moves: see `Traffic`.

    Args:
      model: a config of ours, or a published model.
      batch: sequences that get a token each. context: tokens that each of them holds.

    Raises:
      UserError: for a batch or context below 1.
    """
    batch = whole("batch", batch, hint="give the sequences that are decoded at once")
    assumed = Assumptions() if assumptions is None else assumptions
    entry = account(model, context, assumed.cache_dtype)
    bits = weight_bits(model, assumed)

    def stored(parts: dict[str, int]) -> int | float:
        sizes = {part: bits["embedding and head"] if part in EMBEDDINGS else bits["other"] for part in parts}
        return sum(count * sizes[part] / 8 for part, count in parts.items() if part != ROUTED)

    sparse = sparse_layers(model)
    hits = [expected_distinct_experts(experts, top_k, batch) for _, experts, top_k, _ in sparse]
    layers = sum(count for count, *_ in sparse)
    rows = sum(count * top_k for count, _, top_k, _ in sparse)
    hit = sum(count * each for (count, *_), each in zip(sparse, hits, strict=True))
    return Traffic(
        batch,
        entry.context,
        dense_bytes=stored(entry.params_active_by_part),
        expert_bytes=sum(n * each * size for (n, _, _, size), each in zip(sparse, hits, strict=True))
        * bits[ROUTED]
        / 8,
        cache_bytes=batch * cache_read_bytes(model, entry.context, assumed.cache_dtype),
        link_bytes=batch * rows * model.d_model * (assumed.dispatch_bytes + assumed.combine_bytes),
        flops=batch * sum(entry.flops.values()),
        dense_stored=stored(entry.params),
        experts_stored=entry.params[ROUTED] * bits[ROUTED] / 8,
        cache_stored=sum(entry.cache_bytes.values()),
        distinct=(hit / layers, sum(n * e for n, e, *_ in sparse) / layers) if layers else (0.0, 0.0),
    )
