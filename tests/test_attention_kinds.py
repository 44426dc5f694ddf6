"""The experiment on kinds of attention: what its runs are, and how needles are scored at a distance."""

from __future__ import annotations

import numpy as np
from flax import nnx

from minimoe.data import PairNeedles
from minimoe.experiments import EXPERIMENTS
from minimoe.experiments.attention_kinds import NEEDLES, found_at, kinds, model_of, needles_of
from minimoe.experiments.show import needle_rows
from minimoe.model import MoETransformer


def test_every_kind_learns_the_three_things_with_three_seeds():
    runs = EXPERIMENTS["attention-kinds"]({})
    assert {run.name for run in runs} == {
        f"{task}-{kind}-{seed}" for task in ("text", "facts", "needle") for kind in kinds() for seed in range(3)
    }
    recipes = {(run.name.partition("-")[0], tuple(sorted((dict(run.changes) | {"seed": 0}).items()))) for run in runs}
    assert len(recipes) == 3  # within a task, kinds and seeds get equal training
    assert needles_of(NEEDLES).grow_at == tuple(NEEDLES["grow_at"])


def test_a_model_that_knows_nothing_guesses_beyond_the_length_of_its_training():
    model = MoETransformer(model_of(kinds()["sliding"], 257, 31), rngs=nnx.Rngs(0))
    share = found_at(model, PairNeedles(), 40)
    assert 0 <= share <= 0.3
    heads, rows = needle_rows({"one-0": {"found": {"40": np.float64(share)}}})
    assert heads == ("found, tokens back", "40")
    assert rows == [("one-0", f"{share:.0%}")]
