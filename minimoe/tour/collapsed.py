"""The tour's collapse and its cure: a layer learns facts whose names are alike, without balancing and with the bias.

All names share one large vector. The router therefore begins with the same favourites for all of them, and few experts
get all the work. The two ways differ in the bias alone, seed by seed.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from minimoe.claims.book import learn
from minimoe.console import messages
from minimoe.tour.known import BOOK, FAST_BOOK, SEEDS

EXPERTS, COMMON = 32, 2.0
WAYS = {"no balancing": 0.0, "the bias": 0.02}


def collapse_rung(*, fast: bool) -> dict[str, Any]:
    """Trains both ways with three seeds.

    Returns:
      ``experts``, ``facts``, ``steps``, and ``ways``: for each the bias rate, the share of facts recalled and the last
      MaxVio of each seed, MaxVio by step of seed 0, and the seconds of all its seeds.
    """
    (facts, steps), ways = FAST_BOOK if fast else BOOK, []
    for name, rate in WAYS.items():
        began = time.monotonic()
        learned = [learn(seed, EXPERTS, facts, steps, common=COMMON, bias_rate=rate) for seed in range(SEEDS)]
        recalled = [float(one.recalled) for one in learned]
        last = [round(float(one.max_violation[-1]), 2) for one in learned]
        way = {"name": name, "rate": rate, "recalled": recalled, "max_violation": last}
        way["curve"] = [round(float(value), 3) for value in learned[0].max_violation]
        ways.append(way | {"seconds": round(time.monotonic() - began, 1)})
        messages.print(
            f"collapse, {name}: recalls {', '.join(f'{share:.0%}' for share in recalled)} of {facts:,}, "
            f"MaxVio {statistics.mean(last):.1f} of at most {EXPERTS / 2 - 1:.0f}"
        )
    return {"experts": EXPERTS, "facts": facts, "steps": steps, "ways": ways}
