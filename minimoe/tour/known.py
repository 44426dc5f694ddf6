"""The tour's facts: a dense and two sparse layers learn the same random facts by heart, in seconds.

A fact is a name (a random vector) and an answer (one of 16). Nothing can be inferred, so a layer recalls an answer or it
guesses. All three layers compute equally much for a name. The task is that of lesson 01. The program is that of the ledger.
"""

from __future__ import annotations

import time
from typing import Any

from minimoe.claims.book import ANSWERS, HIDDEN, WIDTH, learn
from minimoe.console import messages

BOOK, FAST_BOOK = (
    (2048, 200),
    (1024, 100),
)  # facts, and how often each is read: the dense layer cannot hold the smaller one
SEEDS = 3
CONTESTANTS = {"dense": 0, "8 experts": 8, "32 experts": 32}


def facts_rung(*, fast: bool) -> dict[str, Any]:
    """Trains every contestant with three seeds; all read all facts in every step.

    Returns:
      ``facts``, ``answers``, ``steps``, and ``ways``: for each contestant the share of facts recalled by each seed, its
      parameters, total and active, and the seconds of all its seeds, compilation included.
    """
    from minimoe.config import MoEConfig

    (facts, steps), ways = FAST_BOOK if fast else BOOK, []
    for name, num_experts in CONTESTANTS.items():
        moe = MoEConfig(WIDTH, HIDDEN, max(num_experts, 2), top_k=2, num_shared_experts=1, score="sigmoid")
        began = time.monotonic()
        recalled = [float(learn(seed, num_experts, facts, steps).recalled) for seed in range(SEEDS)]
        seconds = round(time.monotonic() - began, 1)
        active = 3 * moe.expert_params + (moe.router_params if num_experts else 0)
        total = (num_experts + 1) * moe.expert_params + moe.router_params if num_experts else active
        ways.append(
            {"name": name, "recalled": recalled, "total_params": total, "active_params": active, "seconds": seconds}
        )
        messages.print(f"facts, {name}: recalls {', '.join(f'{share:.0%}' for share in recalled)} of {facts:,}")
    return {"facts": facts, "answers": ANSWERS, "steps": steps, "ways": ways}
