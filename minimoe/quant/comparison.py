"""What quantizing cost a trained model: bits per byte before and after, and the expert choices that changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from minimoe import data
from minimoe.data import Document, Tokenizer, evaluation_documents, windows
from minimoe.data.evaluation import window_length
from minimoe.model import MoETransformer
from minimoe.quant.report import routing_changes
from minimoe.training import evaluate

ROUTED_WINDOWS = 32  # of validation text, on which the routers' choices are compared


def compare_models(
    model: MoETransformer,
    quantized: MoETransformer,
    tokenizer: Tokenizer,
    protocol: str = "quick",
    progress: Callable[[str, int, int], None] = lambda which, done, total: None,
) -> dict[str, Any]:
    """Scores a model before and after quantization on the validation text of the corpus.

    Args:
      model, quantized: the same model twice. tokenizer: of both.
      protocol: ``"quick"`` or ``"full"``, see `minimoe.data.evaluation_documents`.
      progress: called with ``"before"`` or ``"after"``, and how many windows of how many are scored.

    Returns:
      ``bits_per_byte``: of both, by domain, and the relative changes. ``routing_changes``: the share (0..1) of expert
      choices that differ; None for a dense model.
    """
    scored = evaluation_documents(data.documents(split="val"), protocol)

    def score(which: str, one: MoETransformer) -> Any:
        return evaluate(one, scored, tokenizer, progress=lambda done, total: progress(which, done, total))

    first, second = score("before", model), score("after", quantized)
    quality = {
        "protocol": protocol,
        "before": first.to_record(),
        "after": second.to_record(),
        "relative_change": {name: after / first.per_domain[name] - 1 for name, after in second.per_domain.items()},
        "relative_change_of_mean": second.bits_per_byte / first.bits_per_byte - 1,
    }
    changes = None if model.config.moe is None else _changed_choices(model, quantized, scored, tokenizer)
    return {"bits_per_byte": quality, "routing_changes": changes}


def _changed_choices(
    model: MoETransformer, quantized: MoETransformer, scored: list[Document], tokenizer: Tokenizer
) -> float:
    """`minimoe.quant.routing_changes` on windows spread evenly over the text."""
    cut = windows(scored, tokenizer, window_length(model.config.context_length))
    chosen = np.unique(np.linspace(0, len(cut.tokens) - 1, ROUTED_WINDOWS).astype(int))
    tokens, where = (jnp.asarray(array[chosen]) for array in (cut.tokens, cut.where))
    return routing_changes(model, quantized, tokens, where=where)
