"""`minimoe bench context`: the time of one more token by how many came before, for each kind of attention.

One layer, one sequence, random weights, float32. A call decodes `STEPS` tokens after a cache that holds the context, in
one compiled loop; then the cache is told to forget them, so that every call starts alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from minimoe.attention import AttentionConfig, GroupedQueryConfig, KVCache, MultiHeadLatentConfig
from minimoe.bench.models import V4_22M
from minimoe.bench.timing import Timing, alternate, ratio

STEPS = 64
D_MODEL = V4_22M.d_model
_first, _, _sparse, _heavy = (layer.attention for layer in V4_22M.layers[:4])
assert _first is not None
assert _sparse is not None
assert _heavy is not None
# Eight query heads of 64, as in the V4 shape of the benchmarks; CSA and HCA have its 4 and 16 tokens an entry.
KINDS: dict[str, AttentionConfig] = {
    "multi-head": GroupedQueryConfig(num_heads=8, num_kv_heads=8, head_dim=64),
    "grouped-query": GroupedQueryConfig(num_heads=8, num_kv_heads=2, head_dim=64),
    "latent": MultiHeadLatentConfig(num_heads=8, kv_rank=64, nope_dim=48, rope_dim=16, v_dim=64, q_rank=128),
    "sliding": _first,
    "CSA": _sparse,
    "HCA": _heavy,
}


def measure(
    contexts: Sequence[int],
    *,
    rounds: int,
    warmup: int,
    pause: float,
    kinds: Mapping[str, AttentionConfig] | None = None,
) -> dict[str, Any]:
    """Microseconds a token of each kind at each context, and the bytes of its cache; all take turns in one run.

    Args:
      contexts: tokens in the cache. kinds: by name; by default `KINDS`.

    Returns:
      A report; ``results`` has one row a kind with ``us_at_CONTEXT`` and ``bytes_at_CONTEXT`` for each context, and
      ``growth``: the time at the last context over that at the first.
    """
    kinds = KINDS if kinds is None else kinds
    runs = {(name, context): _decoder(kind, context) for name, kind in kinds.items() for context in contexts}
    times = alternate(
        {f"{name} {c}": run for (name, c), run in runs.items()}, rounds=rounds, warmup=warmup, pause=pause
    )

    def row(name: str, kind: AttentionConfig) -> dict[str, Any]:
        clocks = {c: _one_token(times[f"{name} {c}"]) for c in contexts}
        found = {
            f"us_at_{c}": {k: round(1e3 * v, 2) for k, v in clock.summary_ms().items()} for c, clock in clocks.items()
        }
        found |= {f"bytes_at_{c}": kind.cache_bytes(c, "float32") for c in contexts}
        return found | {"growth": ratio(clocks[contexts[-1]], clocks[contexts[0]])}

    shape = {"B": 1, "D": D_MODEL, "steps": STEPS}
    return {
        "shape": shape,
        "contexts": list(contexts),
        "results": {name: row(name, kind) for name, kind in kinds.items()},
    }


def _one_token(timing: Timing) -> Timing:
    return Timing(tuple(seconds / STEPS for seconds in timing.seconds))


def _decoder(kind: AttentionConfig, context: int) -> Callable[[], Any]:
    """Decodes `STEPS` tokens after a cache that holds ``context``."""
    module = kind.build(D_MODEL, out_scale=1.0, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(0))
    graphdef, weights = nnx.split(module)
    cache: Any = kind.init_cache(1, context + STEPS, KVCache.zeros, jnp.float32)
    cache = jax.tree.map(lambda a: jnp.full_like(a, 0.01 if a.ndim else context), cache)
    held = [cache]

    def decode(weights, x, cache):
        attend = nnx.merge(graphdef, weights)

        def step(_, carry):
            x, cache = carry
            y, cache = attend(x, cache)
            return jnp.tanh(y), cache

        y, cache = jax.lax.fori_loop(0, STEPS, step, (x, cache))
        return y, dataclasses.replace(cache, length=jnp.full_like(cache.length, context))

    compiled = jax.jit(decode, donate_argnums=2)  # the new cache takes the memory of the old one
    x = jax.random.normal(jax.random.key(0), (1, 1, D_MODEL))

    def run() -> None:
        y, held[0] = compiled(weights, x, held[0])
        jax.block_until_ready((y, held[0]))

    return run
