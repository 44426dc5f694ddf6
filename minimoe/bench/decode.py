"""`minimoe bench decode`: greedy tokens per second, ours against Transformers' ``generate`` with the same weights.

What is timed is a whole call: prefill of the prompt, then one token at a time from the key/value cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe.bench import mixtral
from minimoe.bench.timing import alternate, ratio
from minimoe.config import ModelConfig
from minimoe.cost import count_params
from minimoe.inference import generate
from minimoe.model import MoETransformer


def measure(
    config: ModelConfig,
    *,
    batch: int,
    prompt: int,
    new_tokens: int,
    rounds: int,
    warmup: int,
    pause: float,
) -> dict[str, Any]:
    """Times ``new_tokens`` after ``prompt`` tokens, for ``batch`` sequences."""
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, prompt))
    reference = mixtral.not_mixtral(config) or mixtral.unavailable()
    runs: dict[str, Callable[[], np.ndarray]] = {"minimoe": _ours(model, ids, new_tokens)}
    if reference is None:
        runs["transformers"] = _transformers(mixtral.mixtral_model(model), ids, new_tokens)
    texts = {name: run() for name, run in runs.items()}
    times = alternate(runs, rounds=rounds, warmup=warmup, pause=pause)
    count = count_params(config)
    same = texts["minimoe"] == texts["transformers"] if reference is None else None
    return {
        "shape": {"B": batch, "prompt": prompt, "new_tokens": new_tokens},
        "parameters": {"total": count.total, "active": count.active},
        "reference": reference or "measured",
        "tokens_identical": bool(same.all()) if same is not None else None,
        "tokens_agreeing": float(same[:, prompt:].mean()) if same is not None else None,
        "results": {
            name: {
                "tokens_per_second": round(batch * new_tokens / timing.median, 1),
                "ms_per_call": timing.summary_ms(),
                "speed_over_transformers": ratio(times["transformers"], timing) if "transformers" in times else None,
            }
            for name, timing in times.items()
        },
    }


def _ours(model: MoETransformer, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
    tokens = jnp.asarray(ids, jnp.int32)
    return lambda: np.asarray(jax.block_until_ready(generate(model, tokens, new_tokens, temperature=0.0)))


def _transformers(reference: Any, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
    import torch

    reference.eval()
    tokens = torch.from_numpy(ids)
    settings = {"do_sample": False, "use_cache": True, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    mask = torch.ones_like(tokens)
    return lambda: reference.generate(tokens, attention_mask=mask, pad_token_id=0, **settings).numpy()
