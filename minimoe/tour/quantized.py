"""The tour's formats: `small` stored in fewer bits, saved, read back and scored; and its offspring `teacher` solves.

`small` was never trained on problems. `teacher` has its size and went on from its weights, half on problems, so it is what is
asked here. The fast tour asks it nothing: a handful of problems shows no loss, and each format is compiled for it anew.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimoe.console import messages
from minimoe.tour.solved import ask, solved

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer
    from minimoe.model import MoETransformer
    from minimoe.training import Evaluation

RECIPES = ("int8", "fp8", "v4")
SOLVER = "teacher"
OF_EACH_LEVEL = 10


def quantized_rung(
    model: MoETransformer, before: Evaluation, scored: list[Document], tokenizer: Tokenizer, *, fast: bool
) -> dict[str, Any]:
    """The decoded model, and each recipe as `minimoe.hub` wrote it and read it back.

    Args:
      model, before: decoded to float32, and how it scored.
      scored, tokenizer: what every form is scored on.
      fast: no problems.

    Returns:
      ``bytes_bfloat16``; ``bytes_by_path`` of every form; ``asked``: problems; ``before`` and ``recipes``: bytes by the
      formats, bytes of the tensor file, bits per byte, problems solved by `SOLVER` (None if not asked), and the seconds.
    """
    from minimoe.hub import load_pretrained
    from minimoe.quant import dequantize_model, get_recipe, quantize_model, size_report

    problems, prompts = ask(tokenizer, 0 if fast else OF_EACH_LEVEL)
    solver = None if fast else dequantize_model(load_pretrained(SOLVER)[0])
    sizes = size_report(model)
    forms = {"bfloat16": {row.path: row.bfloat16_bytes for row in sizes.rows}}
    right = None if solver is None else solved(solver, problems, prompts, tokenizer)
    begin = {"bits_per_byte": before.bits_per_byte, "num_bytes": before.num_bytes, "solved": right}
    rows = []
    for name in RECIPES:
        messages.print(f"quantizing: {name}, {get_recipe(name).doc}")
        began = time.monotonic()
        row, forms[name] = _stored(model, name, scored, tokenizer)
        right = None if solver is None else solved(quantize_model(solver, name), problems, prompts, tokenizer)
        rows.append(row | {"solved": right, "seconds": round(time.monotonic() - began, 1)})
        messages.print(
            f"{name}: {row['bytes'] / 1e6:.1f} MB of {sizes.bfloat16_bytes / 1e6:.1f} in bfloat16, bits per byte "
            f"{row['bits_per_byte']:.3f} (before {before.bits_per_byte:.3f})"
            + ("" if fast else f", {SOLVER} solves {right} of {len(problems)} (before {begin['solved']})")
        )
    whole = {"bytes_bfloat16": sizes.bfloat16_bytes, "bytes_by_path": forms, "asked": len(problems)}
    return whole | {"before": begin, "recipes": rows}


def _stored(
    model: MoETransformer, name: str, scored: list[Document], tokenizer: Tokenizer
) -> tuple[dict[str, Any], dict[str, int]]:
    """What a recipe makes of the model, through a file: its numbers, and its bytes by path."""
    from minimoe.hub import load, save
    from minimoe.quant import dequantize_model, get_recipe, quantize_model, size_report
    from minimoe.training import evaluate

    with tempfile.TemporaryDirectory() as folder:
        save(quantize_model(model, name), folder, tokenizer)
        file_bytes = (Path(folder) / "model.safetensors").stat().st_size
        stored, _, _ = load(folder)
    report = size_report(stored)
    if all(rule.activations is None for rule in get_recipe(name).rules):
        stored = dequantize_model(stored)  # the same numbers, by a program that is compiled already
    quality = evaluate(stored, scored, tokenizer).bits_per_byte
    row = {"name": name, "bytes": report.bytes, "file_bytes": file_bytes, "bits_per_byte": quality}
    return row, {row.path: row.bytes for row in report.rows}
