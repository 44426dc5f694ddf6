"""`minimoe bench dispatch`: which way to the experts is fastest on this device, and in which number format.

A layer alone, forward and backward; whole models, a step of training and a decoded token. The weights are equal, so the
answers are too: each contestant's largest difference from ``dense`` in float32 at full precision is in the report. An
accelerator multiplies float32 with fewer bits than it has unless it is told not to; what is timed is what it does unasked.

Axes: T tokens, D model width, F expert hidden width, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe.bench.decode import greedy, random_model
from minimoe.bench.moe import Answer, answer_arrays, layer_of, sparse_step, tokens_of_load
from minimoe.bench.timing import alternate, ratio
from minimoe.config import ModelConfig
from minimoe.cost import count_params, moe_layer_flops
from minimoe.model import MoETransformer
from minimoe.training import Recipe, optimizer_for, train_step

REFERENCE = "dropless float32"  # what the package does if nothing else is asked for


def measure_layer(
    shape: Mapping[str, int],
    dispatches: Sequence[str],
    dtypes: Sequence[str],
    *,
    load: str = "0.25",
    rounds: int,
    warmup: int,
    pause: float = 0.0,
) -> dict[str, Any]:
    """Times one sparse layer, forward and backward, at a given load.

    Args:
      shape: T, D, F, E and K. dispatches: names in `minimoe.moe.DISPATCHERS`. dtypes: of activations and expert matmuls.
      load: MaxVio as text, see `minimoe.bench.moe.tokens_of_load`.
      rounds, warmup, pause: see `minimoe.bench.alternate`.

    Returns:
      Plain values; of each contestant its milliseconds, its time over that of `REFERENCE` if that takes part, and its
      largest differences over the largest value of each answer: output, gradient of the input, of the matrices.
    """
    x = jnp.asarray(tokens_of_load(shape, load))
    dy = jax.random.normal(jax.random.key(1), x.shape)

    def step(dispatch: str, dtype: str) -> Callable[[], Answer]:
        return sparse_step(layer_of(shape, dispatch=dispatch, dtype=dtype, capacity_factor=2.0), dy)(x)

    with jax.default_matmul_precision("highest"):
        exact = answer_arrays(step("dense", "float32")())
    runs = {f"{dispatch} {dtype}": step(dispatch, dtype) for dtype in dtypes for dispatch in dispatches}
    off = {name: _differences(run(), exact) for name, run in runs.items()}
    times = alternate(runs, rounds=rounds, warmup=warmup, pause=pause)
    useful = 3 * moe_layer_flops(layer_of(shape).config, shape["T"])  # backward costs twice the forward
    return {
        "shape": dict(shape),
        "load": load,
        "results": {
            name: {
                "ms": timing.summary_ms(),
                "time_over_default": ratio(timing, times[REFERENCE]) if REFERENCE in times else None,
                "useful_gflops": round(useful / timing.median / 1e9, 1),
                "difference": off[name],
            }
            for name, timing in times.items()
        },
    }


def measure_model(
    config: ModelConfig,
    dispatches: Sequence[str],
    dtypes: Sequence[str],
    *,
    sequences: int,
    batches: Sequence[int],
    new_tokens: int = 64,
    rounds: int,
    warmup: int,
    pause: float = 0.0,
) -> dict[str, Any]:
    """Times steps of training and decoding of one model; weights and tokens are random.

    Args:
      sequences: of a training step, each as long as the model's context. batches: sequences decoded at once.
      new_tokens: for each of them, after one, as far as the context reaches; a time is the whole call's over them.

    Returns:
      Plain values; of each contestant tokens a second, and milliseconds of a step or of a decoded token.
    """
    length, rng = config.context_length, np.random.default_rng(0)
    new_tokens = min(new_tokens, length - 1)
    ids = jnp.asarray(rng.integers(0, config.vocab_size, (max(sequences, *batches), length + 1)), jnp.int32)
    runs: dict[str, Callable[[], object]] = {}
    tokens: dict[str, int] = {}
    for dtype in dtypes:
        for dispatch in dispatches:
            one = config.replace(dtype=dtype).replace_moe(dispatch=dispatch, dtype=dtype)
            name = f"train, {dispatch} {dtype}"
            runs[name], tokens[name] = _training(one, ids[:sequences]), sequences * length
            # With a capacity a text depends on the texts beside it: that is for training alone.
            for batch in batches if dispatch != "capacity" else ():
                name = f"decode {batch}, {dispatch} {dtype}"
                runs[name], tokens[name] = greedy(random_model(one)[0], ids[:batch, :1], new_tokens), batch * new_tokens
    times = alternate(runs, rounds=rounds, warmup=warmup, pause=pause)
    count = count_params(config)
    return {
        "shape": {"B": sequences, "L": length, "new_tokens": new_tokens},
        "parameters": {"total": count.total, "active": count.active},
        "results": {
            name: {
                "tokens_per_second": round(tokens[name] / timing.median, 1),
                "ms": {
                    part: round(value / (new_tokens if name.startswith("decode") else 1), 4)
                    for part, value in timing.summary_ms().items()
                },
                "time_over_default": ratio(timing, times[default]) if (default := _default(name)) in times else None,
            }
            for name, timing in times.items()
        },
    }


def _default(name: str) -> str:
    return f"{name.partition(', ')[0]}, {REFERENCE}"


def _differences(answer: Answer, exact: Mapping[str, np.ndarray]) -> dict[str, float]:
    found = answer_arrays(answer)
    parts = {"output": "output", "grad x": "grad x"}
    parts |= {f"grad {part}": f"grad experts.{part}_proj" for part in ("gate_up", "down")}
    return {
        name: float(f"{np.abs(found[part].astype(np.float32) - exact[part]).max() / np.abs(exact[part]).max():.2g}")
        for name, part in parts.items()
    }


def _training(config: ModelConfig, ids: jax.Array) -> Callable[[], object]:
    recipe = Recipe(steps=10_000, learning_rate=1e-5, warmup_steps=0)
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    optimizer = optimizer_for(model, recipe)
    batch = ids[:, :-1], ids[:, 1:], jnp.ones(ids[:, 1:].shape, bool), jax.random.key(0)

    def run() -> object:
        metrics = train_step(model, optimizer, *batch, recipe=recipe)
        return jax.block_until_ready((metrics, nnx.state(model)))

    return run
