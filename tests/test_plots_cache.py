"""Figures of the cache: what is drawn, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from drawing import draw

from minimoe.errors import UserError
from minimoe.plots import cache


def test_grids_show_tokens_and_entries():
    full, compressed = np.tri(6, dtype=bool), np.hstack([np.eye(6, dtype=bool), np.zeros((6, 2), bool)])
    figure = draw(cache.what_queries_see({"full": full, "compressed": compressed}))
    titles = [axes.get_title(loc="left") + axes.get_title() for axes in figure.axes]
    assert "6 seen by the last query" in titles[0]
    assert "1 seen by the last query" in titles[1]
    assert ["entries" in [text.get_text() for text in axes.texts] for axes in figure.axes[:2]] == [False, True]
    with pytest.raises(UserError, match="wide: mask has shape"):
        cache.what_queries_see({"wide": np.zeros((3, 2), bool)})
    with pytest.raises(UserError, match="masks is empty"):
        cache.what_queries_see({})


def test_bars_carry_their_numbers():
    axes = draw(cache.bytes_per_token({"a": 70_272, "b": 5031.44})).axes[0]
    assert {"70,272", "5,031"} <= {text.get_text() for text in axes.texts}
    with pytest.raises(UserError, match="all above 0"):
        cache.bytes_per_token({"a": 0})


def test_lines_over_contexts_and_their_crossing():
    axes = draw(cache.bytes_over_context([1, 2, 4], {"a": [1, 2, 4], "b": [3e6, 3e6, 4e6]}, (2, "here"))).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines[:2]] == [[1, 2, 4], [3e6, 3e6, 4e6]]
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
    assert "here" in [text.get_text() for text in axes.texts]
    assert cache._size(3e6, 0) == "3 MB"
    with pytest.raises(UserError, match="b: 1 values for 2 contexts"):
        cache.bytes_over_context([1, 2], {"a": [1, 2], "b": [1]})
