"""Everything that a predicted time or price assumes, in one record; each value can be changed by name."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from minimoe.attention.row_bytes import dtype_bytes
from minimoe.checks import LARGEST_COUNT, choice_fields, flag, flag_fields, number_fields, whole_fields
from minimoe.config import ModelConfig
from minimoe.cost.hardware import PEAKS, Chip
from minimoe.cost.published import PublishedModel
from minimoe.errors import UserError

AUTO = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What `decode_step` and the prices assume. The defaults are a roofline: nothing is slower than the data sheet.

    Args:
      chips: that share the experts; None takes the fewest, a power of two, that hold weights and caches.
      compute: operands of the matmuls, one of `PEAKS`; "auto" is FP8 for weights of 8 bits and fewer where the chip has
        it, else bfloat16, else float32.
      expert_bits, head_bits, other_bits: a stored weight of the routed experts, of embedding and head, and of all else;
        None is as published, or the config's ``param_dtype``.
      cache_dtype: of the numbers in the cache; None is as published, or the config's ``dtype``.
      dispatch_bytes, combine_bytes: a number that goes to an expert of another chip (FP8), and one that comes back
        (bfloat16).
      compute_efficiency, memory_efficiency, link_efficiency: reached share of the peaks.
      overlap: whether computing, reading and sending go on at the same time.
      dollars_per_hour: a chip costs. 2 is what the report on DeepSeek-V3 assumes for an H800; it is used for every chip.
      busy: share of the paid hours in which the chip works.

    Raises:
      UserError: naming the value and the repair.

    Example:
      >>> Assumptions.of(["expert_bits=8", "overlap=false"]).expert_bits
      8.0
    """

    chips: int | None = None
    compute: str = AUTO
    expert_bits: int | float | None = None
    head_bits: int | float | None = None
    other_bits: int | float | None = None
    cache_dtype: str | None = None
    dispatch_bytes: int | float = 1.0
    combine_bytes: int | float = 2.0
    compute_efficiency: int | float = 1.0
    memory_efficiency: int | float = 1.0
    link_efficiency: int | float = 1.0
    overlap: bool = True
    dollars_per_hour: int | float = 2.0
    busy: int | float = 1.0

    def __post_init__(self) -> None:
        if self.chips is not None:
            whole_fields(self, "chips", most=LARGEST_COUNT, hint="leave it out for the fewest that fit")
        choice_fields(self, "compute", choices=(AUTO, *PEAKS))
        if self.cache_dtype is not None:
            choice_fields(self, "cache_dtype", choices=("float32", "float16", "bfloat16"))
        for name in ("expert_bits", "head_bits", "other_bits"):
            if getattr(self, name) is not None:
                number_fields(self, name, low=0, high=64, ends="(]", hint="4.25 is MXFP4, 8 is FP8 or INT8")
        number_fields(self, "dispatch_bytes", "combine_bytes", low=0, high=8, ends="[]", hint="1 is FP8, 2 bfloat16")
        shares = ("compute_efficiency", "memory_efficiency", "link_efficiency", "busy")
        number_fields(self, *shares, low=0, high=1, ends="(]", hint="1 is the data sheet's")
        flag_fields(self, "overlap")
        number_fields(self, "dollars_per_hour", low=0, high=1e6, hint="2 is the report's")

    @classmethod
    def of(cls, settings: Iterable[str]) -> Assumptions:
        """From ``name=value`` texts, as the command line gives them.

        Raises:
          UserError: for an unknown name, listing the known ones, or an impossible value.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for text in settings:
            name, equals, value = text.partition("=")
            if not equals or name not in known:
                raise UserError(f"--assume {text!r} must be name=value; names are {', '.join(sorted(known))}")
            values[name] = flag(name, _value(value)) if name == "overlap" else _value(value)
        return cls(**values)

    def with_weights(self, bits: Mapping[str, float]) -> Assumptions:
        """With the bits of stored weights where none were given: ``expert_bits``, ``head_bits`` and ``other_bits``.

        `minimoe.quant.SizeReport.weight_bits` counts those of a checkpoint.
        """
        stored: dict[str, Any] = {name: value for name, value in bits.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **stored)

    def kind(self, model: ModelConfig | PublishedModel, chip: Chip) -> str:
        """What the matmuls multiply, "auto" decided."""
        if self.compute != AUTO:
            return self.compute
        if weight_bits(model, self)["routed experts"] <= 8 and chip.computes("fp8"):
            return "fp8"
        return "bf16" if chip.computes("bf16") else "float32"


def weight_bits(model: ModelConfig | PublishedModel, assumptions: Assumptions) -> dict[str, int | float]:
    """Bits of a stored weight, of the routed experts, of embedding and head, and of everything else.

    Example:
      >>> from minimoe.cost import published_model
      >>> weight_bits(published_model("deepseek-v4-pro"), Assumptions())
      {'routed experts': 4.25, 'embedding and head': 16, 'other': 8}
    """
    if isinstance(model, PublishedModel):
        bits = dict(published_run(model.name)["weight_bits"])
    else:
        bits = dict.fromkeys(("routed experts", "embedding and head", "other"), 8 * dtype_bytes(model.param_dtype))
    given = (assumptions.expert_bits, assumptions.head_bits, assumptions.other_bits)
    return bits | {part: value for part, value in zip(bits, given, strict=True) if value is not None}


@functools.cache
def _runs() -> dict[str, Any]:
    return json.loads((resources.files("minimoe.cost") / "published_runs.json").read_text(encoding="utf-8"))


def published_run(name: str) -> dict[str, Any]:
    """How a published model is stored and what is known of its training, with sources: ``published_runs.json``.

    Example:
      >>> published_run("deepseek-v3")["hours"]["pre-training"]
      2664000
    """
    if name not in _runs():
        raise UserError(f"nothing is published of {name!r}; choose one of {', '.join(_runs())}")
    return _runs()[name]


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
