"""The part of ``minimoe cost`` that speaks of chips: rooflines, prices, and what is known of a published training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minimoe import console

if TYPE_CHECKING:
    from minimoe.config import ModelConfig
    from minimoe.cost import Assumptions, PublishedModel


def assumptions(settings: Sequence[str], cache_dtype: str | None) -> Assumptions:
    """What is assumed: the texts of ``--assume``, and the cache of ``--cache-dtype`` unless they speak of it."""
    from minimoe.cost import Assumptions

    given = Assumptions.of(settings)
    return dataclasses.replace(given, cache_dtype=cache_dtype) if given.cache_dtype is None else given


def quotes(
    model: ModelConfig | PublishedModel,
    hardware: Sequence[str],
    batch: int,
    context: int,
    assumed: Assumptions,
    unverified: bool,
) -> dict[str, Any]:
    """One quote a chip under "hardware", and "training" for published models; empty without chips."""
    from minimoe.cost import chip, quote

    if not hardware:
        return {}
    found = [quote(model, chip(name, unverified=unverified), batch, context, assumed) for name in hardware]
    return {"hardware": found, "training": training(model)}


def training(model: ModelConfig | PublishedModel) -> dict[str, Any] | None:
    """Reported hours, or a range; None where nothing is published."""
    from minimoe.cost import PublishedModel, published_run, reported_training, training_range

    if not isinstance(model, PublishedModel):
        return None
    run = published_run(model.name)
    if "hours" in run:
        return {"certainty": "published"} | dataclasses.asdict(reported_training(model.name))
    if "train_tokens" in run:
        return {"certainty": "derived, nothing is published"} | training_range(model.name)
    return None


def show(found: Mapping[str, dict[str, Any]]) -> None:
    """A column a model and chip, then everything assumed."""
    from rich.table import Table

    columns = [(name, each) for name, record in found.items() for each in record.get("hardware", ())]
    if not columns:
        return
    steps = [each["decode"] for _, each in columns]
    marks = [" (unverified)" if step["unverified"] else "" for step in steps]
    heads = [f"{name}\n{step['chip']}{mark}" for (name, _), step, mark in zip(columns, steps, marks, strict=True)]
    first = steps[0]["traffic"]
    table = Table("", *heads, title=f"decoding {first['batch']:,} sequences of {first['context']:,} tokens, at best")
    for label, value in ROWS.items():
        table.add_row(label, *(value(each) for _, each in columns))
    shared = columns[0][1]["assumptions"] | {"chips": "as above", "compute": "as above"}
    lines = ["", "assumed (change with --assume name=value):"]
    lines += [
        f"  {name} = {'as published or configured' if value is None else value}" for name, value in shared.items()
    ]
    lines += ["", *dict.fromkeys(f"{note}." for _, each in columns for note in each["notes"])]
    lines += [words for name, record in found.items() if (words := _training_in_words(name, record["training"]))]
    console.show(table, *lines)


def _ms(name: str) -> Any:
    return lambda each: f"{1e3 * each['decode'][name]:,.3f}"


ROWS: dict[str, Any] = {
    "chips": lambda each: f"{each['decode']['chips']}{'' if each['decode']['fits'] else ' (does not fit)'}",
    "matmuls in": lambda each: each["decode"]["compute"],
    "distinct experts a layer": lambda each: "{:.1f} of {:g}".format(*each["decode"]["traffic"]["distinct"]),
    "memory a chip, GB": lambda each: (
        f"{each['decode']['memory_needed'] / 1e9:.2f} of {each['decode']['memory'] / 1e9:g}"
    ),
    "reading weights and caches, ms": _ms("read"),
    "computing, ms": _ms("calculate"),
    "sending to experts and back, ms": _ms("send"),
    "a step, ms": _ms("seconds"),
    "waits for": lambda each: each["decode"]["bound_by"],
    "tokens/s a sequence": lambda each: f"{1 / each['decode']['seconds']:,.1f}",
    "tokens/s a chip": lambda each: f"{each['decode']['tokens_per_second_per_chip']:,.1f}",
    "dollars per million written": lambda each: f"{each['dollars_per_million_written']:.4f}",
    "dollars per million read": lambda each: f"{each['dollars_per_million_read']:.4f}",
}


def _training_in_words(name: str, known: dict[str, Any] | None) -> str:
    if known is None:
        return ""
    if "total" in known:
        used = " to ".join(f"{share:.1%}" for share in known["utilisation"].values())
        hours = (
            f"{known['total'] / 1e6:.3f} million {known['chip']} hours, {known['dollars'] / 1e6:.3f} million dollars"
        )
        return f"Training of {name}, as reported: {hours}; pre-training reached {used} of the BF16 peak."
    low, high = (hours / 1e6 for hours in known["range"])
    words = f"{low:.1f} to {high:.1f} million {known['chip']} hours at 0.75 to 1.25 times the rate of DeepSeek-V3"
    return f"Training of {name}: not published; {words}."
