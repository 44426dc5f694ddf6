"""A trained model becomes one that comes with the package, with its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minimoe.console import Bar, counter, messages
from minimoe.errors import UserError
from minimoe.experiments.card import card_text
from minimoe.experiments.records import read_record


def ship_model(name: str, checkpoint: Path, recipe: str = "int8", into: Path | None = None) -> float:
    """Quantizes a trained model, saves it, scores what was saved, and writes its card.

    Args:
      name: what it will be called. checkpoint: its training folder.
      recipe: of quantization, see `minimoe.quant.RECIPES`.
      into: folder of all shipped models; None is the package's.

    Returns:
      Bits per byte of the stored weights on the whole validation text.

    Raises:
      UserError: if recipe or checkpoint are not known, or the folder holds something else.
    """
    from minimoe.data import documents, evaluation_documents
    from minimoe.files import write_atomically
    from minimoe.hub import check_destination, load, provenance_of, save
    from minimoe.hub.pretrained import CARD_FILE, WEIGHTS
    from minimoe.progress import grade
    from minimoe.quant import get_recipe, quantize_model, size_report
    from minimoe.training import evaluate, load_checkpoint, read_metrics

    get_recipe(recipe)
    folder = (into or WEIGHTS) / name
    check_destination(folder)
    model, tokenizer, run = load_checkpoint(checkpoint)
    messages.print(f"ship {name}: {recipe} of {checkpoint}")
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
    messages.print(f"{folder}: saved, with its card")
    return scores["full"].bits_per_byte


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
