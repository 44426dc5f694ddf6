"""`minimoe bench quant`: quantized matmuls and decoding against float32, with the same weights.

Axes: T tokens, I input channels, O output channels. A matmul of few tokens mostly reads its weights, so fewer bytes
may mean less time; but codes have to be turned into numbers first, and that costs too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe.attention import GroupedQueryConfig
from minimoe.bench.timing import alternate, ratio
from minimoe.config import ModelConfig
from minimoe.cost import count_params
from minimoe.inference import generate
from minimoe.model import MoETransformer
from minimoe.quant.matmul import int8_matmul, qmatmul
from minimoe.quant.models import quantize_model
from minimoe.quant.report import size_report
from minimoe.quant.specs import INT8_CHANNEL
from minimoe.quant.tensor import QTensor, quantize

FLOAT, W8A8, WEIGHT_ONLY = "float32", "int8-w8a8", "int8"
SHAPES = ({"T": 8, "I": 4096, "O": 4096}, {"T": 1, "I": 4096, "O": 4096})


def default_shapes() -> list[dict[str, int]]:
    """A matrix of 64 MB for a full batch and for one token, and the matrices of the preset ``small``."""
    return [*SHAPES, *matmul_shapes(ModelConfig.preset("small"))]


def matmul_shapes(config: ModelConfig) -> list[dict[str, int]]:
    """The matmuls of one token in a model, every size once: projections, an expert's two matrices, the output head."""
    d, attention = config.d_model, config.attention
    assert isinstance(attention, GroupedQueryConfig)
    sizes = [(d, heads * attention.head_dim) for heads in (attention.num_heads, attention.num_kv_heads)]
    if config.moe is not None:
        sizes += [(d, 2 * config.moe.d_expert), (config.moe.d_expert, d)]
    sizes += [(d, config.vocab_size)]
    return [{"T": 1, "I": i, "O": o} for i, o in dict.fromkeys(sizes)]


def measure_matmul(shape: Mapping[str, int], *, rounds: int, warmup: int, pause: float) -> dict[str, Any]:
    """Times one matmul ``[T, I] x [I, O]`` in float32, with int8 weights, and with int8 on both sides."""
    t, i, o = (shape[name] for name in "TIO")
    key_x, key_w = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(key_x, (t, i)), jax.random.normal(key_w, (i, o)) / i**0.5
    weight = quantize(kernel.T, INT8_CHANNEL)
    runs = {
        FLOAT: _call(lambda x, w: x @ w, x, kernel),
        W8A8: _call(int8_matmul, x, weight),
        WEIGHT_ONLY: _call(qmatmul, x, weight),
    }
    answers = {name: np.asarray(run()) for name, run in runs.items()}
    times = alternate(runs, rounds=rounds, warmup=warmup, pause=pause)
    weight_bytes = {FLOAT: kernel.nbytes, W8A8: weight.nbytes_logical, WEIGHT_ONLY: weight.nbytes_logical}
    size = np.linalg.norm(answers[FLOAT])
    return {
        "shape": dict(shape),
        "results": {
            name: {
                "ms": timing.summary_ms(),
                "speed_over_float32": ratio(times[FLOAT], timing),
                "weight_bytes": weight_bytes[name],
                "relative_error": float(np.linalg.norm(answers[name] - answers[FLOAT]) / size),
            }
            for name, timing in times.items()
        },
    }


def _call(matmul: Callable[..., jax.Array], x: jax.Array, weight: jax.Array | QTensor) -> Callable[[], jax.Array]:
    compiled = jax.jit(matmul)
    return lambda: jax.block_until_ready(compiled(x, weight))


def measure_decode(
    config: ModelConfig,
    batches: list[int],
    *,
    recipes: Sequence[str] = (W8A8, WEIGHT_ONLY),
    prompt: int,
    new_tokens: int,
    rounds: int,
    warmup: int,
    pause: float,
) -> list[dict[str, Any]]:
    """Times greedy generation of one model of random weights, in float32 and by each recipe, for each batch."""
    model = MoETransformer(config, rngs=nnx.Rngs(0))
    forms = {FLOAT: model} | {recipe: quantize_model(model, recipe) for recipe in recipes}
    reports = []
    for batch in batches:
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, prompt))
        runs = {name: _generation(form, ids, new_tokens) for name, form in forms.items()}
        texts = {name: run()[:, prompt:] for name, run in runs.items()}
        times = alternate(runs, rounds=rounds, warmup=warmup, pause=pause)
        reports.append(
            {
                "shape": {"B": batch, "prompt": prompt, "new_tokens": new_tokens},
                "parameters": {"total": count_params(config).total, "active": count_params(config).active},
                "results": {
                    name: {
                        "tokens_per_second": round(batch * new_tokens / timing.median, 1),
                        "ms_per_call": timing.summary_ms(),
                        "speed_over_float32": ratio(times[FLOAT], timing),
                        "bytes": size_report(forms[name]).bytes,
                        "tokens_as_float32": float((texts[name] == texts[FLOAT]).mean()),
                    }
                    for name, timing in times.items()
                },
            }
        )
    return reports


def _generation(model: MoETransformer, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
    tokens = jnp.asarray(ids, jnp.int32)
    return lambda: np.asarray(jax.block_until_ready(generate(model, tokens, new_tokens, temperature=0.0)))
