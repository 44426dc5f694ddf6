"""What does multi-token prediction buy at the size of ``nano``: better text, and drafts that are right?

``nano`` is trained as it is, and with a head that also learns the token after the next: with a sparse block like the
model's own, and with a small dense one, which drafts for less. The weight of its loss is 0.3, as in DeepSeek-V3.
Every run takes 1,000 steps, and the runs of a seed see the same batches; three seeds.

The text is scored by the next token alone: the head serves training and drafts. A difference counts if it is larger than
the range between seeds. Drafts are counted in greedy text and in samples of temperature 1, after 48 beginnings of
validation documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.run import Run
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.model import MoETransformer

STEPS = 1000
MTP_WEIGHT = 0.3
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 48, 16, 64
SMALL_WIDTH = 128  # of the dense block: one expert of nano


def drafted(work: Workplace, model: MoETransformer, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``drafts``: by temperature, the share that was accepted and the tokens for each forward pass."""
    import jax.numpy as jnp

    from minimoe.data import beginnings
    from minimoe.inference import generate_speculative

    prompts = jnp.asarray(beginnings(work.validation, work.tokenizer, PROMPTS, PROMPT_TOKENS))
    drafts = {}
    for temperature in (0.0, 1.0):
        found = generate_speculative(model, prompts, NEW_TOKENS, temperature=temperature)
        rates = {"acceptance_rate": found.acceptance_rate, "tokens_per_forward": found.tokens_per_forward}
        drafts[f"temperature {temperature:g}"] = rates
    return {"drafts": drafts}


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``nano``, and ``nano`` with each head; three seeds, equal tokens."""
    from minimoe.config import LayerConfig, ModelConfig, MTPConfig

    nano = ModelConfig.preset("nano")
    sparse, dense = (nano.replace(mtp=MTPConfig(layer)) for layer in (None, LayerConfig(d_ff=SMALL_WIDTH)))
    found = []
    for seed in (0, 1, 2):
        changes = {"steps": STEPS, "seed": seed, "eval_every": 500}
        found.append(Run(f"plain-{seed}", "nano", changes))
        for name, model in (("mtp", sparse), ("dense", dense)):
            run = Run(f"{name}-{seed}", "nano", changes | {"mtp_weight": MTP_WEIGHT}, model=model, scores=(drafted,))
            found.append(run)
    return found
