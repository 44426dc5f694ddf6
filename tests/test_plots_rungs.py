"""The figure of the ladder: multiples of the first rung, and a word where there is no number."""

from __future__ import annotations

import math

import pytest
from drawing import draw

from minimoe.errors import UserError
from minimoe.plots import rungs


def test_bars_are_multiples_of_the_first_number():
    values = {"bytes": [8, 4, 16, 1], "facts": [None, 2.0, 0, 1.0]}
    figure = draw(rungs(values, ["a", "b", "c", "d"], {"bytes": "lower"}))
    first, second = (axes for axes in figure.axes if axes.get_visible())
    assert [bar.get_width() for bar in first.patches] == [math.log2(v / 8) for v in values["bytes"]]
    assert [bar.get_width() for bar in second.patches] == [0.0, -1.0]
    assert [text.get_text() for text in second.texts] == ["none", "1x", "0", "0.5x"]
    assert first.get_title(loc="left") == "bytes\nlower is better"
    assert [label.get_text() for label in first.get_yticklabels()] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("values", "names"), [({}, ["a"]), ({"x": []}, []), ({"x": [1, 2]}, ["a"])])
def test_what_has_no_rung_or_too_many_is_refused(values, names):
    with pytest.raises(UserError, match=r"give at least one|one value for each"):
        rungs(values, names, {})
