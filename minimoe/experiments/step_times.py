"""How long does a training step take, next to a dense model that computes as much for each token?

The contestants take turns, step by step, in one process, so that a slow moment of the machine hits all of them. Nothing
else may run meanwhile. `longer-text` takes from this record what "equal time" means: the ratio that its runs were given
stays in the record as ``given`` when the steps are timed again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimoe.console import Bar
from minimoe.experiments.contestants import BASELINE, contestants
from minimoe.experiments.run import machine
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.config import ModelConfig

ROUNDS, WARM_UP = 44, 4


def measure(folder: Path, values: dict[str, Any], save: Callable[[], None]) -> None:
    """Times a step of every contestant on ``nano``'s batches; keeps memory, as the command does."""
    from minimoe.process import keep_memory

    keep_memory()
    seconds = {name: times[WARM_UP:] for name, times in _alternating(contestants(), Workplace(folder)).items()}
    # of the same round, so that both saw the same machine
    rounds = {name: [a / b for a, b in zip(times, seconds[BASELINE], strict=True)] for name, times in seconds.items()}
    quarters = {name: statistics.quantiles(ratios, n=4, method="inclusive") for name, ratios in rounds.items()}
    ratio = {name: round(middle, 4) for name, (_, middle, _) in quarters.items()}
    values |= {
        "machine": machine(),
        "milliseconds": {name: round(1e3 * statistics.median(times), 2) for name, times in seconds.items()},
        "given": values.get("given") or values.get("ratio") or ratio,
        "ratio": ratio,
        "quartiles": {name: [round(low, 3), round(high, 3)] for name, (low, _, high) in quarters.items()},
    }
    save()


def _alternating(models: dict[str, ModelConfig], work: Workplace) -> dict[str, list[float]]:
    import jax
    import jax.numpy as jnp

    from minimoe.data import training_data
    from minimoe.training import Recipe, RunConfig, train_step
    from minimoe.training.loop import init_training

    data = training_data(work.corpus, work.tokenizer)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    recipes = {name: Recipe.preset("nano", router_bias_rate=0.02 if m.moe else 0.0) for name, m in models.items()}
    states = {
        name: init_training(RunConfig(model, recipes[name], {}, work.tokenizer.name)) for name, model in models.items()
    }
    with Bar("step times", ROUNDS) as bar:
        for step in range(ROUNDS):
            batch = data.batch(0, step, recipes[BASELINE].batch_size, models[BASELINE].context_length)
            tokens, targets, where = (jnp.asarray(array) for array in (batch.tokens, batch.targets, batch.where))
            for name, (model, optimizer) in states.items():
                began = time.perf_counter()
                metrics = train_step(
                    model, optimizer, tokens, targets, where, jax.random.key(step), recipe=recipes[name]
                )
                jax.block_until_ready(metrics)
                seconds[name].append(time.perf_counter() - began)
            bar.update(step + 1)
    return seconds
