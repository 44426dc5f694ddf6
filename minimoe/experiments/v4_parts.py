"""What does each part of DeepSeek-V4's block buy at the size of ``nano``?

``nano`` is trained as it is, and with one part of DeepSeek-V4 at a time, for the same 300 steps (614,000 tokens) with three
seeds. The runs of a seed see the same batches. The parts:

  streams   hyper-connections of four streams in place of the plain residual
  hash      the first layer routed by a frozen table of token ids
  scores    square-root-softplus affinities in place of sigmoids
  muon      Muon for the matrices, with a learning rate of its own
  clamp     gate and up of SwiGLU held at 10
  mtp       a head that also learns the token after the next, its loss weighted 0.3; its drafts are counted

The sink needs a baseline of its own, since the attention of ``nano`` has none:

  window    DeepSeek-V4's attention over the last 32 tokens in every layer, with a sink a head
  no-sink   the same without the sinks, compared with window

300 steps are few: that is what one core does in an hour for all runs. Runs named long-* took 2,000 steps (4.1 million
tokens) on an accelerator: four of the models, at most two seeds each. A difference counts if all seeds
agree on its sign and it is larger than the range between seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minimoe.experiments.mtp import drafted
from minimoe.experiments.run import Run

STEPS, LONG_STEPS = 300, 2000
MUON_RATE = 0.02  # of 0.004, 0.01 and 0.02 the best after 60 steps with a fourth seed; AdamW has 0.004
LONG = ("plain-0", "clamp-0", "hash-0", "scores-0", "plain-1", "clamp-1", "hash-1")


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``nano``, and ``nano`` with one part of DeepSeek-V4 at a time; three seeds, equal tokens."""
    from minimoe.attention import SlidingWindowConfig
    from minimoe.config import LayerConfig, ModelConfig, MTPConfig
    from minimoe.layers import HyperConnectionConfig

    nano = ModelConfig.preset("nano")
    assert nano.moe is not None  # it is sparse
    hashed = dataclasses.replace(nano.moe, select="hash", hash_vocab_size=nano.vocab_size)
    window = ModelConfig.preset("v4-nano").attention
    assert isinstance(window, SlidingWindowConfig)
    models = {
        "plain": nano,
        "streams": nano.replace(residual=HyperConnectionConfig(streams=4)),
        "hash": nano.replace(first_layers=(LayerConfig(moe=hashed),)),
        "scores": nano.replace_moe(score="sqrtsoftplus"),
        "muon": nano,
        "clamp": nano.replace_moe(swiglu_limit=10.0),
        "mtp": nano.replace(mtp=MTPConfig()),
        "window": nano.replace(attention=window),
        "no-sink": nano.replace(attention=dataclasses.replace(window, sink=False)),
    }
    special: dict[str, dict[str, Any]] = {
        "muon": {"optimizer": "muon", "learning_rate": MUON_RATE},
        "mtp": {"mtp_weight": 0.3},
    }

    def run(name: str, steps: int) -> Run:
        part, _, seed = name.rpartition("-")
        changes: dict[str, Any] = {"steps": steps, "seed": int(seed), "eval_every": 500}
        changes |= special.get(part, {})
        return Run(name, "nano", changes, model=models[part], scores=(drafted,) if part == "mtp" else ())

    short = [run(f"{part}-{seed}", STEPS) for part in models for seed in (0, 1, 2)]
    return short + [dataclasses.replace(run(name, LONG_STEPS), name=f"long-{name}") for name in LONG]
