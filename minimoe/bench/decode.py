"""`minimoe bench decode`: greedy tokens per second, ours against Transformers' ``generate`` with the same weights.

What is timed is a whole call: prefill of the prompt, then one token at a time from the key/value cache. A model with a head
for multi-token prediction also decodes speculatively: two tokens go through the model at a time, and it depends on the
text how often both are kept.

Texts that part once have nothing in common from there on. It need not be a fault: where scores of an indexer with few
heads tie, torch takes other entries than we do (`minimoe.attention.indexer.choose`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe.bench.references import not_compared, reference_model
from minimoe.bench.timing import alternate, ratio
from minimoe.config import ModelConfig
from minimoe.cost import count_params
from minimoe.inference import generate, generate_speculative
from minimoe.model import MoETransformer


def measure(
    model: MoETransformer,
    ids: np.ndarray | None = None,
    *,
    batch: int,
    prompt: int,
    new_tokens: int,
    rounds: int,
    warmup: int,
    pause: float,
) -> dict[str, Any]:
    """Times ``new_tokens`` after ``prompt`` tokens, for ``batch`` sequences; the prompts are random unless given as ids."""
    config = model.config
    if ids is None:
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, prompt))
    reference = not_compared(config)
    runs: dict[str, Callable[[], np.ndarray]] = {"minimoe": greedy(model, ids, new_tokens)}
    if model.mtp is not None:
        runs["minimoe speculative"] = _speculative(model, ids, new_tokens)
    if reference is None:
        runs["transformers"] = _transformers(reference_model(model), ids, new_tokens)
    texts = {name: run() for name, run in runs.items()}
    times = alternate(runs, rounds=rounds, warmup=warmup, pause=pause)
    count = count_params(config)
    same = texts["minimoe"] == texts["transformers"] if reference is None else None
    return {
        "shape": {"B": batch, "prompt": prompt, "new_tokens": new_tokens},
        "parameters": {"total": count.total, "active": count.active},
        "reference": reference or "measured",
        "speculation": _drafts(model, ids, new_tokens, texts["minimoe"]),
        "tokens_identical": bool(same.all()) if same is not None else None,
        "tokens_agreeing": float(same[:, prompt:].mean()) if same is not None else None,
        "tokens_before_parting": _before_parting(same[:, prompt:]) if same is not None else None,
        "results": {
            name: {
                "tokens_per_second": round(batch * new_tokens / timing.median, 1),
                "ms_per_call": timing.summary_ms(),
                "speed_over_plain": ratio(times["minimoe"], timing) if name == "minimoe speculative" else None,
                "speed_over_transformers": ratio(times["transformers"], timing) if "transformers" in times else None,
            }
            for name, timing in times.items()
        },
    }


def _before_parting(same: np.ndarray) -> int:
    """New tokens that the texts have in common from their beginning: of the sequence whose texts part first."""
    return int(np.logical_and.accumulate(same, axis=1).sum(axis=1).min())


def random_model(config: ModelConfig, mtp: bool = False) -> tuple[MoETransformer, None]:
    """Untrained, with a head for multi-token prediction if ``mtp`` or its config has one; prompts are left to `measure`."""
    return MoETransformer(config.with_mtp() if mtp else config, rngs=nnx.Rngs(0)), None


def trained_model(checkpoint: str, batch: int, prompt: int) -> tuple[MoETransformer, np.ndarray]:
    """A checkpoint, and prompts from the beginnings of different validation documents, each domain in turn."""
    from minimoe.data import beginnings, documents
    from minimoe.hub import resolve_with_tokenizer

    model, tokenizer, _, _ = resolve_with_tokenizer(checkpoint)
    return model, beginnings(documents(split="val"), tokenizer, batch, prompt)


def greedy(model: MoETransformer, ids: np.ndarray | jax.Array, new_tokens: int) -> Callable[[], np.ndarray]:
    tokens = jnp.asarray(ids, jnp.int32)
    return lambda: np.asarray(jax.block_until_ready(generate(model, tokens, new_tokens, temperature=0.0)))


def _speculative(model: MoETransformer, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
    tokens = jnp.asarray(ids, jnp.int32)
    return lambda: np.asarray(generate_speculative(model, tokens, new_tokens, temperature=0.0).tokens)


def _drafts(model: MoETransformer, ids: np.ndarray, new_tokens: int, plain: np.ndarray) -> dict[str, Any] | None:
    """How often the drafts of the head were right, and whether the text is that of plain decoding."""
    if model.mtp is None:
        return None
    found = generate_speculative(model, jnp.asarray(ids, jnp.int32), new_tokens, temperature=0.0)
    return {
        "acceptance_rate": found.acceptance_rate,
        "tokens_per_forward": found.tokens_per_forward,
        "tokens_identical": bool((np.asarray(found.tokens) == plain).all()),
    }


def _transformers(reference: Any, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
    import torch

    reference.eval()
    tokens = torch.from_numpy(ids)
    settings = {"do_sample": False, "use_cache": True, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    mask = torch.ones_like(tokens)
    return lambda: reference.generate(tokens, attention_mask=mask, pad_token_id=0, **settings).numpy()
