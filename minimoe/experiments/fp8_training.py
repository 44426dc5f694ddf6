"""What does training with products of 8-bit numbers cost in quality?

``nano`` is trained twice with each of three seeds: with float32 products, and with emulated 8-bit ones. The runs of a
seed see the same batches. The record says how far their losses part; lesson 04 draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.run import Learning, Run, read_corpus
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.training import RunConfig


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``nano`` with float32 and with emulated 8-bit products, the same three seeds: how far the losses part."""
    found = []
    for seed in (0, 1, 2):
        changes = {"steps": 300, "seed": seed}
        found.append(Run(f"float32-{seed}", "nano", changes))
        found.append(Run(f"fp8-{seed}", "nano", changes, learn=multiply_in_8_bits, settings={"fp8": True}))
    return found


def multiply_in_8_bits(work: Workplace, run: RunConfig, *, fp8: bool) -> Learning:
    """The corpus, by a model whose products are emulated 8-bit ones. It is scored with them too."""
    from minimoe.quant.methods import Fp8Products

    return read_corpus(work, run)._replace(method=Fp8Products())
