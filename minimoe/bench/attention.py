"""`minimoe bench attention`: our blocked causal attention against `jax.nn.dot_product_attention`.

Axes: B batch, L sequence, N query heads, M key/value heads, H head width. Forward and the gradients of q, k and v.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from minimoe.attention import causal_attention
from minimoe.bench.timing import alternate, ratio

OURS, LIBRARY = "causal_attention", "dot_product_attention"


def measure(shape: Mapping[str, int], *, rounds: int, warmup: int, pause: float) -> dict[str, Any]:
    """Times one shape; ``shape`` gives B, L, N, M and H."""
    b, length, n, m, h = (shape[name] for name in "BLNMH")
    keys = jax.random.split(jax.random.key(0), 4)
    q, dy = (jax.random.normal(key, (b, length, n, h)) for key in keys[:2])
    k, v = (jax.random.normal(key, (b, length, m, h)) for key in keys[2:])

    def library(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    runs = {name: _step(f, q, k, v, dy) for name, f in ((OURS, causal_attention), (LIBRARY, library))}
    answers = {name: run() for name, run in runs.items()}
    differences = [np.abs(np.asarray(a) - np.asarray(c)) for a, c in zip(*answers.values(), strict=True)]
    names = ("output", "grad q", "grad k", "grad v")
    times = alternate(runs, rounds=rounds, warmup=warmup, pause=pause)
    pairs = length * (length + 1) / 2  # (query, key) pairs that causality allows
    useful = 3 * 4.0 * b * n * h * pairs  # two matmuls of 2 FLOPs; the backward pass costs twice the forward
    return {
        "shape": dict(shape),
        "results": {
            name: {
                "ms": time.summary_ms(),
                "time_over_library": ratio(time, times[LIBRARY]),
                "useful_gflops": round(useful / time.median / 1e9, 2),
            }
            for name, time in times.items()
        },
        "max_abs_difference": {n: float(d.max()) for n, d in zip(names, differences, strict=True)},
    }


def _step(attend: Callable[..., jax.Array], q, k, v, dy) -> Callable[[], tuple[jax.Array, ...]]:
    @jax.jit
    def step(q, k, v, dy):
        y, pull = jax.vjp(attend, q, k, v)
        return y, *pull(dy)

    return lambda: jax.block_until_ready(step(q, k, v, dy))
