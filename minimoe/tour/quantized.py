"""The tour's formats: `small` stored in fewer bits, saved, read back and scored; and its offspring `teacher` solves.

`small` was never trained on problems. `teacher` has its size and went on from its weights, half on problems, so it is what is
asked here.
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
OF_EACH_LEVEL, FAST_OF_EACH_LEVEL = 10, 2


def quantized_rung(
    model: MoETransformer, before: Evaluation, quick: list[Document], tokenizer: Tokenizer, *, fast: bool
) -> dict[str, Any]:
    """The decoded model, and each recipe as `minimoe.hub` wrote it and read it back.

    Args:
      model, before: decoded to float32, and how it scored.
      quick, tokenizer: what every form is scored on.
      fast: fewer problems.

    Returns:
      ``bytes_bfloat16``; ``bytes_by_path`` of every form; ``asked``: problems; ``before`` and ``recipes``: bytes by the
      formats, bytes of the tensor file, bits per byte (quick protocol), problems solved by `SOLVER`, and the seconds.
    """
    from minimoe.hub import load_pretrained
    from minimoe.quant import dequantize_model, get_recipe, quantize_model, size_report

    problems, prompts = ask(tokenizer, FAST_OF_EACH_LEVEL if fast else OF_EACH_LEVEL)
    solver = dequantize_model(load_pretrained(SOLVER)[0])
    sizes = size_report(model)
    forms = {"bfloat16": {row.path: row.bfloat16_bytes for row in sizes.rows}}
    begin = {"bits_per_byte": before.bits_per_byte, "solved": solved(solver, problems, prompts, tokenizer)}
    rows = []
    for name in RECIPES:
        messages.print(f"quantizing: {name}, {get_recipe(name).doc}")
        began = time.monotonic()
        row, forms[name] = _stored(model, name, quick, tokenizer)
        right = solved(quantize_model(solver, name), problems, prompts, tokenizer)
        rows.append(row | {"solved": right, "seconds": round(time.monotonic() - began, 1)})
        messages.print(
            f"{name}: {row['bytes'] / 1e6:.1f} MB of {sizes.bfloat16_bytes / 1e6:.1f} in bfloat16, bits per byte "
            f"{row['bits_per_byte']:.3f} (before {before.bits_per_byte:.3f}), {SOLVER} solves {right} of "
            f"{len(problems)} (before {begin['solved']})"
        )
    whole = {"bytes_bfloat16": sizes.bfloat16_bytes, "bytes_by_path": forms, "asked": len(problems)}
    return whole | {"before": begin, "recipes": rows}


def _stored(
    model: MoETransformer, name: str, quick: list[Document], tokenizer: Tokenizer
) -> tuple[dict[str, Any], dict[str, int]]:
    """What a recipe makes of the model, through a file: its numbers, and its bytes by path."""
    from minimoe.hub import load, save
    from minimoe.quant import quantize_model, size_report
    from minimoe.training import evaluate

    with tempfile.TemporaryDirectory() as folder:
        save(quantize_model(model, name), folder, tokenizer)
        file_bytes = (Path(folder) / "model.safetensors").stat().st_size
        stored, _, _ = load(folder)
    report = size_report(stored)
    quality = evaluate(stored, quick, tokenizer).bits_per_byte
    row = {"name": name, "bytes": report.bytes, "file_bytes": file_bytes, "bits_per_byte": quality}
    return row, {row.path: row.bytes for row in report.rows}
