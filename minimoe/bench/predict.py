"""`minimoe bench predict`: times of training steps and decoded tokens, predicted from the machine and measured.

The machine is measured first, with operations that belong to no model. Then every model is traced, which gives what a
step does, and `minimoe.cost.predicted_seconds` says how long that should take. Only after that the step is timed. Both
sides take the fastest of their rounds. What depends on the run, how many overflow blocks of experts there are, is
counted in the timed run and given to the prediction.

Where a decoded token's time goes, by a profile of dense-nano with 8 sequences on one core: 54% to matmuls, whose weights come
from beyond the near cache, 16% to turning keys and values heads-first, 8% to picking the likeliest of 2,048 tokens; the rest
to about 90 small operations, of half a microsecond to two each. A sparse model also copies the weights of each token's
experts out of their stack. Each of these has a rate of its own in `minimoe.cost.Machine`.

Not counted: the angles of the rotary positions, which the compiled program computes again for every number that they turn (4%
of that token), and what Python does once a call. Where the recorded run is off by more than a quarter, decoding, mostly
of 8 or 32 sequences at once, took longer than predicted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe.bench.models import DENSE_NANO, DENSE_SMALL
from minimoe.bench.predict_models import BATCHES, LENGTH, MODEL_NAMES, NEW_TOKENS, SEQUENCES
from minimoe.config import PRESETS, ModelConfig
from minimoe.cost import Machine, count_params, decode_step, predicted_seconds, training_flops_per_token, work_of
from minimoe.inference import generate
from minimoe.model import MoETransformer
from minimoe.moe.dropless import BLOCK_ROWS, FEW_ASSIGNMENTS, slots_per_expert
from minimoe.training import Recipe, optimizer_for, train_step

MODELS = dict(
    zip(MODEL_NAMES, (PRESETS["nano"], DENSE_NANO, PRESETS["v4-nano"], PRESETS["small"], DENSE_SMALL), strict=True)
)


def measure(
    machine: Machine,
    models: Sequence[str] = MODEL_NAMES,
    batches: Sequence[int] = BATCHES,
    *,
    rounds: int = 5,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Rows of predicted and measured seconds, and the median of their errors.

    Args:
      machine: from `minimoe.cost.measure_machine`, on this machine.
      models: names in `MODELS`. batches: sequences that are decoded at once.
      progress: called with (rows done, rows in all, what comes next).
    """
    cases = [(name, batch) for name in models for batch in (0, *batches)]  # 0: training
    rows = []
    for done, (name, batch) in enumerate(cases):
        what = f"{name}, decoding {batch}" if batch else f"{name}, training"
        if progress is not None:
            progress(done, len(cases), what)
        timed = _decode(MODELS[name], batch, rounds) if batch else _train(MODELS[name], rounds)
        rows.append({"model": name} | _row(machine, MODELS[name], timed))
    if progress is not None:
        progress(len(cases), len(cases), "done")
    return {"machine": machine.to_record(), "rows": rows} | errors(rows)


def errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median and largest of ``|predicted / measured - 1|``, ours and that of the peaks alone."""
    found = {}
    for key in ("predicted", "peak_roofline"):
        off = [abs(row[f"{key}_ms"] / row["measured_ms"] - 1) for row in rows]
        found[key] = {"median_error": round(statistics.median(off), 4), "largest_error": round(max(off), 4)}
    return {"errors": found}


def _row(machine: Machine, config: ModelConfig, timed: dict[str, Any]) -> dict[str, Any]:
    """One row, in milliseconds, with the parts of the prediction and the naive roofline beside it."""
    weights = 4 * count_params(config).total
    parts = predicted_seconds(timed.pop("work"), machine, weights)
    seconds = sum(parts.values())
    peaks = _peaks(machine, config, timed)
    return timed | {
        "predicted_ms": _ms(seconds),
        "error": round(seconds / timed["measured_ms"] * 1e3 - 1, 4),
        "parts_ms": {part: _ms(value) for part, value in parts.items()},
        "peak_roofline_ms": _ms(peaks),
    }


def _ms(seconds: float) -> float:
    return float(f"{1e3 * seconds:.4g}")


def _peaks(machine: Machine, config: ModelConfig, timed: Mapping[str, Any]) -> float:
    """What peak and bandwidth alone promise: FLOPs of the formula, bytes of the weights."""
    if timed["kind"] == "decode":
        return float(decode_step(config, machine.chip(), timed["batch"], NEW_TOKENS // 2).seconds)
    return training_flops_per_token(config, LENGTH) * SEQUENCES * LENGTH / machine.peak_flops["float32"]


def _fastest(run: Callable[[], object], rounds: int) -> float:
    run()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _train(config: ModelConfig, rounds: int) -> dict[str, Any]:
    """A training step of untrained weights on random tokens: its work and its time."""
    recipe = Recipe(steps=10_000, learning_rate=1e-5, warmup_steps=0)
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    optimizer = optimizer_for(model, recipe)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (SEQUENCES, LENGTH + 1)), jnp.int32)
    batch = ids[:, :-1], ids[:, 1:], jnp.ones((SEQUENCES, LENGTH), bool), jax.random.key(0)
    graphdef, state = nnx.split((model, optimizer))

    def step(state, *batch):
        model, optimizer = nnx.merge(graphdef, state)
        return train_step(model, optimizer, *batch, recipe=recipe), nnx.state((model, optimizer))

    loads: list[np.ndarray] = []

    def run() -> None:
        metrics = train_step(model, optimizer, *batch, recipe=recipe)
        jax.block_until_ready((metrics, nnx.state(model)))
        loads.append(np.asarray(metrics.load))

    abstract = jax.eval_shape(lambda: state)
    seconds = _fastest(run, rounds)
    turns = overflow_blocks(loads[-1], SEQUENCES * LENGTH) if config.layers[0].moe else 0.0
    work = work_of(step, abstract, *batch, turns=turns)
    sizes = {"kind": "train", "batch": SEQUENCES, "length": LENGTH, "overflow_blocks": turns}
    return sizes | {"measured_ms": _ms(seconds), "work": work}


def overflow_blocks(load: np.ndarray, tokens: int) -> float:
    """Blocks beyond the slots of `minimoe.moe.dropless`, mean over layers.

    Args:
      load: assignments ``[layers, E]`` of ``tokens`` tokens each.
    """
    assignments = int(load[0].sum())
    if assignments <= FEW_ASSIGNMENTS:
        return 0.0
    over = np.maximum(load - slots_per_expert(assignments, load.shape[1]), 0)
    return float(np.ceil(over / BLOCK_ROWS).sum(axis=1).mean())


def _decode(config: ModelConfig, batch: int, rounds: int) -> dict[str, Any]:
    """One more token for each of ``batch`` sequences: a mean over `NEW_TOKENS`, with room for them in the cache."""
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (batch, 1)), jnp.int32)
    texts: list[jax.Array] = []

    def run() -> None:
        texts.append(jax.block_until_ready(generate(model, ids, NEW_TOKENS, temperature=0.0)))

    seconds = _fastest(run, rounds) / NEW_TOKENS
    turns = statistics.mean(_blocks_by_token(model, texts[-1])) if config.layers[0].moe else 0.0
    graphdef, state = nnx.split(model)

    def turn(state, tokens, cache):
        logits, _, cache = nnx.merge(graphdef, state).extend(tokens, cache)
        return jnp.argmax(logits[:, 0], axis=-1), cache

    work = work_of(turn, state, ids, model.init_cache(batch, NEW_TOKENS + 1), turns=turns)
    sizes = {"kind": "decode", "batch": batch, "length": NEW_TOKENS, "overflow_blocks": turns}
    return sizes | {"measured_ms": _ms(seconds), "work": work}


def _blocks_by_token(model: MoETransformer, texts: jax.Array) -> Iterator[float]:
    """Overflow blocks of each turn, from where the tokens of a finished text go."""
    batch, length = texts.shape
    _, routing = nnx.jit(lambda model, tokens: model(tokens))(model, texts)
    for place in range(length):
        counts = [
            np.bincount(
                np.asarray(each.experts).reshape(batch, length, -1)[:, place].ravel(), minlength=each.probs.shape[1]
            )
            for each in routing
        ]
        yield overflow_blocks(np.stack(counts), batch)
