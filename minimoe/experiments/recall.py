"""How far back does each kind of attention find a needle, once it was trained for long and at length?

`attention-kinds` trains for a minute, which teaches CSA and HCA no needle beyond their window. Here the same models of two
layers get more, in two parts, three seeds each:

  near   8,000 steps of 127 tokens from nothing; blocks grow from 16 tokens to the whole row
  far    800 steps more, of 4,095 tokens; blocks grow from 256 tokens to the whole row

CSA begins with all entries and learns to choose while nothing depends on the choice (``found_choosing`` is what it finds
with the best 8 of them); in the second part it reads the best 8 of up to 1,023. DeepSeek-V4 was trained in that order too:
dense attention first, then sparse. Needles are asked for at up to 4,096 tokens. Sliding is the control: two windows of 16
pass on what is at most 30 tokens back. Guessing finds one in ten.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.attention_kinds import DISTANCES as NEAR_DISTANCES
from minimoe.experiments.attention_kinds import NeedleRun, found_at, kinds, model_of, needles_of
from minimoe.experiments.run import Learning, Run
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.attention import AttentionConfig
    from minimoe.model import MoETransformer
    from minimoe.training import RunConfig

SEEDS = (0, 1, 2)
NEAR: dict[str, Any] = {"steps": 8000, "batch_size": 16, "learning_rate": 3e-3, "log_every": 200}
NEAR_NEEDLES: dict[str, Any] = {"grow_at": [300, 600, 900]}
FAR: dict[str, Any] = {"steps": 800, "batch_size": 8, "learning_rate": 1e-3, "log_every": 25}
FAR_NEEDLES: dict[str, Any] = {"shortest": 256, "grow_at": [75, 150, 225, 300]}
NEAR_LENGTH, FAR_LENGTH = 127, 4095
FAR_DISTANCES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3072, 4096)
ALL_ENTRIES = 1024  # more than there are


def read_farther(work: Workplace, run: RunConfig, *, start: str, **settings: Any) -> Learning:
    """The weights of an earlier run, and longer rows of needles."""
    from minimoe.model import with_config

    return Learning(needles_of(settings), model=with_config(work.finished(f"recall/{start}"), run.model))


def choosing(work: Workplace, model: MoETransformer, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``found_choosing``: what CSA finds that was trained with all entries, once it must do with the best 8."""
    from minimoe.model import with_config

    config = model.config.replace(attention=kinds()["CSA"])
    chooses, needles = with_config(model, config), needles_of(settings)
    return {"found_choosing": {str(far): found_at(chooses, needles, far) for far in NEAR_DISTANCES}}


@dataclasses.dataclass(frozen=True)
class FartherRun(NeedleRun):
    """A run on needles whose ``settings`` name the run that it goes on from, ``start``."""

    learn: Any = read_farther

    def needles(self) -> dict[str, Any]:
        return {name: value for name, value in self.settings.items() if name != "start"}


def runs(done: Mapping[str, Any]) -> list[Run]:
    """Six kinds of attention look for needles up to 4,096 tokens back; trained longer, then on longer texts; three seeds."""
    from minimoe.attention import CompressedSparseConfig
    from minimoe.data import ByteTokenizer

    symbols = ByteTokenizer().vocab_size
    found: list[Run] = []
    for name, kind in kinds().items():
        first: AttentionConfig = kind
        scores: tuple[Any, ...] = ()
        if isinstance(kind, CompressedSparseConfig):
            first, scores = dataclasses.replace(kind, index_top_k=ALL_ENTRIES), (choosing,)
        near, far = model_of(first, symbols, NEAR_LENGTH), model_of(kind, symbols, FAR_LENGTH)
        for seed in SEEDS:
            one: dict[str, Any] = {"changes": NEAR | {"seed": seed}, "settings": NEAR_NEEDLES, "model": near}
            found.append(NeedleRun(f"near-{name}-{seed}", **one, scores=scores))
        for seed in SEEDS:
            settings = FAR_NEEDLES | {"start": f"near-{name}-{seed}"}
            one = {"changes": FAR | {"seed": seed}, "settings": settings, "model": far}
            found.append(FartherRun(f"far-{name}-{seed}", **one, distances=FAR_DISTANCES))
    return found
