"""Dollars per million tokens from a roofline: a lower bound, made of assumptions that are all named."""

from __future__ import annotations

import dataclasses
from typing import Any

from minimoe.config import ModelConfig
from minimoe.cost.assumptions import Assumptions
from minimoe.cost.export_cut import CutEffect, export_effect
from minimoe.cost.hardware import Chip
from minimoe.cost.hardware import chip as chip_named
from minimoe.cost.published import PublishedModel
from minimoe.cost.roofline import Step, decode_step
from minimoe.cost.training import mean_forward_flops


def dollars_per_million(step: Step, assumptions: Assumptions) -> int | float:
    """Of tokens that are written: ``chips * dollars an hour * hours of a step / (sequences * busy)``.

    Example:
      >>> from minimoe.cost import Assumptions, chip, decode_step, published_model
      >>> assumed = Assumptions(dollars_per_hour=2)
      >>> step = decode_step(published_model("deepseek-v4-flash"), chip("H800"), 256, 4096, assumed)
      >>> f"{dollars_per_million(step, assumed):.2f}"
      '0.12'
    """
    paid = step.chips * assumptions.dollars_per_hour * step.seconds / 3600
    return 1e6 * paid / (step.traffic.batch * assumptions.busy)


def dollars_per_million_read(
    model: ModelConfig | PublishedModel, chip: Chip, context: int, assumptions: Assumptions
) -> int | float:
    """Of tokens of a prompt of ``context`` tokens, which are bound by compute: all of them share one read of the weights."""
    peak = chip.peak(assumptions.kind(model, chip)) * assumptions.compute_efficiency
    hours = mean_forward_flops(model, context) / peak / 3600
    return 1e6 * hours * assumptions.dollars_per_hour / assumptions.busy


def quote(
    model: ModelConfig | PublishedModel, chip: Chip, batch: int, context: int, assumptions: Assumptions | None = None
) -> dict[str, Any]:
    """Times and prices of a model on a chip as plain values: the roofline step, dollars, and everything assumed.

    Args:
      batch: sequences that get a token each. context: tokens that each holds, and tokens of a prompt that is read.

    Example:
      >>> from minimoe.cost import chip, published_model
      >>> found = quote(published_model("deepseek-v4-pro"), chip("H800"), batch=64, context=4096)
      >>> found["decode"]["bound_by"], found["export_cut"]["slower"]["step"]
      ('memory', 1.0)
    """
    assumed = Assumptions() if assumptions is None else assumptions
    step = decode_step(model, chip, batch, context, assumed)
    notes = [
        "a lower bound: no kernel, network or scheduler reaches the data sheet; see the efficiencies",
        "tokens hit experts evenly and independently; a skewed load reads fewer and waits for the busiest",
        "attention is on every chip, sequences and experts are divided",
        "multi-token prediction, prompts read between the steps, and research before the model are left out",
    ]
    if not step.fits:
        has, needs = step.memory / 1e9, step.memory_needed / 1e9
        notes.insert(0, f"does not fit: a chip must hold {needs:.1f} GB and has {has:.1f} GB; use more chips")
    if step.unverified:
        notes.insert(0, f"UNVERIFIED numbers of {chip.name} were used: {', '.join(step.unverified)}")
    effect = _effect(model, chip, batch, context, assumed)
    if effect is not None:
        notes.append(effect.in_words())
    return {
        "chip": chip.to_record(),
        "decode": step.to_record(),
        "dollars_per_million_written": dollars_per_million(step, assumed),
        "dollars_per_million_read": dollars_per_million_read(model, chip, context, assumed),
        "assumptions": dataclasses.asdict(assumed) | {"chips": step.chips, "compute": step.compute},
        "export_cut": None if effect is None else effect.to_record(),
        "notes": notes,
    }


def _effect(
    model: ModelConfig | PublishedModel, chip: Chip, batch: int, context: int, assumed: Assumptions
) -> CutEffect | None:
    """What the export cut changes; None for a chip that is no export version."""
    if chip.cut_from is None:
        return None
    return export_effect(model, chip_named(chip.cut_from, unverified=chip.unverified), chip, batch, context, assumed)
