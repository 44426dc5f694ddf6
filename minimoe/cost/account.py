"""One account of what a model costs, the same for a config of ours and for a published model."""

from __future__ import annotations

import dataclasses
from typing import Any

from minimoe.attention.mla_config import MultiHeadLatentConfig
from minimoe.checks import whole
from minimoe.config import ModelConfig
from minimoe.cost.cache import kv_bytes_per_token
from minimoe.cost.flops import forward_flops_per_token
from minimoe.cost.params import count_params
from minimoe.cost.published import PublishedModel


@dataclasses.dataclass(frozen=True)
class Account:
    """What a model costs at one length of context.

    Attributes:
      context: tokens of the sequence. storage: of the cache.
      params, params_active_by_part: by part.
      kv_bytes_per_token: what one more token adds. cache_bytes: of one sequence at ``context``, by part.
      flops: of the token at position ``context`` in decoding, by part; a multiply-add counts as 2.
      assumptions: what the numbers leave out.
    """

    context: int
    storage: str
    params: dict[str, int]
    params_active_by_part: dict[str, int]
    kv_bytes_per_token: int | float
    cache_bytes: dict[str, int | float]
    flops: dict[str, int | float]
    assumptions: tuple[str, ...]

    @property
    def kv_bytes(self) -> int | float:
        """Bytes of entries, indexer keys and window: what the published ratios compare. Tails are left out."""
        return sum(size for part, size in self.cache_bytes.items() if part != "tails")

    def to_record(self) -> dict[str, Any]:
        """Plain values, with the sums."""
        sums = {
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_bytes": self.kv_bytes,
            "kv_bytes_with_tails": sum(self.cache_bytes.values()),
            "params_total": sum(self.params.values()),
            "params_active": sum(self.params_active_by_part.values()),
            "flops_per_token": sum(self.flops.values()),
        }
        return sums | dataclasses.asdict(self) | {"assumptions": list(self.assumptions)}


def account(model: ModelConfig | PublishedModel, context: int, dtype: str | None = None) -> Account:
    """What ``model`` costs for one sequence of ``context`` tokens.

    Args:
      model: a config of ours, or one of `minimoe.cost.published_model`.
      context: 1 or more.
      dtype: of the numbers in the cache; by default the published storage, or the config's own.

    Raises:
      UserError: if ``context`` is not a whole number of at least 1.

    Example:
      >>> from minimoe.cost import published_model
      >>> pro, v32 = (account(published_model(name), 2**20) for name in ("deepseek-v4-pro", "deepseek-v3.2"))
      >>> f"{v32.kv_bytes / pro.kv_bytes:.3f}"
      '9.545'
    """
    context = whole("context", context, hint="give the tokens of a sequence, such as 4096")
    if isinstance(model, PublishedModel):
        return Account(
            context,
            "published" if dtype is None else dtype,
            model.params,
            model.params_by_part_active,
            model.kv_bytes_per_token(dtype),
            model.cache_bytes(context, dtype),
            model.flops(context),
            (
                "norms, biases and multi-token prediction are left out",
                "every operation counts 1, whatever its precision",
            ),
        )
    return _own(model, context, dtype)


def _own(config: ModelConfig, context: int, dtype: str | None) -> Account:
    count = count_params(config)
    parts = {
        "routed experts": count.routed,
        "shared experts or dense": count.shared,
        "attention": count.attention,
        "router": count.router,
        "norms and residuals": count.norms,
        "embedding": count.embedding,
        "head": count.head,
        "multi-token prediction": count.mtp,
    }
    active = parts | {"routed experts": count.routed_active, "multi-token prediction": 0}
    active |= {"embedding": 0, "head": count.embedding if count.output_tied else count.head}
    per_token = kv_bytes_per_token(config, dtype)
    return Account(
        context,
        config.dtype if dtype is None else dtype,
        parts,
        active,
        per_token,
        _own_cache(config, context, dtype),
        {"all": _last_token_flops(config, context)},
        ("norms and softmax are left out of the FLOPs", *_beyond(config, context)),
    )


def _beyond(config: ModelConfig, context: int) -> tuple[str, ...]:
    if context <= config.context_length:
        return ()
    return (f"{context:,} tokens are more than the model takes (context_length={config.context_length:,}): by formula",)


def _own_cache(config: ModelConfig, context: int, dtype: str | None) -> dict[str, int | float]:
    """Of all layers, by part."""
    total: dict[str, int | float] = {}
    for layer, count in config.layer_counts.items():
        assert layer.attention is not None  # layer_counts leaves nothing open
        for part, size in layer.attention.cache_parts(context, config.dtype if dtype is None else dtype).items():
            total[part] = total.get(part, 0) + count * size
    return total


def _last_token_flops(config: ModelConfig, context: int) -> int | float:
    """`forward_flops_per_token` is a mean over positions; a difference of two sums is the last position.

    Latent attention decodes in another form than it trains in, with wider vectors a position.
    """
    before = (context - 1) * forward_flops_per_token(config, context - 1) if context > 1 else 0.0
    absorbed = sum(
        count * layer.attention.absorbed_extra_flops(context)
        for layer, count in config.layer_counts.items()
        if isinstance(layer.attention, MultiHeadLatentConfig)
    )
    return context * forward_flops_per_token(config, context) - before + absorbed
