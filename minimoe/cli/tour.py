"""``minimoe tour``: the whole story in one run, and a page to keep."""

from __future__ import annotations

import dataclasses
import json as json_module
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minimoe import console
from minimoe.cli.tour_distill import distilled_rung
from minimoe.cli.tour_quant import quantized_rungs
from minimoe.console import messages, print_json, start, write_out

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minimoe.data import Document, Tokenizer
    from minimoe.training import RunConfig, TrainResult

FORMAT, REPORT_FILE = "minimoe-tour-1", "report.json"
STEPS, FAST_STEPS = 360, 40
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


def tour(
    out: Annotated[Path, typer.Option(help="Folder for the report; an earlier report there is replaced.")] = Path(
        "minimoe-tour"
    ),
    fast: Annotated[
        bool, typer.Option("--fast", help="A minute instead of five: far too short to learn much.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides weights and order of data.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="The report as one JSON object on stdout.")] = False,
) -> int:
    """Train a small Mixture of Experts and its dense twin on real text, look inside, shrink it, give it a teacher.

    Everything in the report was measured in this run. About five minutes on two cores.

    Example: minimoe tour --out my-tour && open my-tour/report.html
    """
    from minimoe.data import documents, evaluation_documents, load_tokenizer, ngram_bits_per_byte, training_data

    prepare(out)
    start("tour: one sparse model, one dense model, the same text")
    began = time.monotonic()
    tokenizer, corpus = load_tokenizer(), documents()
    data = training_data(corpus, tokenizer)
    validation = [document for document in corpus if document.split == "val"]
    steps = FAST_STEPS if fast else STEPS
    rungs = []
    for name, dense in (("sparse", False), ("dense", True)):
        rung = climb(name, dense, steps, seed, data, validation, tokenizer)
        if rung is None:
            return 130
        rungs.append(rung)
    messages.print(f"counting: a byte {NGRAM_ORDER}-gram model of the same text, to compare with")
    training = [document for document in corpus if document.split == "train"]
    quick = evaluation_documents(validation, "quick")
    ngram = ngram_bits_per_byte(training, quick, NGRAM_ORDER)
    samples = continue_text(rungs[0], validation, tokenizer)
    smaller = quantized_rungs(rungs[0].result.model, quick, tokenizer)
    taught = distilled_rung(rungs[0].result.model, rungs[0].run, data, validation, tokenizer, fast=fast)
    if taught is None:
        messages.print(STOPPED)
        return 130
    values = summary(rungs, ngram, samples, smaller, taught, seed=seed, fast=fast, seconds=time.monotonic() - began)
    figures = draw(rungs, ngram, smaller)
    write(out, values, figures)
    if json:
        print_json(values)
    else:
        show(values, out)
    return 0


def prepare(out: Path) -> None:
    """Makes sure that ``out`` is new, empty or an earlier report.

    Raises:
      UserError: if it is something else or cannot be written.
    """
    from minimoe.files import prepare_folder

    prepare_folder(out, _is_report, "an earlier report")


def _is_report(out: Path) -> bool:
    try:
        return json_module.loads((out / REPORT_FILE).read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def climb(
    name: str, dense: bool, steps: int, seed: int, data: Any, validation: list[Document], tokenizer: Tokenizer
) -> Rung | None:
    """Trains one model; None after Ctrl-C."""
    from minimoe.cli.train import describe, make_run, train_with_bar
    from minimoe.data import describe_data

    changes = {"steps": steps, "seed": seed, "log_every": max(1, steps // 60), "checkpoint_every": 0}
    source = describe_data(None, validation)
    run = make_run("nano", changes, dense=dense, dropout=None, tokenizer=tokenizer, data=source)
    messages.print(f"{name}: {describe(run)}")
    began = time.monotonic()
    result = train_with_bar(name, run, data, validation, tokenizer)
    if result.interrupted:
        messages.print(STOPPED)
        return None
    return Rung(name, run, result, time.monotonic() - began)


def continue_text(rung: Rung, validation: list[Document], tokenizer: Tokenizer) -> list[dict[str, str]]:
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
    out = generate(
        rung.result.model, jnp.asarray(prompts, jnp.int32), new, temperature=0.7, top_p=0.95, key=jax.random.key(0)
    )
    texts = [
        (tokenizer.decode(p), tokenizer.decode(o[length:].tolist()))
        for p, o in zip(prompts, np.asarray(out), strict=True)
    ]
    return [{"domain": d, "prompt": p, "continuation": c} for d, (p, c) in zip(first, texts, strict=True)]


def summary(
    rungs: list[Rung],
    ngram: dict[str, float],
    samples: list[dict[str, str]],
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
        "samples": samples,
        "quantized": {name: value for name, value in smaller.items() if name != "bytes_by_path"},
        "distilled": taught,
    }


def draw(rungs: list[Rung], ngram: dict[str, float], smaller: dict[str, Any]) -> dict[str, Figure]:
    """The figures by file name."""
    from minimoe import plots

    runs = {rung.name: rung.result.records for rung in rungs}
    sparse = rungs[0].result
    assert sparse.evaluation is not None
    per_domain = {rung.name: rung.result.evaluation.per_domain for rung in rungs if rung.result.evaluation}
    return {
        "ladder": plots.ladder([rung.row() for rung in rungs]),
        "loss_by_tokens": plots.compare_runs(runs, x="tokens", title="Training loss at equal tokens"),
        "loss_by_seconds": plots.compare_runs(runs, x="seconds", title="Training loss at equal time"),
        "experts_by_domain": plots.experts_by_domain(sparse.evaluation.load, list(sparse.evaluation.per_domain)),
        "balance": plots.balance_over_time(sparse.records),
        "bits_per_byte": plots.bits_per_byte_by_domain(per_domain, ngram, f"byte {NGRAM_ORDER}-gram model"),
        "bytes": plots.bytes_by_part(smaller["bytes_by_path"], "Bytes of the sparse model, by part"),
    }


def write(out: Path, values: dict[str, Any], figures: dict[str, Figure]) -> None:
    """Writes the page, the figures and the numbers; ``report.json`` last, because it marks the folder as a report."""
    from minimoe.cli.report import write_report
    from minimoe.cli.tour_page import page
    from minimoe.files import write_atomically
    from minimoe.plots import save

    folder = out / "figures"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
    write_report(out / "report.html", **page(values, figures))
    write_atomically(out / REPORT_FILE, json_module.dumps(values, indent=1) + "\n")


def show(values: dict[str, Any], out: Path) -> None:
    """The table on the terminal."""
    from rich.table import Table

    table = Table("model", "total", "active", "MFLOPs/token", "bits per byte", "tokens/s", "seconds")
    for row in values["models"]:
        sizes = (
            f"{row['total_params'] / 1e6:.2f}M",
            f"{row['active_params'] / 1e6:.2f}M",
            f"{row['flops_per_token'] / 1e6:.1f}",
        )
        table.add_row(
            row["name"],
            *sizes,
            f"{row['bits_per_byte']:.3f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['seconds']:.0f}",
        )
    console.show(table)
    table = Table("the sparse model as", "megabytes", "bits per byte", "routes changed")
    table.add_row("bfloat16", f"{values['quantized']['bytes_bfloat16'] / 1e6:.2f}", "-", "-")
    for row in values["quantized"]["recipes"]:
        changed = f"{row['routing_changed']:.1%}"
        table.add_row(row["name"], f"{row['bytes'] / 1e6:.2f}", f"{row['bits_per_byte']:.3f}", changed)
    console.show(table)
    taught = values["distilled"]
    table = Table(f"{taught['steps']} steps more", "bits per byte", "seconds")
    for row in taught["ways"]:
        table.add_row(row["name"], f"{row['bits_per_byte']:.3f}", f"{row['seconds']:.0f}")
    table.add_row(f"the teacher ({taught['teacher']})", f"{taught['teacher_bits_per_byte']:.3f}", "-")
    console.show(table)
    write_out(f"{out / 'report.html'}: the report, with figures ({values['seconds']:.0f} s in all)")
