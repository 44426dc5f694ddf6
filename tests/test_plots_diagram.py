"""The drawing of a MoE layer names every expert and the weights of the chosen ones."""

from __future__ import annotations

import pytest
from drawing import draw

from minimoe import plots
from minimoe.errors import UserError


def test_the_layer_shows_experts_and_weights():
    axes = draw(plots.moe_layer([0.9, 0.7, 0.1], {0: 0.56, 1: 0.44})).axes[0]
    said = [text.get_text() for text in axes.texts]
    assert {
        *(f"expert {e}\naffinity {a}" for e, a in enumerate(("0.90", "0.70", "0.10"))),
        "shared expert",
        "× 0.56",
        "× 0.44",
    } <= set(said)
    assert sum(text.startswith("×") for text in said) == 2


def test_an_expert_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match=r"experts \[3\]"):
        plots.moe_layer([0.5, 0.5], {3: 1.0})
