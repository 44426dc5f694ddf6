"""What does training with products of 8-bit numbers cost in quality?

``nano`` is trained three times with each of three seeds: with float32 products, with emulated 8-bit ones, and with float32
products from weights that were nudged by a millionth. The runs of a seed see the same batches. The nudged runs are the
control: they say how far two runs part that differ in nothing that matters. Lesson 04 draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.run import Learning, Run, read_corpus
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.training import RunConfig

NUDGE = 1e-6


def runs(done: Mapping[str, Any]) -> list[Run]:
    """``nano`` with float32 and with emulated 8-bit products, and a nudged control; the same three seeds."""
    found = []
    for seed in (0, 1, 2):
        changes = {"steps": 300, "seed": seed}
        found.append(Run(f"float32-{seed}", "nano", changes))
        found.append(Run(f"fp8-{seed}", "nano", changes, learn=multiply_in_8_bits, settings={"fp8": True}))
        found.append(Run(f"nudged-{seed}", "nano", changes, learn=begin_nearby, settings={"nudge": NUDGE}))
    return found


def begin_nearby(work: Workplace, run: RunConfig, *, nudge: float) -> Learning:
    """The corpus, by a model whose fresh weights are each changed by a random share of at most ``nudge``."""
    import jax
    from flax import nnx

    from minimoe.training.loop import init_model

    model = init_model(run.model, run.recipe.seed)
    for index, weight in enumerate(
        jax.tree.leaves(nnx.state(model, nnx.Param), is_leaf=lambda v: isinstance(v, nnx.Param))
    ):
        key = jax.random.fold_in(jax.random.key(run.recipe.seed), index)
        weight[...] = weight[...] * (1 + nudge * jax.random.uniform(key, weight.shape, minval=-1.0))
    return read_corpus(work, run)._replace(model=model)


def multiply_in_8_bits(work: Workplace, run: RunConfig, *, fp8: bool) -> Learning:
    """The corpus, by a model whose products are emulated 8-bit ones. It is scored with them too."""
    from minimoe.quant.methods import Fp8Products

    return read_corpus(work, run)._replace(method=Fp8Products())
