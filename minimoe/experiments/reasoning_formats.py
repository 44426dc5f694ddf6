"""How many reasoning problems does a quantized model still solve?

The model is the shipped ``teacher``. It is stored in int8, so it is decoded to float32 first; every recipe then rounds
these decoded weights. Each recipe answers the same three sets of problems, so that two recipes are compared set by set.
Nothing is trained. The record has the exact match of each set. Lesson 04 reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimoe.console import Bar, counter, messages

if TYPE_CHECKING:
    from minimoe.model import MoETransformer

MODEL, SETS, PROBLEMS = "teacher", (0, 1, 2), 50  # problems of each of five levels, in each set
RECIPES = ("int8-w8a8", "int4", "fp8", "mxfp4", "nvfp4", "v4", "all-mxfp4")


def measure(folder: Path, values: dict[str, Any], save: Callable[[], None]) -> None:
    """The shipped ``teacher`` by recipe: exact match on three sets of problems, asked for the steps.

    ``float32`` is the decoded model. ``all-mxfp4`` rounds everything but router and norms, as a test of the yardstick.
    What ``values`` holds already is not done again.
    """
    from minimoe.hub import load_pretrained
    from minimoe.quant import MXFP4, QuantRecipe, Rule, dequantize_model, quantize_model
    from minimoe.training import evaluate_tasks

    stored, tokenizer, config = load_pretrained(MODEL)
    assert tokenizer is not None  # it ships with one
    decoded = dequantize_model(stored)
    everything = QuantRecipe("all-mxfp4", (Rule("(^embed|experts|_proj)$", MXFP4),))
    values |= {"model": MODEL, "config": config.to_dict(), "problems": PROBLEMS, "sets": list(SETS)}
    solved = values.setdefault("solved", {})
    for seed in SETS:
        for name in ("float32", *RECIPES):
            if len(solved.get(name, [])) > seed:
                continue
            model: MoETransformer = decoded
            if name != "float32":
                model = quantize_model(decoded, everything if name == "all-mxfp4" else name)
            with Bar(f"{name}, set {seed}", 1) as bar:
                found = evaluate_tasks(model, tokenizer, num=PROBLEMS, seed=seed, progress=counter(bar))
            solved.setdefault(name, []).append(found.to_record())
            messages.print(f"{name}, set {seed}: {found.mean_exact_match:.1%} of the problems solved")
            save()
