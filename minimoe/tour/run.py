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
from minimoe.tour.race import live_race, recorded_race
from minimoe.tour.report import FORMAT, prepare, write
from minimoe.tour.solved import solved_rung

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minimoe.data import Document, Tokenizer
    from minimoe.model import MoETransformer
    from minimoe.training import Evaluation

WRITER = "small"
TRAINED, SHIPPED = "sparse, trained by the tour", "nano"  # what the microscope shows: the tour's own if it has one
FAST_CHARACTERS = 3000  # of a document of each domain: what the fast tour scores
STOPPED = "stopped before the report; an earlier report, if there was one, is untouched"


def run_tour(out: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any] | None:
    """Runs the tour and writes its report: ``report.html``, ``report.json``, the figures, and a page that runs a model.

    Args:
      out: folder of the report: new, empty or an earlier report, which is replaced.
      fast: about a minute: fewer facts, less text to score, and the race over text from a record.
      seed: decides weights and order of data.

    Returns:
      What ``report.json`` holds; None after Ctrl-C.

    Raises:
      UserError: if ``out`` holds something else or cannot be written, or the seed is out of range.
    """
    from minimoe.data import documents, evaluation_documents, load_tokenizer
    from minimoe.hub import load_pretrained
    from minimoe.quant import dequantize_model
    from minimoe.training import evaluate

    random_seed("seed", seed)
    prepare(out)
    clock = Clock()
    tokenizer, corpus = load_tokenizer(), documents()
    validation = [document for document in corpus if document.split == "val"]
    quick = evaluation_documents(validation, "quick")
    text = beginnings(quick, FAST_CHARACTERS) if fast else quick
    messages.print(f"the shipped model {WRITER!r} continues unseen text:")
    writer = dequantize_model(load_pretrained(WRITER)[0])
    shown: dict[str, Any] = {"samples": continue_text(writer, validation, tokenizer)}
    messages.print(f"{shown['samples'][0]['prompt']} | {shown['samples'][0]['continuation']}")
    clock.lap("a trained model writes")
    messages.print(f"where the tokens of {WRITER!r} go: scoring validation text")
    scored = evaluate(writer, text, tokenizer)
    clock.lap("where its tokens go")
    shown["solved"] = solved_rung(tokenizer)
    clock.lap("ten problems, two models")
    shown["facts"] = facts_rung(fast=fast)
    clock.lap("facts, three layers, three seeds")
    shown["collapse"] = collapse_rung(fast=fast)
    clock.lap("collapse and its cure, three seeds")
    smaller = quantized_rung(writer, scored, text, tokenizer, fast=fast)
    clock.lap("fewer bits, three recipes")
    shown["caches"] = cache_rung(tokenizer)
    clock.lap("what a cache keeps")
    raced = (recorded_race(), None) if fast else live_race(seed, corpus, validation, tokenizer)
    if raced is None:
        messages.print(STOPPED)
        return None
    clock.lap("a sparse and a dense model on text")
    race, trained = raced
    values = summary(scored, smaller, clock, seed=seed, fast=fast) | race | shown
    values["claims"] = claims(values)
    values["microscope"] = {"model": SHIPPED if trained is None else TRAINED, "trained_here": trained is not None}
    figures = draw(scored, smaller, values)
    write(out, values, figures, load_pretrained(SHIPPED)[0] if trained is None else trained, tokenizer)
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


def beginnings(documents: list[Document], characters: int) -> list[Document]:
    """The first document of each domain, cut."""
    first: dict[str, Document] = {}
    for document in documents:
        first.setdefault(document.domain, dataclasses.replace(document, text=document.text[:characters]))
    return list(first.values())


def continue_text(model: MoETransformer, validation: list[Document], tokenizer: Tokenizer) -> list[dict[str, str]]:
    """For each domain, the beginning of its first validation document and what the model makes of it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from minimoe.inference import generate

    first, length, new = beginnings(validation, 2000), 24, 48
    prompts = [[tokenizer.eot_id, *tokenizer.encode(d.text)[: length - 1]] for d in first]
    tokens = jnp.asarray(prompts, jnp.int32)
    out = generate(model, tokens, new, temperature=0.7, top_p=0.95, key=jax.random.key(0))
    texts = [
        (tokenizer.decode(p), tokenizer.decode(o[length:].tolist()))
        for p, o in zip(prompts, np.asarray(out), strict=True)
    ]
    return [{"domain": d.domain, "prompt": p, "continuation": c} for d, (p, c) in zip(first, texts, strict=True)]


def summary(scored: Evaluation, smaller: dict[str, Any], clock: Clock, *, seed: int, fast: bool) -> dict[str, Any]:
    """Where and how the tour ran, and what was scored."""
    import os
    import platform

    import jax

    from minimoe import __version__

    return {
        "format": FORMAT,
        "minimoe": __version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}",
        "fast": fast,
        "seed": seed,
        "seconds": round(clock.last - clock.began, 1),
        "seconds_by_part": clock.parts,
        "writer": WRITER,
        "domains": list(scored.per_domain),
        "load": scored.load.tolist(),
        "quantized": {name: value for name, value in smaller.items() if name != "bytes_by_path"},
    }


def draw(scored: Evaluation, smaller: dict[str, Any], shown: dict[str, Any]) -> dict[str, Figure]:
    """The figures by file name."""
    from minimoe import plots

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
    sizes = plots.bytes_by_part(smaller["bytes_by_path"], f"Bytes of {WRITER}, by part")
    race, figures = shown["race"], {"facts": facts, "collapse": collapse, "caches": caches, "bytes": sizes}
    if race["source"] == "this run":
        by = {"tokens": "Training loss at equal tokens", "seconds": "Training loss at equal time"}
        figures |= {f"loss_by_{x}": plots.compare_runs(race["curves"], x=x, title=title) for x, title in by.items()}
    else:
        figures["bits_by_tokens"] = plots.compare_runs(
            race["curves"], quantity="bits_per_byte", title="Text at equal tokens, seed 0", skip=0.1
        )
    for figure in figures.values():
        figure.set_figwidth(NARROW_IN)  # these are still readable as narrow as a phone
    return figures | {
        "experts_by_domain": plots.experts_by_domain(scored.load, list(scored.per_domain)),
        "ladder": plots.ladder(shown["models"]),
    }
