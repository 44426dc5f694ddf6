"""`minimoe bench train`: tokens per second of a training step, ours against Transformers with the same weights.

Both sides take the same batches of random tokens and do the same step: forward, loss, backward, clipping by global
norm, AdamW with decay on matrices only, one learning rate. If the losses of the first steps differ, the clocks mean
nothing, so they are reported first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe.bench.references import not_compared, reference_model
from minimoe.bench.timing import alternate, ratio
from minimoe.config import ModelConfig
from minimoe.cost import count_params, training_flops_per_token
from minimoe.model import MoETransformer
from minimoe.moe import max_violation
from minimoe.training import Recipe, StepMetrics, optimizer_for, train_step
from minimoe.training import learning_rate as schedule_of

CHECKED_STEPS = 3


def measure(
    config: ModelConfig,
    *,
    batch: int,
    length: int,
    learning_rate: float,
    rounds: int,
    warmup: int,
    pause: float,
) -> dict[str, Any]:
    """Times training steps on ``batch`` sequences of ``length`` tokens.

    No balancing of any kind is on, in either side. A small ``learning_rate`` keeps the load as an untrained router
    makes it; with a large one it collapses within ten steps, and the time is that of a collapsed layer. MaxVio of every
    layer, first and last step, is in the report.
    """
    recipe = Recipe(steps=10_000, learning_rate=learning_rate, warmup_steps=0, router_bias_rate=0.0)
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    reference = not_compared(config)
    runs: dict[str, Callable[[], float]] = {}
    history: list[StepMetrics] = []
    if reference is None:  # before ours, whose first step donates the weights
        runs["transformers"] = _transformers(reference_model(model), _batches(config, batch, length), recipe)
    runs = {"minimoe": _ours(model, _batches(config, batch, length), history, recipe)} | runs
    first, losses = {}, {}
    for name, run in runs.items():
        start = time.perf_counter()
        losses[name] = [run()]
        first[name] = round(time.perf_counter() - start, 3)
        losses[name] += [run() for _ in range(CHECKED_STEPS - 1)]
    times = alternate(runs, rounds=rounds, warmup=warmup, pause=pause)
    tokens, flops = batch * length, training_flops_per_token(config, length)
    count = count_params(config)
    return {
        "shape": {"B": batch, "L": length},
        "parameters": {"total": count.total, "active": count.active},
        "reference": reference or "measured",
        "first_losses": losses,
        "first_loss_difference": abs(losses["minimoe"][0] - losses["transformers"][0]) if reference is None else None,
        "max_violation": {"first_step": _imbalance(history[0]), "last_step": _imbalance(history[-1])},
        "results": {
            name: {
                "tokens_per_second": round(tokens / timing.median, 1),
                "ms_per_step": timing.summary_ms(),
                "speed_over_transformers": ratio(times["transformers"], timing) if "transformers" in times else None,
                "first_step_seconds": first[name],
                "useful_gflops": round(flops * tokens / timing.median / 1e9, 2),
            }
            for name, timing in times.items()
        },
    }


def _batches(config: ModelConfig, batch: int, length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random tokens and their successors, the same sequence of batches at every call."""
    random = np.random.default_rng(0)
    while True:
        ids = random.integers(0, config.vocab_size, (batch, length + 1))
        yield ids[:, :-1], ids[:, 1:]


def _imbalance(metrics: StepMetrics) -> list[float]:
    """MaxVio of each layer; empty for a dense model."""
    return [round(float(v), 4) for v in max_violation(metrics.load)] if metrics.load.size else []


def _ours(model: MoETransformer, batches: Iterator, history: list[StepMetrics], recipe: Recipe) -> Callable[[], float]:
    optimizer = optimizer_for(model, recipe)
    key = jax.random.key(0)

    def run() -> float:
        tokens, targets = (jnp.asarray(ids, jnp.int32) for ids in next(batches))
        where = jnp.ones(tokens.shape, bool)
        metrics = train_step(model, optimizer, tokens, targets, where, key, recipe=recipe)
        jax.block_until_ready((metrics, nnx.state(model)))
        history.append(metrics)
        return float(metrics.loss)

    return run


def _transformers(reference: Any, batches: Iterator, recipe: Recipe) -> Callable[[], float]:
    import torch

    reference.train()
    optimizer = _torch_adamw(reference, recipe)
    rate = schedule_of(recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(rate(step)))

    def run() -> float:
        tokens, targets = (torch.from_numpy(ids) for ids in next(batches))
        optimizer.zero_grad(set_to_none=True)
        logits = reference(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), recipe.clip_norm)
        optimizer.step()
        schedule.step()
        return loss.item()

    return run


def _torch_adamw(reference: Any, recipe: Recipe) -> Any:
    """AdamW as in the recipe, fused where PyTorch has it. The learning rate is 1 here, times the schedule."""
    import torch

    matrices = [p for p in reference.parameters() if p.ndim >= 2]
    vectors = [p for p in reference.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    settings: dict[str, Any] = {"lr": 1.0, "betas": (recipe.beta1, recipe.beta2), "eps": 1e-8}
    try:
        return torch.optim.AdamW(groups, fused=True, **settings)
    except RuntimeError:  # an older PyTorch without the fused kernel for CPUs
        return torch.optim.AdamW(groups, **settings)
