"""``minimoe experiments ship``: a trained model becomes one that comes with the package, with its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minimoe.console import Bar, counter, messages, start
from minimoe.errors import UserError
from minimoe.experiments.records import read_record

if TYPE_CHECKING:
    from minimoe.training import Evaluation, RunConfig

CURVE_POINTS = 12


def ship(
    name: Annotated[str, typer.Argument(help="What it will be called.")],
    checkpoint: Annotated[Path, typer.Option(help="Its training folder.")],
    recipe: Annotated[str, typer.Option(help="Quantization recipe it is stored with.")] = "int8",
    into: Annotated[Path | None, typer.Option(help="Folder of all shipped models; default: the package's.")] = None,
) -> None:
    """Quantize a trained model, save it in the package, score what was saved, and write its card.

    Example: minimoe experiments ship small --checkpoint runs/lab/small-hour/small
    """
    from minimoe.cli.reasoning import grade
    from minimoe.data import documents, evaluation_documents
    from minimoe.files import write_atomically
    from minimoe.hub import check_destination, load, provenance_of, save
    from minimoe.hub.pretrained import CARD_FILE, WEIGHTS
    from minimoe.quant import get_recipe, quantize_model, size_report
    from minimoe.training import evaluate, load_checkpoint, read_metrics

    get_recipe(recipe)
    folder = (into or WEIGHTS) / name
    check_destination(folder)
    model, tokenizer, run = load_checkpoint(checkpoint)
    start(f"ship {name}: {recipe} of {checkpoint}")
    experiment = recorded(checkpoint)
    provenance = {"quantized_with": recipe, "source": provenance_of(checkpoint), "experiment": experiment}
    save(quantize_model(model, recipe), folder, tokenizer, provenance=provenance)
    stored, _, _ = load(folder)
    validation = [document for document in documents() if document.split == "val"]
    scores = {}
    for protocol in ("quick", "full"):
        with Bar(f"{name}, {protocol}", 1) as bar:
            scored = evaluation_documents(validation, protocol)
            scores[protocol] = evaluate(stored, scored, tokenizer, progress=counter(bar))
    provenance["bits_per_byte"] = {protocol: score.bits_per_byte for protocol, score in scores.items()}
    if experiment and experiment["method"].get("tasks"):
        provenance["exact_match"] = {form: grade(stored, tokenizer, form).to_record() for form in ("worked", "direct")}
    save(stored, folder, tokenizer, provenance=provenance)
    records = read_metrics(checkpoint)
    text = card_text(name, recipe, run, provenance, scores, size_report(stored).bytes, records)
    write_atomically(folder / CARD_FILE, text)
    messages.print(f"{folder}: {scores['full'].bits_per_byte:.4f} bits per byte (full)")


def recorded(checkpoint: Path) -> dict[str, Any] | None:
    """Which run of which experiment left a folder ``.../experiment/run``, if one did: the command and the method."""
    experiment, run = checkpoint.resolve().parts[-2:]
    try:
        runs = read_record(experiment).get("runs", {})
    except UserError:
        return None
    if run not in runs:
        return None
    return {"command": f"minimoe experiments run {experiment}", "run": run, "method": runs[run].get("method", {})}


def card_text(
    name: str,
    recipe: str,
    run: RunConfig,
    provenance: dict[str, Any],
    scores: dict[str, Evaluation],
    num_bytes: int,
    records: list[dict[str, Any]],
) -> str:
    """The model card: what it is, how it was made, what it scores and what it is not for."""
    from minimoe import __version__
    from minimoe.cost import count_params

    count, source = count_params(run.model), provenance["source"]
    tokens = run.recipe.batch_size * run.model.context_length * source["step"]
    rows = [f"| {d} | {scores['quick'].per_domain[d]:.4f} | {v:.4f} |" for d, v in scores["full"].per_domain.items()]
    evals = [record for record in records if record["kind"] == "eval"]
    curve = [f"| {r['step']:,} | {r['bits_per_byte']:.3f} |" for r in evals[:: max(1, len(evals) // CURVE_POINTS)]]
    lines = [
        f"# {name}",
        "",
        f"A Mixture-of-Experts language model of {count.total / 1e6:.2f} million parameters, {count.active / 1e6:.2f} "
        f"million of them active on a token, stored with the recipe `{recipe}` in {num_bytes / 1e6:.2f} MB. It is for "
        "lessons and tests: it writes text that looks like its training text and knows nothing.",
        "",
        "## How it was made",
        "",
        f"- text: {source['data']['name']}, sha256 `{source['data']['sha256']}`, training split; licences beside the text",
        f"- {source['step']:,} steps of {run.recipe.batch_size} x {run.model.context_length} tokens, {tokens:,} in all, "
        f"seed {run.recipe.seed}; minimoe {__version__}, "
        + ", ".join(f"{package} {version}" for package, version in source["versions"].items() if package != "minimoe"),
        *method_lines(provenance["experiment"]),
        "- the recipe in full: `config.json`, under `provenance`",
        "- licence: MIT, as the code",
        "",
        "## What it scores",
        "",
        "Bits per byte on validation text, of the weights as stored.",
        "",
        "| domain | quick | full |",
        "| --- | --- | --- |",
        *rows,
        f"| mean | {scores['quick'].bits_per_byte:.4f} | {scores['full'].bits_per_byte:.4f} |",
        f"| pooled | {scores['quick'].pooled_bits_per_byte:.4f} | {scores['full'].pooled_bits_per_byte:.4f} |",
        "",
        *task_lines(provenance.get("exact_match")),
        "While it was trained (float32, quick):",
        "",
        "| step | bits per byte |",
        "| --- | --- |",
        *curve,
        "",
        "## The model",
        "",
        "```json",
        json.dumps(run.model.to_dict(), indent=1),
        "```",
    ]
    return "\n".join(lines) + "\n"


def method_lines(experiment: dict[str, Any] | None) -> list[str]:
    """How it was trained, beyond its recipe."""
    if experiment is None:
        return []
    method = experiment["method"]
    lines = [f"- by `{experiment['command']}`, run `{experiment['run']}`"]
    if method.get("start"):
        lines.append(f"- begun from the weights of `{method['start']}`")
    if method.get("domains"):
        lines.append(f"- of the text only {', '.join(method['domains'])}")
    if method.get("tasks"):
        lines.append(f"- {method['tasks']:.0%} of all tokens are generated reasoning problems, {method['form']}")
    if method.get("teachers"):
        how = ", ".join(f"{name} {value}" for name, value in method["distill"].items()) or "text only"
        lines.append(f"- distilled from {', '.join(method['teachers'])} ({how})")
    return lines


def task_lines(answers: dict[str, Any] | None) -> list[str]:
    """Exact match by level, of validation problems: they hold combinations that training never showed."""
    if answers is None:
        return []
    levels = list(next(iter(answers.values()))["exact_match"])
    rows = [
        f"| {form} | " + " | ".join(f"{record['exact_match'][level]:.0%}" for level in levels) + " |"
        for form, record in answers.items()
    ]
    num = next(iter(answers.values()))["num"]
    return [
        f"Reasoning problems answered exactly right, greedily, {num} of each level:",
        "",
        "| form | " + " | ".join(f"level {level}" for level in levels) + " |",
        "| --- |" + " --- |" * len(levels),
        *rows,
        "",
    ]
