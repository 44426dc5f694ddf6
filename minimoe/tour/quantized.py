"""The tour's quantized rungs: the sparse model of this run, stored in fewer bits, saved, read back and scored."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimoe.console import messages

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer
    from minimoe.model import MoETransformer

RECIPES = ("int8", "v4")


def quantized_rungs(model: MoETransformer, quick: list[Document], tokenizer: Tokenizer) -> dict[str, Any]:
    """Bytes of the float model, and for each recipe what `minimoe.hub` wrote and how good it is when read back.

    Returns:
      ``bytes_bfloat16``; ``bytes_by_path`` of every form; and ``recipes``, a row for each: its bytes by the formats, the
      bytes of the tensor file, bits per byte (quick protocol), and the share of routing decisions that changed.
    """
    import jax.numpy as jnp

    from minimoe.data import windows
    from minimoe.hub import load, save
    from minimoe.quant import get_recipe, quantize_model, routing_changes, size_report
    from minimoe.training import evaluate

    before = size_report(model)
    forms = {"bfloat16": {row.path: row.bfloat16_bytes for row in before.rows}}
    tokens = jnp.asarray(windows(quick, tokenizer, model.config.context_length).tokens[:16])
    rows = []
    for name in RECIPES:
        messages.print(f"quantizing: {name}, {get_recipe(name).doc}")
        with tempfile.TemporaryDirectory() as folder:
            save(quantize_model(model, name), folder, tokenizer)
            file_bytes = (Path(folder) / "model.safetensors").stat().st_size
            stored, _, _ = load(folder)
        report = size_report(stored)
        forms[name] = {row.path: row.bytes for row in report.rows}
        rows.append(
            {
                "name": name,
                "bytes": report.bytes,
                "file_bytes": file_bytes,
                "bits_per_byte": evaluate(stored, quick, tokenizer).bits_per_byte,
                "routing_changed": routing_changes(model, stored, tokens),
            }
        )
    return {"bytes_bfloat16": before.bfloat16_bytes, "bytes_by_path": forms, "recipes": rows}
