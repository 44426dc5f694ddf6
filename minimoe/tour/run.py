"""The tour: shipped models write and solve, small models learn facts, and a sparse and a dense one learn the same text."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimoe.checks import random_seed
from minimoe.console import messages
from minimoe.tour.claims import claims
from minimoe.tour.distilled import distilled_rung
from minimoe.tour.known import facts_rung
from minimoe.tour.quantized import quantized_rungs
from minimoe.tour.report import FORMAT, prepare, write
from minimoe.tour.solved import solved_rung

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minimoe.data import Document, Tokenizer
    from minimoe.model import MoETransformer
    from minimoe.training import RunConfig, TrainResult

STEPS, FAST_STEPS = 240, 40
WRITER = "small"
NGRAM_ORDER = 6
STOPPED = "stopped before the report; an earlier report, if there was one, is untouched"


@dataclasses.dataclass
class Rung:
    """One trained model of the tour."""

    name: str
    run: RunConfig
    result: TrainResult
    seconds: float

    def row(self) -> dict[str, Any]:
        """Its line in the table: sizes from the formulas, quality and speed as measured in this run."""
        from minimoe.cost import count_params, forward_flops_per_token

        count = count_params(self.run.model)
        assert self.result.evaluation is not None
        speeds = [r["tokens_per_second"] for r in self.result.records if r["kind"] == "train"]
        return {
            "name": self.name,
            "total_params": count.total,
            "active_params": count.active,
            "flops_per_token": forward_flops_per_token(self.run.model),
            "bits_per_byte": self.result.evaluation.bits_per_byte,
            "tokens_per_second": sorted(speeds)[len(speeds) // 2],
            "seconds": round(self.seconds, 1),
        }


def run_tour(out: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any] | None:
    """Runs the tour and writes its report: ``report.html``, ``report.json`` and the figures.

    Args:
      out: folder of the report: new, empty or an earlier report, which is replaced.
      fast: a few steps only; about a minute in place of five.
      seed: decides weights and order of data.

    Returns:
      What ``report.json`` holds; None after Ctrl-C.

    Raises:
      UserError: if ``out`` holds something else or cannot be written, or the seed is out of range.
    """
    from minimoe.data import documents, evaluation_documents, load_tokenizer, ngram_bits_per_byte, training_data

    random_seed("seed", seed)
    prepare(out)
    began = time.monotonic()
    tokenizer, corpus = load_tokenizer(), documents()
    validation = [document for document in corpus if document.split == "val"]
    shown: dict[str, Any] = {"samples": shipped_samples(validation, tokenizer), "facts": facts_rung(fast=fast)}
    shown["solved"] = solved_rung(tokenizer)
    data = training_data(corpus, tokenizer)
    steps = FAST_STEPS if fast else STEPS
    rungs = []
    for name, dense in (("sparse", False), ("dense", True)):
        rung = climb(name, dense, steps, seed, data, validation, tokenizer)
        if rung is None:
            return None
        rungs.append(rung)
    messages.print(f"counting: a byte {NGRAM_ORDER}-gram model of the same text, to compare with")
    training = [document for document in corpus if document.split == "train"]
    quick = evaluation_documents(validation, "quick")
    ngram = ngram_bits_per_byte(training, quick, NGRAM_ORDER)
    smaller = quantized_rungs(rungs[0].result.model, quick, tokenizer)
    taught = distilled_rung(rungs[0].result.model, rungs[0].run, data, validation, tokenizer, fast=fast)
    if taught is None:
        messages.print(STOPPED)
        return None
    values = summary(rungs, ngram, smaller, taught, seed=seed, fast=fast, seconds=time.monotonic() - began) | shown
    values["claims"] = claims(values)
    figures = draw(rungs, ngram, smaller, shown["facts"])
    write(out, values, figures)
    return values


def climb(
    name: str, dense: bool, steps: int, seed: int, data: Any, validation: list[Document], tokenizer: Tokenizer
) -> Rung | None:
    """Trains one model; None after Ctrl-C."""
    from minimoe.data import describe_data
    from minimoe.progress import train_with_bar
    from minimoe.training.new_run import describe_run, make_run

    changes = {"steps": steps, "seed": seed, "log_every": max(1, steps // 60), "checkpoint_every": 0}
    source = describe_data(None, validation)
    run = make_run("nano", changes, dense=dense, dropout=None, tokenizer=tokenizer, data=source)
    messages.print(f"{name}: {describe_run(run)}")
    began = time.monotonic()
    result = train_with_bar(name, run, data, validation, tokenizer)
    if result.interrupted:
        messages.print(STOPPED)
        return None
    return Rung(name, run, result, time.monotonic() - began)


def shipped_samples(validation: list[Document], tokenizer: Tokenizer) -> list[dict[str, str]]:
    """What the shipped `WRITER` makes of a beginning of each domain; the first one is shown at once."""
    from minimoe.hub import load_pretrained
    from minimoe.quant import dequantize_model

    messages.print(f"the shipped model {WRITER!r} continues unseen text:")
    samples = continue_text(dequantize_model(load_pretrained(WRITER)[0]), validation, tokenizer)
    messages.print(f"{samples[0]['prompt']} | {samples[0]['continuation']}")
    return samples


def continue_text(model: MoETransformer, validation: list[Document], tokenizer: Tokenizer) -> list[dict[str, str]]:
    """For each domain, the beginning of its first validation document and what the model makes of it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from minimoe.inference import generate

    first: dict[str, Document] = {}
    for document in validation:
        first.setdefault(document.domain, document)
    length, new = 24, 48
    prompts = [[tokenizer.eot_id, *tokenizer.encode(d.text[:2000])[: length - 1]] for d in first.values()]
    tokens = jnp.asarray(prompts, jnp.int32)
    out = generate(model, tokens, new, temperature=0.7, top_p=0.95, key=jax.random.key(0))
    texts = [
        (tokenizer.decode(p), tokenizer.decode(o[length:].tolist()))
        for p, o in zip(prompts, np.asarray(out), strict=True)
    ]
    return [{"domain": d, "prompt": p, "continuation": c} for d, (p, c) in zip(first, texts, strict=True)]


def summary(
    rungs: list[Rung],
    ngram: dict[str, float],
    smaller: dict[str, Any],
    taught: dict[str, Any],
    *,
    seed: int,
    fast: bool,
    seconds: float,
) -> dict[str, Any]:
    """The report's numbers, all of this run."""
    import os
    import platform

    import jax
    import jax.numpy as jnp

    from minimoe import __version__
    from minimoe.moe import max_violation

    sparse = rungs[0].result
    assert sparse.evaluation is not None
    load = sparse.evaluation.load
    return {
        "format": FORMAT,
        "minimoe": __version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}",
        "fast": fast,
        "seed": seed,
        "steps": rungs[0].run.recipe.steps,
        "tokens": rungs[0].run.recipe.steps * rungs[0].run.recipe.batch_size * rungs[0].run.model.context_length,
        "protocol": "quick",
        "seconds": round(seconds, 1),
        "models": [rung.row() for rung in rungs],
        "per_domain": {rung.name: rung.result.evaluation.per_domain for rung in rungs if rung.result.evaluation},
        "byte_ngram": {"order": NGRAM_ORDER, "bits_per_byte": sum(ngram.values()) / len(ngram), "per_domain": ngram},
        "domains": list(sparse.evaluation.per_domain),
        "load": load.tolist(),
        "max_violation_validation": [round(float(v), 4) for v in max_violation(jnp.asarray(load.sum(axis=0)))],
        "quantized": {name: value for name, value in smaller.items() if name != "bytes_by_path"},
        "distilled": taught,
    }


def draw(
    rungs: list[Rung], ngram: dict[str, float], smaller: dict[str, Any], facts: dict[str, Any]
) -> dict[str, Figure]:
    """The figures by file name."""
    from minimoe import plots

    runs = {rung.name: rung.result.records for rung in rungs}
    sparse = rungs[0].result
    assert sparse.evaluation is not None
    per_domain = {rung.name: rung.result.evaluation.per_domain for rung in rungs if rung.result.evaluation}
    recalled = {way["name"]: [100 * share for share in way["recalled"]] for way in facts["ways"]}
    return {
        "facts": plots.seeds(recalled, quantity="facts recalled, %", title="Random facts, equal arithmetic a name"),
        "ladder": plots.ladder([rung.row() for rung in rungs]),
        "loss_by_tokens": plots.compare_runs(runs, x="tokens", title="Training loss at equal tokens"),
        "loss_by_seconds": plots.compare_runs(runs, x="seconds", title="Training loss at equal time"),
        "experts_by_domain": plots.experts_by_domain(sparse.evaluation.load, list(sparse.evaluation.per_domain)),
        "balance": plots.balance_over_time(sparse.records),
        "bits_per_byte": plots.bits_per_byte_by_domain(per_domain, ngram, f"byte {NGRAM_ORDER}-gram model"),
        "bytes": plots.bytes_by_part(smaller["bytes_by_path"], "Bytes of the sparse model, by part"),
    }
