"""`minimoe bench device`: do the shipped models and the exported programs give a CPU's answers on this device?

A chip is supported when it was *run*, not when a program was lowered for it. Here every shipped model is loaded, as it is
stored, and reads validation text on JAX's default device and on the CPU beside it. A difference is given over the spread
of the CPU's logits. Then a model is exported for all back ends, and the programs run on the device, from the files alone.

Accelerators multiply float32 with fewer bits than it has unless they are told not to. So there are two differences: with
all bits, which says whether the programs are right, and as JAX does it unasked, which says what rounding a user gets.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe.data import beginnings, documents
from minimoe.export import StableHLOModel, export_stablehlo
from minimoe.hub import resolve_with_tokenizer
from minimoe.inference import generate
from minimoe.model import MoETransformer
from minimoe.training import Recipe

ROWS, LENGTH, PROMPT, NEW_TOKENS, STEPS = 4, 128, 32, 64, 4


def measure(
    models: Sequence[str],
    exported: str | None = "nano",
    progress: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Compares models on the default device with the same models on the CPU.

    Args:
      models: names of shipped ones. exported: the one whose exported programs run too; None for none.
      progress: called with what there is so far, after each model.

    Returns:
      Plain values: of each model the seconds of loading, the largest difference of its logits over their spread, and the
      share of greedy tokens that are the CPU's.
    """
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    report: dict[str, Any] = {"device": str(device.device_kind), "platform": device.platform, "results": {}}
    for name in models:
        begun = time.perf_counter()
        model, tokenizer, _, _ = resolve_with_tokenizer(name)
        jax.block_until_ready(nnx.state(model))
        seconds = time.perf_counter() - begun
        ids = beginnings(documents(split="val"), tokenizer, ROWS, LENGTH)
        report["results"][name] = {"load_seconds": round(seconds, 3)} | _compared(model, ids, device, cpu)
        progress(report)
    if exported is not None:
        report["programs"] = {"model": exported} | _programs(exported, device, cpu)
    return report


def _compared(model: MoETransformer, ids: np.ndarray, device: jax.Device, cpu: jax.Device) -> dict[str, Any]:
    """Logits and greedy text on both devices."""
    unasked = _logits(model, ids, device)
    with jax.default_matmul_precision("highest"):
        exact, expected = _logits(model, ids, device), _logits(model, ids, cpu)
        texts = [_text(model, ids, where) for where in (device, cpu)]
    return {
        "difference": _difference(exact, expected),
        "difference_unasked": _difference(unasked, expected),
        "likeliest_equal": float((unasked.argmax(-1) == expected.argmax(-1)).mean()),
        "greedy_equal": float((texts[0] == texts[1]).mean()),
    }


def _on(model: MoETransformer, device: jax.Device) -> MoETransformer:
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.device_put(state, device))


def _logits(model: MoETransformer, ids: np.ndarray, device: jax.Device) -> np.ndarray:
    forward = nnx.jit(lambda model, tokens: model(tokens)[0])
    return np.asarray(forward(_on(model, device), jax.device_put(jnp.asarray(ids), device)), np.float32)


def _text(model: MoETransformer, ids: np.ndarray, device: jax.Device) -> np.ndarray:
    prompts = jax.device_put(jnp.asarray(ids[:, :PROMPT]), device)
    with jax.default_device(device):
        return np.asarray(generate(_on(model, device), prompts, NEW_TOKENS, temperature=0.0))[:, PROMPT:]


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(f"{np.abs(found - expected).max() / expected.std():.2g}")


def _programs(name: str, device: jax.Device, cpu: jax.Device) -> dict[str, Any]:
    """Forward, decoding and steps of training from exported files, on both devices."""
    model, tokenizer, _, _ = resolve_with_tokenizer(name)
    ids = beginnings(documents(split="val"), tokenizer, 1, LENGTH)
    with tempfile.TemporaryDirectory() as folder, jax.default_matmul_precision("highest"):
        path = export_stablehlo(model, Path(folder) / "programs", tokenizer, length=LENGTH, recipe=Recipe(steps=10))
        here, there = _ran(path, ids, device), _ran(path, ids, cpu)
    return {
        "forward_difference": _difference(here["logits"], there["logits"]),
        "greedy_equal": float((here["text"] == there["text"]).mean()),
        "losses": here["losses"],
        "losses_on_cpu": there["losses"],
    }


def _ran(path: Path, ids: np.ndarray, device: jax.Device) -> dict[str, Any]:
    with jax.default_device(device):
        programs = StableHLOModel(path)
        text = programs.generate(ids[0, :PROMPT].tolist(), NEW_TOKENS)
        state, losses = programs.initial_state(), []
        batch = ids, np.roll(ids, -1, axis=1), np.ones(ids.shape, bool), np.asarray(0, np.uint32)
        for _ in range(STEPS):
            state, metrics = programs.programs["train_step"].call(state, *batch)
            losses.append(round(float(metrics["loss"]), 5))
        return {"logits": np.asarray(programs.logits(ids)), "text": np.array(text[-NEW_TOKENS:]), "losses": losses}
