"""Does training with rounded weights help a model whose experts are stored in MXFP4?

`small-hour` must be finished: both ways go on from its weights for 200 steps, as DeepSeek-V4 does this after its main
training. ``plain`` runs train as before and are rounded afterwards. ``qat`` runs see rounded weights in every forward
pass. All else is equal. In the record ``full`` scores the float32 weights and ``quantized`` the rounded ones: for
``plain`` runs that is post-training quantization.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.run import Learning, Run, read_corpus
from minimoe.experiments.scores import rounded
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.training import RunConfig

PLAIN = {"start": "small-hour/small", "quantized": "mxfp4"}
WAYS = {"plain": PLAIN, "qat": PLAIN | {"qat": "mxfp4"}}


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``small`` with experts in MXFP4: 200 more steps of training with and without the rounding, equal but for that."""
    changes = {"steps": 200, "learning_rate": 3e-4, "warmup_steps": 20}
    return [
        Run(f"{name}-{seed}", "small", changes | {"seed": seed}, learn=go_on, settings=settings, scores=(rounded,))
        for seed in (0, 1, 2)
        for name, settings in WAYS.items()
    ]


def go_on(work: Workplace, run: RunConfig, *, start: str, quantized: str, qat: str | None = None) -> Learning:
    """The corpus again, from the weights of a finished run, seen as ``qat`` rounds them."""
    from minimoe.quant.methods import QuantizationAware

    method = None if qat is None else QuantizationAware(qat)
    return read_corpus(work, run)._replace(model=work.finished(start), method=method)
