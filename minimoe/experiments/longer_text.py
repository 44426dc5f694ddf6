"""Does sparse beat dense on text, once training is long enough?

Five times the tokens of `sparse-vs-dense`, three seeds, with 8 and with 32 experts. Every run is scored along the way, so
the record shows where the gap opens. ``dense`` computes as much a token. ``dense-as-long-as-N`` trains for as long as
``experts-N`` takes, by the ratio that `step-times` found before these runs. ``dense-total`` has as many parameters as
``experts-8`` and uses them all. Compare runs of one seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimoe.experiments.contestants import BASELINE, contestants
from minimoe.experiments.records import read_record
from minimoe.experiments.run import Run

STEPS = 3000
SEEDS = (0, 1, 2)


def runs(done: Mapping[str, Any]) -> list[Run]:
    """Four models, equal tokens; then ``dense`` for as long as each sparse model takes. Seed by seed."""
    models = contestants()
    ratio = read_record("step-times")["given"]
    found = []
    for seed in SEEDS:
        changes = {"steps": STEPS, "seed": seed, "eval_every": 200}
        found += [Run(f"{name}-{seed}", "nano", changes, model=model) for name, model in models.items()]
        for name in ("experts-8", "experts-32"):
            longer = changes | {"steps": 10 * round(STEPS * ratio[name] / 10)}
            found.append(Run(f"dense-as-long-as-{name[8:]}-{seed}", "nano", longer, model=models[BASELINE]))
    return found
