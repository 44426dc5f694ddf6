"""Options that several of the benchmarks have, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minimoe.bench.sizes import DEFAULT_CONFIG, V4_CONFIG

Rounds = Annotated[int, typer.Option(min=1, help="Timed rounds; each runs every contestant once.")]
Warmup = Annotated[int, typer.Option(min=0, help="Rounds before them that are not timed.")]
Pause = Annotated[float, typer.Option(min=0, help="Seconds of rest before each timed call, the same for all.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Out = Annotated[
    Path | None, typer.Option(help="Write the JSON object here too, anew after each report: a kill loses nothing.")
]
Config = Annotated[str, typer.Option(help=f"A preset, or {DEFAULT_CONFIG} or {V4_CONFIG}, which Transformers has too.")]
