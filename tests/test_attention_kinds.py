"""The experiment on kinds of attention: what its runs are, and how needles are scored at a distance."""

from __future__ import annotations

import numpy as np
from flax import nnx

from minimoe.data import PairNeedles
from minimoe.experiments import EXPERIMENTS
from minimoe.experiments.attention_kinds import NEEDLES, found_at, kinds, model_of, needles_of
from minimoe.experiments.show import needle_rows
from minimoe.experiments.workplace import Workplace
from minimoe.hub import save
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
    assert heads == ("needles found", "40")
    assert rows == [("one-0", f"{100 * share:.0f}")]
    _, rows = needle_rows({"near-0": {"found": {"8": 1.0}}, "far-0": {"found": {"8": 0.5, "4096": 0.25}}})
    assert rows == [("near-0", "100", ""), ("far-0", "50", "25")]


def test_recall_goes_on_from_what_was_trained_near(tmp_path):
    """Equal training for every kind; the second part has the first one's weights, a longer context, and CSA its choice."""
    runs = {run.name: run for run in EXPERIMENTS["recall"]({})}
    assert set(runs) == {f"{part}-{kind}-{seed}" for part in ("near", "far") for kind in kinds() for seed in range(3)}
    for part in ("near", "far"):
        changes = [dict(run.changes) | {"seed": 0} for name, run in runs.items() if name.startswith(part)]
        assert all(each == changes[0] for each in changes)
    assert runs["near-CSA-1"].model.attention.index_top_k >= 128 // 4 > runs["far-CSA-1"].model.attention.index_top_k
    work, far = Workplace(tmp_path), runs["far-CSA-1"]
    model = MoETransformer(runs["near-CSA-1"].model, rngs=nnx.Rngs(3))
    save(model, work.together("recall/near-CSA-1"))
    learning = far.learn(work, far.config(work), **far.settings)
    assert learning.model.config == far.model
    np.testing.assert_array_equal(learning.model.norm.scale[...], model.norm.scale[...])
    rows = learning.data.batch(0, 10**6, 1, far.model.context_length)
    asked = np.flatnonzero(rows.where[0])
    assert rows.tokens.shape == (1, 4095)
    assert len(asked) == 20  # one block of 4,096 tokens: all names are stated, then all are asked for
    assert asked.min() > 1024
