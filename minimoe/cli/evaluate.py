"""``minimoe eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minimoe import console
from minimoe.console import Bar, counter, print_json, start
from minimoe.errors import UserError


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A training folder or a saved folder.")],
    text: Annotated[Path | None, typer.Option(help="Your own text, a file or a folder, scored whole.")] = None,
    protocol: Annotated[str, typer.Option(help="Of the corpus: quick (a fixed 40,000 tokens) or full.")] = "quick",
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Bits per byte of a model, on validation text by domain or on your own text.

    Example: minimoe eval runs/nano --text README.md --json
    """
    from minimoe.data import documents, evaluation_documents, load_text
    from minimoe.hub import resolve_with_tokenizer
    from minimoe.training import evaluate as run_evaluation

    if text is not None:
        scored = evaluation_documents(load_text(text, split="val"), "full")
        protocol = "full"
    elif protocol in ("quick", "full"):
        scored = evaluation_documents(documents(split="val"), protocol)
    else:
        raise UserError(f"--protocol {protocol!r} is not known; choose quick or full")
    model, tokenizer, _, description = resolve_with_tokenizer(checkpoint)
    start(description)
    with Bar("evaluate", 1) as bar:
        result = run_evaluation(model, scored, tokenizer, progress=counter(bar))
    if json:
        name = str(text) if text else "minimoe-corpus"
        print_json({"checkpoint": str(checkpoint), "text": name, "protocol": protocol} | result.to_record())
        return
    from rich.table import Table

    table = Table("domain", "bits per byte", title=f"{checkpoint} on {text or 'validation text'} ({protocol})")
    for domain, value in result.per_domain.items():
        table.add_row(domain, f"{value:.3f}")
    table.add_row("mean over domains", f"{result.bits_per_byte:.3f}")
    table.add_row("pooled", f"{result.pooled_bits_per_byte:.3f}")
    console.show(table)
