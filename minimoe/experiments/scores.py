"""Scores of a trained run beyond bits per byte: after quantization, and on reasoning problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.model import MoETransformer

GRADED = 100  # validation problems of each level, so that one more is a percentage point
FORMS = ("worked", "direct")


def rounded(work: Workplace, model: MoETransformer, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``quantized``: the whole validation text again, by the weights as the recipe of that name rounds them."""
    from minimoe.data import evaluation_documents
    from minimoe.quant import quantize_model
    from minimoe.training import evaluate

    documents = evaluation_documents(work.validation, "full")
    scored = evaluate(quantize_model(model, settings["quantized"]), documents, work.tokenizer)
    return {"quantized": scored.to_record()}


def solved(work: Workplace, model: MoETransformer, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``tasks``: validation problems that the model solves, asked for the steps and for the answer alone."""
    from minimoe.progress import grade

    return {"tasks": {form: grade(model, work.tokenizer, form, GRADED).to_record() for form in FORMS}}
