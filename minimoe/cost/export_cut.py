"""What an export version of a chip kept, what that changes in decoding and training, and what it leaves alone.

A800 and H800 are the A100 and H100 with a slower link between chips. H20 keeps link and memory and loses matmuls.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from minimoe.config import ModelConfig
from minimoe.cost.assumptions import Assumptions
from minimoe.cost.hardware import Chip
from minimoe.cost.published import PublishedModel
from minimoe.cost.roofline import Step, communication_bound, decode_step

PARTS = ("read", "calculate", "send")


def export_cut(full: Chip, cut: Chip) -> dict[str, int | float]:
    """What an export version kept of the full chip, number by number: 1.0 is everything.

    Unverified numbers are left out, unless the chip that has them was asked for with ``unverified=True``.

    Example:
      >>> from minimoe.cost import chip
      >>> kept = export_cut(chip("H100"), chip("H800"))
      >>> [(name, round(share, 2)) for name, share in kept.items() if share != 1]
      [('link_gb_per_s', 0.44)]
    """
    hidden = {name for one in (full, cut) if not one.unverified for name in one.unverified_of(*one.numbers)}
    both = [name for name in full.numbers if name in cut.numbers and name not in hidden]
    return {name: cut.numbers[name].value / full.numbers[name].value for name in both}


@dataclasses.dataclass(frozen=True)
class CutEffect:
    """One decoding step, and training, on an export version against the full chip.

    Attributes:
      full, cut: names of the chips.
      kept: share of each number that the cut chip kept.
      slower: times as long on the cut chip: "read", "calculate" and "send" alone, "step" as assumed, and
        "step without overlap", where the three follow each other.
      bound_by: what the step waits for, full chip and cut chip.
      training: times as many hours at the same utilisation, from the BF16 peaks.
      hides: whether sending to experts can hide behind their matmuls, full chip and cut chip; None without experts.
    """

    full: str
    cut: str
    kept: dict[str, int | float]
    slower: dict[str, int | float]
    bound_by: tuple[str, str]
    training: int | float
    hides: tuple[bool, bool] | None

    @property
    def names(self) -> tuple[str, str]:
        """Full chip and cut chip."""
        return self.full, self.cut

    def to_record(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self) | {"bound_by": list(self.bound_by), "hides": self.hides and list(self.hides)}

    def in_words(self) -> str:
        """One line: what was cut, what becomes slower, what stays."""
        lost = ", ".join(f"{name} at {share:.2f}" for name, share in self.kept.items() if share != 1)
        times = ", ".join(f"{what} x{ratio:.2f}" for what, ratio in self.slower.items())
        words = f"{self.cut} against {self.full}: {lost}, all else kept. Time of a step: {times}. "
        words += f"It waits for {' and '.join(dict.fromkeys(self.bound_by))}. Training without its sending: "
        words += f"x{self.training:.2f}"
        if self.hides is not None:
            said = [f"{name} {'yes' if hides else 'no'}" for name, hides in zip(self.names, self.hides, strict=True)]
            words += f". Sending to experts can hide behind their matmuls: {', '.join(said)}"
        return words


def export_effect(
    model: ModelConfig | PublishedModel,
    full: Chip,
    cut: Chip,
    batch: int,
    context: int,
    assumptions: Assumptions | None = None,
) -> CutEffect:
    """What the cut changes in one decoding step and in training, on equally many chips of both kinds.

    Args:
      full, cut: such as ``chip("H100")`` and ``chip("H800")``; `Chip.cut_from` names the pairs.
      batch: sequences that get a token each. context: tokens that each holds.

    Raises:
      UserError: as `decode_step`.

    Example:
      >>> from minimoe.cost import chip, published_model
      >>> effect = export_effect(published_model("deepseek-v4-flash"), chip("H100"), chip("H800"), 64, 4096)
      >>> round(effect.slower["send"], 2), effect.slower["step"]
      (2.25, 1.0)
    """
    assumed = Assumptions() if assumptions is None else assumptions
    after = decode_step(model, cut, batch, context, assumed)
    before = decode_step(model, full, batch, context, dataclasses.replace(assumed, chips=after.chips))
    slower = {part: _times(getattr(after, part), getattr(before, part)) for part in PARTS}
    slower |= {"step": after.seconds / before.seconds, "step without overlap": _apart(after) / _apart(before)}
    bounds = [communication_bound(model, each, after.compute, assumed) for each in (full, cut)]
    return CutEffect(
        full.name,
        cut.name,
        export_cut(full, cut),
        slower,
        (before.bound_by, after.bound_by),
        full.peak("bf16") / cut.peak("bf16"),
        (_hides(bounds[0]), _hides(bounds[1])) if bounds[0]["experts"] else None,
    )


def _times(after: int | float, before: int | float) -> int | float:
    return after / before if before else 1.0


def _apart(step: Step) -> int | float:
    return step.read + step.calculate + step.send


def _hides(bound: dict[str, int | float]) -> bool:
    return bound["chip"] <= bound["experts"]
