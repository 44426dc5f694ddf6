"""A new run: model and recipe of a preset with some options changed, and one line that says how large it is."""

from __future__ import annotations

import dataclasses
from typing import Any

from minimoe.training.recipe import Recipe
from minimoe.training.run_folder import RunConfig


def make_run(
    config: str,
    changes: dict[str, Any],
    *,
    dense: bool,
    dropout: float | None,
    tokenizer: Any,
    data: dict[str, Any],
    mtp: bool = False,
) -> RunConfig:
    """Model and recipe of a preset with the options that were given. With ``mtp`` a preset gets a head for multi-token
    prediction, unless it has one of its own.
    """
    from minimoe.config import ModelConfig

    model = ModelConfig.preset(config).with_vocabulary(tokenizer.vocab_size)
    model = model.dense_equivalent() if dense else model
    model = model.with_mtp() if mtp else model
    if dropout is not None:
        model = model.replace(dropout=dropout)
    recipe = Recipe.preset(config, **{name: value for name, value in changes.items() if value is not None})
    if dense:
        recipe = dataclasses.replace(recipe, router_bias_rate=0.0)
    return RunConfig(model, recipe, data, tokenizer.name)


def describe_run(run: RunConfig) -> str:
    """One line: sizes and length of the run."""
    from minimoe.cost import count_params

    count = count_params(run.model)
    tokens = run.recipe.steps * run.recipe.batch_size * run.model.context_length
    sizes = f"{count.total / 1e6:.2f}M parameters, {count.active / 1e6:.2f}M active"
    return f"{sizes}, {run.recipe.steps} steps, {tokens:,} tokens"
