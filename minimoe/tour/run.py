"""The tour: shipped models write, solve and shrink, small layers learn facts, a sparse and a dense model learn text."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimoe.checks import random_seed
from minimoe.console import messages
from minimoe.tour.cached import cache_rung
from minimoe.tour.claims import claims
from minimoe.tour.collapsed import collapse_rung
from minimoe.tour.html import NARROW_IN
from minimoe.tour.known import facts_rung
from minimoe.tour.quantized import quantized_rung
from minimoe.tour.report import FORMAT, prepare, write
from minimoe.tour.solved import solved_rung

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minimoe.data import Document, Tokenizer
    from minimoe.model import MoETransformer
    from minimoe.training import Evaluation, RunConfig, TrainResult

STEPS, FAST_STEPS = 240, 40
WRITER = "small"
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
    from minimoe.data import documents, evaluation_documents, load_tokenizer, training_data
    from minimoe.hub import load_pretrained
    from minimoe.quant import dequantize_model
    from minimoe.training import evaluate

    random_seed("seed", seed)
    prepare(out)
    clock = Clock()
    tokenizer, corpus = load_tokenizer(), documents()
    validation = [document for document in corpus if document.split == "val"]
    quick = evaluation_documents(validation, "quick")
    messages.print(f"the shipped model {WRITER!r} continues unseen text:")
    writer = dequantize_model(load_pretrained(WRITER)[0])
    shown: dict[str, Any] = {"samples": continue_text(writer, validation, tokenizer)}
    messages.print(f"{shown['samples'][0]['prompt']} | {shown['samples'][0]['continuation']}")
    clock.lap("a trained model writes")
    messages.print(f"where the tokens of {WRITER!r} go: scoring validation text")
    scored = evaluate(writer, quick, tokenizer)
    clock.lap("where its tokens go")
    shown["solved"] = solved_rung(tokenizer)
    clock.lap("ten problems, two models")
    shown["facts"] = facts_rung(fast=fast)
    clock.lap("facts, three layers, three seeds")
    shown["collapse"] = collapse_rung(fast=fast)
    clock.lap("collapse and its cure, three seeds")
    smaller = quantized_rung(writer, scored, quick, tokenizer, fast=fast)
    clock.lap("fewer bits, three recipes")
    shown["caches"] = cache_rung()
    clock.lap("what a cache keeps")
    data, steps, rungs = training_data(corpus, tokenizer), FAST_STEPS if fast else STEPS, []
    for name, dense in (("sparse", False), ("dense", True)):
        rung = climb(name, dense, steps, seed, data, validation, tokenizer)
        if rung is None:
            return None
        rungs.append(rung)
        clock.lap(f"a {name} model learns text")
    values = summary(rungs, scored, smaller, clock, seed=seed, fast=fast) | shown
    values["claims"] = claims(values)
    figures = draw(rungs, scored, smaller, shown)
    write(out, values, figures)
    return values


class Clock:
    """Seconds of each part of the tour, loading and compilation included."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.parts: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends a part, which began where the one before it ended."""
        now = time.monotonic()
        self.parts[name], self.last = round(now - self.last, 1), now


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
    rungs: list[Rung], scored: Evaluation, smaller: dict[str, Any], clock: Clock, *, seed: int, fast: bool
) -> dict[str, Any]:
    """The report's numbers, all of this run."""
    import os
    import platform

    import jax

    from minimoe import __version__

    recipe = rungs[0].run.recipe
    return {
        "format": FORMAT,
        "minimoe": __version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}",
        "fast": fast,
        "seed": seed,
        "steps": recipe.steps,
        "tokens": recipe.steps * recipe.batch_size * rungs[0].run.model.context_length,
        "protocol": "quick",
        "seconds": round(clock.last - clock.began, 1),
        "seconds_by_part": clock.parts,
        "models": [rung.row() for rung in rungs],
        "writer": WRITER,
        "domains": list(scored.per_domain),
        "load": scored.load.tolist(),
        "quantized": {name: value for name, value in smaller.items() if name != "bytes_by_path"},
    }


def draw(rungs: list[Rung], scored: Evaluation, smaller: dict[str, Any], shown: dict[str, Any]) -> dict[str, Figure]:
    """The figures by file name."""
    from minimoe import plots

    runs = {rung.name: rung.result.records for rung in rungs}
    recalled = {way["name"]: [100 * share for share in way["recalled"]] for way in shown["facts"]["ways"]}
    ways = shown["collapse"]["ways"]
    facts = plots.seeds(recalled, quantity="facts recalled, %", title="Random facts, equal arithmetic a name")
    collapse = plots.over_steps(
        {"MaxVio (0 is even)": {way["name"]: way["curve"] for way in ways}}, title="A collapse, and its cure"
    )
    published = shown["caches"]["published"]
    at = published["crossing"]
    caches = plots.bytes_against_context(
        published["contexts"],
        published["bytes"],
        (at, published["crossing_bytes"], f"below {at:,} tokens V4 keeps more"),
        title="One sequence's cache, published models",
    )
    for figure in (facts, collapse, caches):
        figure.set_figwidth(NARROW_IN)  # those that carry the page fit on a phone
    return {
        "facts": facts,
        "experts_by_domain": plots.experts_by_domain(scored.load, list(scored.per_domain)),
        "collapse": collapse,
        "caches": caches,
        "bytes": plots.bytes_by_part(smaller["bytes_by_path"], f"Bytes of {WRITER}, by part"),
        "ladder": plots.ladder([rung.row() for rung in rungs]),
        "loss_by_tokens": plots.compare_runs(runs, x="tokens", title="Training loss at equal tokens"),
        "loss_by_seconds": plots.compare_runs(runs, x="seconds", title="Training loss at equal time"),
    }
