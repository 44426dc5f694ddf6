"""What does a model forget when its weights are rounded?

The book of `knowledge` nearly fills a model with 4 experts: then every weight matters, and "near-lossless"
can fail. ``plain`` models are quantized after training, by every recipe and with GPTQ. ``qat-R`` models saw their weights
rounded by recipe R in every step, and are then quantized by it. Three seeds. The record has the entries recalled. Lesson
04 reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.fact_run import FactRun, book_of
from minimoe.experiments.knowledge import ENTRIES, SEEDS, STEPS, fact_contestants
from minimoe.experiments.run import Learning, Run
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.model import MoETransformer
    from minimoe.training import RunConfig

TRAINED = ("int4", "mxfp4", "v4")
CALIBRATED = ("int4", "mxfp4")


def runs(done: Mapping[str, Any]) -> list[Run]:
    """A book of facts, rounded after training by every recipe, or trained with rounding; three seeds."""
    model = fact_contestants()["experts-4"]
    found: list[Run] = []
    for seed in SEEDS:
        for qat in (None, *TRAINED):
            settings = {"entries": ENTRIES} | ({} if qat is None else {"qat": qat})
            name = "plain" if qat is None else f"qat-{qat}"
            more: dict[str, Any] = {"learn": read_rounded, "settings": settings, "scores": (rounded,), "model": model}
            found.append(FactRun(f"{name}-{seed}", changes={"steps": STEPS, "seed": seed}, **more))
    return found


def read_rounded(work: Workplace, run: RunConfig, *, qat: str | None = None, **settings: Any) -> Learning:
    """The book, read by weights that ``qat`` rounds."""
    from minimoe.quant.methods import QuantizationAware
    from minimoe.training import Combined, RecallFacts

    method = RecallFacts() if qat is None else Combined(RecallFacts(), QuantizationAware(qat))
    return Learning(book_of(settings), method=method)


def rounded(work: Workplace, model: MoETransformer, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``formats``: the share of entries recalled, by recipe; a model trained with rounding is asked by its own alone."""
    import jax.numpy as jnp

    from minimoe.quant import RECIPES, collect, gptq_model, quantize_model
    from minimoe.training import evaluate_facts

    book = book_of(settings)
    names = [settings["qat"]] if settings.get("qat") else list(RECIPES)
    found = {name: evaluate_facts(quantize_model(model, name), book).recalled for name in names}
    if not settings.get("qat"):
        calibration = collect(model, [jnp.asarray(book.entries[:, :-1])])
        for name in CALIBRATED:
            found[f"{name}+gptq"] = evaluate_facts(gptq_model(model, calibration, name), book).recalled
    return {"formats": found}
