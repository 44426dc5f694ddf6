"""The model card of a shipped model: what it is, how it was made, what it scores and what it is not for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minimoe.training import Evaluation, RunConfig

CURVE_POINTS = 12


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
