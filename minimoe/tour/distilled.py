"""The tour's distilled rung: the sparse model of this run goes on for a few steps, alone and with a shipped teacher."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from minimoe.console import messages

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer, TrainingData
    from minimoe.model import MoETransformer
    from minimoe.training import RunConfig

TEACHER = "teacher"
STEPS, FAST_STEPS = 40, 4
ALPHA = 0.9


def distilled_rung(
    model: MoETransformer,
    run: RunConfig,
    data: TrainingData,
    validation: list[Document],
    tokenizer: Tokenizer,
    *,
    fast: bool,
) -> dict[str, Any] | None:
    """The same steps on the same batches from the same weights, twice; None after Ctrl-C.

    Args:
      model, run: what the tour trained, and how.

    Returns:
      ``teacher``: its name, and bits per byte as its card has them (quick protocol). ``steps``; and ``ways``, a row for
      each: bits per byte (quick protocol) and seconds of training and scoring.
    """
    from minimoe.distill import Distillation, DistillRecipe
    from minimoe.hub import load_pretrained, recorded_quality
    from minimoe.progress import train_with_bar
    from minimoe.quant import dequantize_model
    from minimoe.training import Method

    steps = FAST_STEPS if fast else STEPS
    changes: dict[str, Any] = {"steps": steps, "learning_rate": 1e-3, "warmup_steps": steps // 10}
    changes["seed"] = run.recipe.seed + 1  # other batches than those it began with
    onward = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, **changes))
    messages.print(f"teacher: the shipped model {TEACHER!r}, decoded")
    teacher = dequantize_model(load_pretrained(TEACHER)[0])
    kinds = {"alone": Method(), "taught": Distillation(DistillRecipe(alpha=ALPHA), teacher)}
    ways = []
    for name, method in kinds.items():
        began = time.monotonic()
        result = train_with_bar(f"{name}, onward", onward, data, validation, tokenizer, model=model, method=method)
        if result.interrupted or result.evaluation is None:
            return None
        seconds = round(time.monotonic() - began, 1)
        ways.append({"name": name, "bits_per_byte": result.evaluation.bits_per_byte, "seconds": seconds})
    quality = recorded_quality(TEACHER)["quick"]
    return {"teacher": TEACHER, "teacher_bits_per_byte": quality, "alpha": ALPHA, "steps": steps, "ways": ways}
