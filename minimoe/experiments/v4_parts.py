"""What does each part of DeepSeek-V4's block buy at the size of ``nano``?

``nano`` is trained as it is, and with one part of DeepSeek-V4 at a time, for the same 2,000 steps with three seeds. The runs
of a seed see the same batches. The parts:

  streams   hyper-connections of four streams in place of the plain residual
  clamp     gate and up of SwiGLU held at 10
  hash      the first layer routed by a frozen table of token ids
  scores    square-root-softplus affinities in place of sigmoids
  muon      Muon for the matrices, with a learning rate of its own

A difference counts if it is larger than the range between seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minimoe.experiments.run import Run

STEPS = 2000
MUON_RATE = 0.02  # of 0.004, 0.01 and 0.02 the best after 60 steps with a fourth seed; AdamW has 0.004


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``nano``, and ``nano`` with one part of DeepSeek-V4 at a time; three seeds, equal tokens."""
    from minimoe.config import LayerConfig, ModelConfig
    from minimoe.layers import HyperConnectionConfig

    nano = ModelConfig.preset("nano")
    assert nano.moe is not None  # it is sparse
    hashed = dataclasses.replace(nano.moe, select="hash", hash_vocab_size=nano.vocab_size)
    models = {
        "plain": nano,
        "streams": nano.replace(residual=HyperConnectionConfig(streams=4)),
        "clamp": nano.replace_moe(swiglu_limit=10.0),
        "hash": nano.replace(first_layers=(LayerConfig(moe=hashed),)),
        "scores": nano.replace_moe(score="sqrtsoftplus"),
    }
    found = []
    for seed in (0, 1, 2):
        changes = {"steps": STEPS, "seed": seed, "eval_every": 500}
        found += [Run(f"{part}-{seed}", "nano", changes, model=model) for part, model in models.items()]
        muon = changes | {"optimizer": "muon", "learning_rate": MUON_RATE}
        found.append(Run(f"muon-{seed}", "nano", muon))
    return found
