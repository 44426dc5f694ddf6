"""``minimoe microscope``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minimoe.console import start, write_out


def microscope(
    checkpoint: Annotated[Path, typer.Argument(help="A training folder, a saved folder or a shipped name.")] = Path(
        "nano"
    ),
    out: Annotated[Path, typer.Option(help="The page; an earlier page there is replaced.")] = Path("microscope.html"),
) -> None:
    """Write one web page that runs the model: any browser, no network, nothing to install.

    The page holds the weights, the tokenizer and the code. It shows which experts each token takes while you type.

    Example: minimoe microscope nano --out page.html
    """
    from minimoe.hub import resolve_with_tokenizer
    from minimoe.microscope import write_page
    from minimoe.microscope.page import check_page_path

    check_page_path(out)
    model, tokenizer, _, description = resolve_with_tokenizer(checkpoint)
    start(f"microscope: {description}")
    written = write_page(out, model, tokenizer, name=checkpoint.name or str(checkpoint))
    write_out(f"{written}: {written.stat().st_size / 1e6:.1f} MB; open it in any browser")
