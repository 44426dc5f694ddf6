"""What does every quantization recipe do to a trained model?

`small-hour` must be finished: its model is quantized by every recipe, the calibrated ones too, and scored on the whole
validation text. Nothing is trained. The record has the bytes, the bits per byte and the share of routing decisions that
changed, and the same model with smaller key/value caches. Lesson 04 reads it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimoe.console import Bar, counter, messages
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer
    from minimoe.model import MoETransformer

MODEL = Path("small-hour") / "small"  # where `minimoe experiments run small-hour` leaves its model
CALIBRATION_WINDOWS, ROUTING_WINDOWS = 64, 16
MAIN = ("int8", "fp8", "v4", "mxfp4", "int8-w8a8")
CACHES = ("bf16", "fp8", "fp8-rope", "int8", "int4")


def measure(work: Path, values: dict[str, Any], save: Callable[[], None]) -> None:
    """Quantizes ``small`` by every recipe, calibrated ones too, and scores it: bytes, bits per byte, routing.

    What ``values`` holds already of the same weights is not done again; ``save`` is called after every recipe.

    Raises:
      UserError: if ``small`` was not trained in ``work`` yet.
    """
    from minimoe.data import documents, evaluation_documents
    from minimoe.model import model_fingerprint
    from minimoe.training import load_checkpoint

    folder = work / MODEL
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no trained model; run `minimoe experiments run small-hour --work {work}` first"
        )
    model, tokenizer, run = load_checkpoint(folder)
    weights = model_fingerprint(model)
    if values.get("weights_sha256") not in (None, weights):
        messages.print("the record is of other weights: starting again")
        for part in ("float32", "recipes", "caches"):
            values.pop(part, None)
    values |= {"model": run.model.to_dict(), "weights_sha256": weights}
    validation = [document for document in documents() if document.split == "val"]
    texts = {name: evaluation_documents(validation, name) for name in ("quick", "full")}
    before = values.setdefault("float32", {"bytes": _bytes(model)})
    done = values.setdefault("recipes", {})
    makers = _makers(model, tokenizer)
    # What says most comes first: everything on the quick text, then the five recipes of the lesson on all of it.
    for protocol, names in (("quick", list(makers)), ("full", [*MAIN, *(name for name in makers if name not in MAIN)])):
        if protocol not in before:
            before[protocol] = _score("float32", model, texts, protocol, tokenizer)
            save()
        for name in names:
            if protocol in done.get(name, {}):
                continue
            quantized = makers[name]()
            entry = done.get(name) or _sizes(model, quantized, texts["quick"], tokenizer)
            scores = _score(name, quantized, texts, protocol, tokenizer)
            done[name] = entry | {protocol: scores | _changes(name, scores, before[protocol])}
            save()
        values["protocol"] = protocol  # the fullest that every recipe was scored by
        if protocol == "quick":
            _caches(model, texts, tokenizer, values, save)
        save()


def _makers(model: MoETransformer, tokenizer: Tokenizer) -> dict[str, Callable[[], MoETransformer]]:
    """Every recipe, then the calibrated variants. Calibration text is read once, when it is first needed."""
    import functools

    from minimoe.quant import (
        INT8_CHANNEL,
        MXFP4,
        RECIPES,
        QuantRecipe,
        Rule,
        collect,
        gptq_model,
        quantize_model,
        smooth,
    )

    @functools.cache
    def calibration() -> Any:
        return collect(model, _calibration_batches(model, tokenizer))

    router = {
        f"router-{spec.format}": QuantRecipe("router", (Rule("router$", spec),)) for spec in (INT8_CHANNEL, MXFP4)
    }
    makers: dict[str, Callable[[], MoETransformer]] = {
        name: functools.partial(quantize_model, model, name) for name in RECIPES
    }
    makers |= {name: functools.partial(quantize_model, model, recipe) for name, recipe in router.items()}
    makers["int8-w8a8+smoothquant"] = lambda: quantize_model(smooth(model, calibration()), "int8-w8a8")
    for name in ("int4", "mxfp4"):
        makers[f"{name}+gptq"] = functools.partial(lambda recipe: gptq_model(model, calibration(), recipe), name)
    return makers


def _calibration_batches(model: MoETransformer, tokenizer: Tokenizer) -> list[Any]:
    """Windows of the training text, every domain alike: never of the text that is scored."""
    import jax.numpy as jnp

    from minimoe.data import documents, training_data

    data = training_data(documents(), tokenizer)
    length = model.config.context_length
    return [jnp.asarray(data.batch(0, step, 8, length).tokens) for step in range(CALIBRATION_WINDOWS // 8)]


def _sizes(
    model: MoETransformer, quantized: MoETransformer, quick: list[Document], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Bytes, counted and in a file, and the share of routing decisions that changed."""
    import jax.numpy as jnp

    from minimoe.data import windows
    from minimoe.quant import routing_changes, size_report

    cut = windows(quick, tokenizer, model.config.context_length)
    some = slice(None, None, max(1, len(cut.tokens) // ROUTING_WINDOWS))
    report = size_report(quantized)
    return {
        "bytes": report.bytes,
        "file_bytes": _file_bytes(quantized),
        "compression_vs_bf16": report.bfloat16_bytes / report.bytes,
        "bits_per_value": report.bits_per_value,
        "routing_changed": routing_changes(
            model, quantized, jnp.asarray(cut.tokens[some]), where=jnp.asarray(cut.where[some])
        ),
    }


def _changes(name: str, now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Relative change of bits per byte against float32, of the mean and by domain."""
    relative = now["bits_per_byte"] / then["bits_per_byte"] - 1
    messages.print(f"{name}: {now['bits_per_byte']:.4f} ({relative:+.2%})")
    by_domain = {domain: bits / then["per_domain"][domain] - 1 for domain, bits in now["per_domain"].items()}
    return {"relative_change": relative, "per_domain_relative_change": by_domain}


def _score(
    name: str, model: Any, texts: Mapping[str, list[Document]], protocol: str, tokenizer: Tokenizer
) -> dict[str, Any]:
    from minimoe.training import evaluate

    with Bar(f"{name}, {protocol}", 1) as bar:
        return evaluate(model, texts[protocol], tokenizer, progress=counter(bar)).to_record()


def _caches(
    model: MoETransformer,
    texts: Mapping[str, list[Document]],
    tokenizer: Tokenizer,
    values: dict[str, Any],
    save: Callable[[], None],
) -> None:
    """The float model with every key and value read back through a smaller cache; quick protocol."""
    from minimoe.quant import cache_bytes_per_token, kv_cache, through_cache

    done = values.setdefault("caches", {})
    for name in CACHES:
        if name in done:
            continue
        quick = _score(f"cache {name}", through_cache(model, kv_cache(name)), texts, "quick", tokenizer)
        done[name] = {
            "quick": quick,
            "bytes_per_token": cache_bytes_per_token(model.config, name),
            "relative_change": quick["bits_per_byte"] / values["float32"]["quick"]["bits_per_byte"] - 1,
        }
        save()


def _bytes(model: MoETransformer) -> int:
    from minimoe.quant import size_report

    return size_report(model).bytes


def _file_bytes(model: MoETransformer) -> int:
    """Of the tensor file, saved for real and thrown away."""
    from minimoe.hub import save

    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model")
        return (Path(folder) / "model" / "model.safetensors").stat().st_size
