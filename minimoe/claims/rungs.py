"""Claim 13, the most with the least: a table from a dense float32 model to a sparse, small, taught and exported one.

A rung changes one thing of the rung before it. Sizes and prices follow from configs and formats. Qualities are those of
shipped weights and of records; times and what shipped weights score were measured by ``minimoe claims --run --record``. What
nobody measured is empty, with the reason.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from minimoe.claims.row import Row
from minimoe.errors import UserError
from minimoe.experiments import read_record

if TYPE_CHECKING:
    from minimoe.config import ModelConfig
    from minimoe.quant.report import SizeRow

RECORD = "claims"
RECIPE = "v4"
CHIP, BATCH, EUROS_PER_HOUR = "H800", 64, 2.0
# Field -> what it is called, its unit, whether more is better (None: neither), how it is written.
FIELDS: dict[str, tuple[str, bool | None, str]] = {
    "total_params": ("parameters", None, ",.0f"),
    "active_params": ("active parameters", False, ",.0f"),
    "flops_per_token": ("FLOPs a token", False, ",.0f"),
    "weight_bytes": ("weight bytes", False, ",.0f"),
    "kv_bytes_per_token": ("KV bytes a token", False, ",.0f"),
    "bits_per_byte": ("bits per byte (quick)", False, ".3f"),
    "exact_match": ("problems solved, %", True, ".1f"),
    "facts_per_param": ("facts per parameter", True, ".4f"),
    "prefill": ("tokens/s read", True, ",.0f"),
    "decode": ("tokens/s written", True, ",.0f"),
    "euros": ("euros per million written", False, ".6f"),
}
MEASURED = ("bits_per_byte", "exact_match", "prefill", "decode")


@dataclasses.dataclass(frozen=True)
class Rung:
    """One rung.

    Attributes:
      name; change: what differs from the rung that it builds on.
      values: of `FIELDS`, None where there is none. why: the reason for each None.
      builds_on: the rung whose model is changed; the one before, if it is empty.
      before, first: each value over that of the rung it builds on, and over that of the first; None where one lacks.
    """

    name: str
    change: str
    values: Mapping[str, int | float | None]
    why: Mapping[str, str]
    builds_on: str = ""
    before: Mapping[str, int | float | None] = dataclasses.field(default_factory=dict)
    first: Mapping[str, int | float | None] = dataclasses.field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


def ladder() -> list[Rung]:
    """All rungs, each with its ratios to the one before and to the first.

    Example:
      >>> rungs = ladder()
      >>> [rung.name for rung in rungs]
      ['dense', 'sparse', 'quantized', 'distilled', 'small cache', 'exported']
      >>> rungs[0].first["weight_bytes"], rungs[2].before["weight_bytes"] < 0.25
      (1.0, True)
    """
    rungs = [make() for make in (_dense, _sparse, _quantized, _distilled, _small_cache, _exported)]
    found = []
    for index, rung in enumerate(rungs):
        earlier = next((one for one in rungs if one.name == rung.builds_on), rungs[max(index - 1, 0)])
        before = {name: _ratio(rung, earlier, name) for name in FIELDS}
        first = {name: _ratio(rung, rungs[0], name) for name in FIELDS}
        found.append(dataclasses.replace(rung, before=before, first=first))
    return found


def _ratio(rung: Rung, other: Rung, name: str) -> int | float | None:
    mine, theirs = rung.values[name], other.values[name]
    return None if mine is None or not theirs else mine / theirs


def measured() -> Mapping[str, Mapping[str, Any]]:
    """What ``minimoe claims --run --record`` measured of each rung; empty where there is no record."""
    try:
        return read_record(RECORD)["ladder"]
    except UserError:
        return {}


def _rung(name: str, change: str, values: Mapping[str, int | float | None], why: Mapping[str, str]) -> Rung:
    """Completes a rung with what was measured of it, and a reason for whatever is missing."""
    known = dict(measured().get(name, {}))
    whole = {field: values.get(field, known.get(field)) for field in FIELDS}
    reasons = {f: why.get(f, "not measured yet: minimoe claims --run --record") for f, v in whole.items() if v is None}
    return Rung(name, change, whole, reasons)


@functools.cache
def _weight_rows(config: ModelConfig, recipe: str | None) -> tuple[SizeRow, ...]:
    """The weights of a model in a format, from shapes alone. Several rungs are one model: it is traced once."""
    from flax import nnx

    from minimoe.model import MoETransformer
    from minimoe.quant import quantize_model, size_report

    def made() -> MoETransformer:
        model = MoETransformer(config, rngs=nnx.Rngs(0))
        return quantize_model(model, recipe) if recipe else model

    return size_report(nnx.eval_shape(made)).rows


def sizes(config: ModelConfig, recipe: str | None) -> dict[str, int | float | None]:
    """What follows from a config and a format: parameters, FLOPs, bytes, and the price on `CHIP`."""
    import jax.numpy as jnp

    from minimoe.cost import Assumptions, chip, count_params, forward_flops_per_token, kv_bytes_per_token, quote
    from minimoe.quant import SizeReport

    rows = _weight_rows(config, recipe)
    count = count_params(config)
    plain = dict.fromkeys(("expert_bits", "head_bits", "other_bits"), 8.0 * jnp.dtype(config.param_dtype).itemsize)
    per: dict[str, Any] = plain | SizeReport(rows).weight_bits()
    assumed = Assumptions(dollars_per_hour=EUROS_PER_HOUR, compute="bf16", chips=1, **per)
    price = quote(config, chip(CHIP), BATCH, config.context_length, assumed)["dollars_per_million_written"]
    return {
        "total_params": count.total,
        "active_params": count.active,
        "flops_per_token": forward_flops_per_token(config),
        "weight_bytes": sum(row.bytes for row in rows),
        "kv_bytes_per_token": kv_bytes_per_token(config),
        "euros": price,
    }


def _nano() -> ModelConfig:
    from minimoe.config import ModelConfig

    return ModelConfig.preset("nano")


def _facts(record: str, way: str, score: Callable[[Mapping[str, Any]], int | float]) -> float:
    """Entries held for each parameter, mean of the seeds."""
    runs = [run for name, run in read_record(record)["runs"].items() if name.rpartition("-")[0] == way]
    return sum(4096 * score(run) / run["total_params"] for run in runs) / len(runs)


def _dense() -> Rung:
    bits = read_record("longer-text")["runs"]["dense-0"]["quick"]["bits_per_byte"]
    facts = _facts("knowledge", "dense", lambda run: run["recalled"])
    values = sizes(_nano().dense_equivalent(), None) | {
        "bits_per_byte": bits,
        "exact_match": None,
        "facts_per_param": facts,
    }
    why = {"exact_match": "never trained on problems; longer-problems has dense models that were (10% to 61% by seed)"}
    return _rung("dense", "float32, one feed-forward network a layer", values, why)


def _sparse() -> Rung:
    facts = _facts("knowledge", "experts-4", lambda run: run["recalled"])
    bits = read_record("nano")["runs"]["nano"]["quick"]["bits_per_byte"]
    change = "nano: 8 experts a layer, 2 and a shared one at work: equal FLOPs, equal tokens"
    return _rung("sparse", change, sizes(_nano(), None) | {"bits_per_byte": bits, "facts_per_param": facts}, {})


def _quantized() -> Rung:
    facts = _facts("knowledge-formats", "plain", lambda run: run["formats"][RECIPE])
    return _rung(
        "quantized", f"nano in recipe {RECIPE}: experts FP4, the rest FP8", _v4() | {"facts_per_param": facts}, {}
    )


def _v4() -> dict[str, int | float | None]:
    return sizes(_nano(), RECIPE)


def _distilled() -> Rung:
    why = {
        "facts_per_param": "students of facts read half a book, so the number would not compare; claim 6 has the points"
    }
    change = f"student: trained on from nano by teacher, on problems; in recipe {RECIPE}"
    return _rung("distilled", change, _v4() | {"facts_per_param": None}, why)


def _small_cache() -> Rung:
    from minimoe.config import ModelConfig
    from minimoe.hub import shipped

    values: dict[str, int | float | None] = sizes(ModelConfig.preset("v4-nano"), RECIPE)
    why = {"facts_per_param": "attention-kinds has facts for other sizes: see claim 7"}
    if "v4-nano" not in shipped():
        values |= {"bits_per_byte": None, "exact_match": None}
        why |= dict.fromkeys(("bits_per_byte", "exact_match"), "v4-nano is not trained; the sizes are its")
    change = (
        f"v4-nano: the whole block of DeepSeek-V4 at the width of nano, by Muon, on nano's text alone; recipe {RECIPE}"
    )
    return _rung("small cache", change, values | {"facts_per_param": None}, why)


def _exported() -> Rung:
    config = _nano()
    known = dict(measured().get("exported", {}))
    values = sizes(config, RECIPE) | {"weight_bytes": known.get("weight_bytes"), "euros": None, "facts_per_param": None}
    why = {
        "facts_per_param": "as the rung of its weights",
        "euros": "the roofline says nothing of ONNX Runtime",
    }
    change = "student as an ONNX file in int8, run by ONNX Runtime; compressed attention is not written as ONNX"
    made = _rung("exported", change, values, why)
    return dataclasses.replace(made, builds_on="distilled")  # compressed attention is not written as ONNX


def most_with_least() -> Row:
    """Claim 13: the ladder in one row."""
    rungs = {rung.name: rung for rung in ladder()}
    small, cache = rungs["distilled"], rungs["small cache"]
    smaller = 1 / (small.first["weight_bytes"] or 1)
    less_cache = 1 / (cache.first["kv_bytes_per_token"] or 1)
    solved = {name: rungs[name].values["exact_match"] for name in ("sparse", "distilled")}
    bits = {
        name: rungs[name].values["bits_per_byte"]
        for name in ("dense", "sparse", "quantized", "distilled", "small cache")
    }
    known = all(value is not None for value in (*solved.values(), *bits.values()))
    gained = known and (solved["distilled"] or 0) > (solved["sparse"] or 0) + 10
    kept = known and (bits["quantized"] or 9) < (bits["dense"] or 0)

    def shown(values: Mapping[str, int | float | None], form: str) -> str:
        return ", ".join(f"{name} {'not measured' if v is None else format(v, form)}" for name, v in values.items())

    return Row(
        number=13,
        id="most-with-least",
        claim="It does the most with the least.",
        means="Each step of the ladder saves something, and what it costs is known.",
        published="not computable: no table of V4 without its parts is published",
        text=f"bits per byte (quick): {shown(bits, '.3f')}",
        reasoning=f"problems solved, %: {shown(solved, '.1f')}",
        knowledge="facts per parameter: "
        + shown({name: rungs[name].values["facts_per_param"] for name in ("dense", "sparse", "quantized")}, ".4f"),
        other=f"the distilled model in recipe {RECIPE} weighs {smaller:.1f} times less than the dense one in float32; "
        f"the small cache holds {less_cache:.1f} times less a token",
        verdict="holds when each step is judged by what it changes: sparse adds capacity for no FLOPs, quantized saves "
        "bytes, compressed attention saves cache; facts learnt by heart and the text of a student are the price"
        if gained and kept
        else "does not show here",
        not_established="That the savings multiply in one model: every rung has weights of its own, "
        "and that of the small cache had another optimizer as well.",
        command="minimoe claims --ladder",
        numbers={"ladder": [rung.to_record() for rung in rungs.values()]},
    )
