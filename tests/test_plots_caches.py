"""Figures of caches hold the numbers they were given, and tell rows apart by more than colour."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from drawing import draw

from minimoe.attention.window import in_window, visible_entries
from minimoe.cost import gqa_bytes_per_token, published_model
from minimoe.errors import UserError
from minimoe.plots import caches


def test_bytes_against_context_holds_each_model_and_the_crossing():
    contexts, models = [128, 4096, 2**20], ("deepseek-v4-pro", "deepseek-v3.2")
    totals = {name: [sum(published_model(name).cache_bytes(c).values()) for c in contexts] for name in models}
    axes = draw(caches.bytes_against_context(contexts, totals, (512, 2e7, "below this: larger"))).axes[0]
    for line, values in zip(axes.lines, totals.values(), strict=False):
        assert list(line.get_ydata()) == values
    assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines[:2]}) == 2
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.texts] == ["below this: larger"]


@pytest.mark.parametrize("totals", [{}, {"a": [1.0]}, {"a": [1.0, 0.0]}])
def test_bytes_that_cannot_be_drawn_are_refused(totals):
    with pytest.raises(UserError, match=r"give|leave out"):
        caches.bytes_against_context([1, 2], totals)


def test_bytes_per_token_are_those_of_the_models():
    sizes = {"GQA-8": gqa_bytes_per_token(61)}
    sizes |= {name: published_model(name).kv_bytes_per_token() for name in ("deepseek-v3.2", "deepseek-v4-pro")}
    axes = draw(caches.bytes_per_token(sizes)).axes[0]
    assert [bar.get_width() for bar in axes.patches] == list(sizes.values())
    assert [text.get_text() for text in axes.texts] == [
        "249,856",
        "48,068   1/5.2 of the first",
        "5,031.44   1/49.7 of the first",
    ]
    for wrong in ({}, {"a": 0}):
        with pytest.raises(UserError, match="at least one"):
            caches.bytes_per_token(wrong)


def test_recall_shows_every_seed_and_their_mean():
    recall = {"full": [{16: 1.0, 64: 0.8}, {16: 0.9, 64: 0.6}], "window": [{16: 1.0, 64: 0.0}]}
    axes = draw(caches.recall_by_distance(recall, trained_to=64)).axes[0]
    thick = [line for line in axes.lines if line.get_label() in recall]
    np.testing.assert_allclose([line.get_ydata() for line in thick], [[95, 70], [100, 0]])
    assert len({(line.get_linestyle(), line.get_marker()) for line in thick}) == 2
    assert len(axes.lines) == 3 + 2 + 1
    for wrong in ({}, {"a": []}, {"a": [{16: 1.0}, {32: 1.0}]}):
        with pytest.raises(UserError, match="at least one"):
            caches.recall_by_distance(wrong)


def test_what_queries_see_is_the_mask():
    at = jnp.arange(8)
    near = np.asarray(in_window(at[:, None], at[None], 3))
    entries = np.asarray(visible_entries(at, 2, 4))
    full, none = np.tril(np.ones((8, 8), bool)), np.zeros((8, 0), bool)
    panels = draw(caches.what_queries_see({"full": (full, none), "HCA": (near, entries)})).axes
    assert len(panels[0].lines[0].get_xdata()) == 36
    tokens, compressed = panels[1].lines
    assert set(zip(tokens.get_xdata(), tokens.get_ydata(), strict=True)) == {(k, q) for q, k in np.argwhere(near)}
    assert len(compressed.get_xdata()) == entries.sum() == 6
    assert tokens.get_marker() != compressed.get_marker()
    with pytest.raises(UserError, match="a row a query"):
        caches.what_queries_see({"a": (full, none[:3])})
