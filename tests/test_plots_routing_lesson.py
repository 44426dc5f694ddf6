"""The figures of the lesson on routing hold the data they were given, in edge cases too, without a warning."""

from __future__ import annotations

import numpy as np
import pytest
from drawing import draw
from matplotlib.colors import to_hex

from minimoe.errors import UserError
from minimoe.plots import affinities, dispatch, style


def texts_of(axes) -> list[str]:
    return [item.get_text() for item in axes.texts]


def ticks_of(labels) -> list[str]:
    return [label.get_text() for label in labels]


def test_score_functions_draw_values_and_slopes():
    at = np.linspace(-2.0, 2.0, 5)
    left, right = draw(
        affinities.score_functions(at, {"a $": at**2, "b": at + 2}, {"a $": 2 * at, "b": 0 * at + 1})
    ).axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), at**2)
    np.testing.assert_array_equal(right.lines[1].get_ydata(), 1)
    assert ticks_of(left.get_legend().get_texts()) == ["a $", "b"]
    with pytest.raises(UserError, match="must have the same names"):
        affinities.score_functions(at, {"a": at}, {"b": at})


def test_choices_mark_cells_and_write_loads():
    matrix = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.3]])
    first = np.array([[True, False, False], [True, False, False]])
    uneven = np.array([[True, True, False], [False, False, False]])
    panels = draw(affinities.choices(matrix, {"first": first, "uneven": uneven}, ["the", "$x"])).axes
    marks = [[(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines] for axes in panels]
    assert marks == [[(0, 0), (0, 1)], [(0, 0), (1, 0)]]
    assert [ticks_of(axes.get_xticklabels()) for axes in panels] == [["2", "0", "0"], ["1", "1", "0"]]
    assert [texts_of(axes) for axes in panels] == [[], ["2", "0"]]
    assert ticks_of(panels[0].get_yticklabels()) == ["the", "$x"]
    assert to_hex(panels[0].get_xticklabels()[0].get_color()).upper() == style.ALARM
    draw(affinities.choices(np.zeros((1, 1)), {"a": np.zeros((1, 1), bool)}, [""]))


@pytest.mark.parametrize(("chosen", "tokens"), [({}, ["a"]), ({"x": np.ones((1, 2), bool)}, ["a", "b"])])
def test_impossible_choices_are_refused(chosen, tokens):
    with pytest.raises(UserError, match="for 1 rows"):
        affinities.choices(np.ones((1, 2)), chosen, tokens)


def test_the_board_shows_scores_choices_and_load():
    chosen = np.array([[True, False, True], [True, True, False]])
    board = draw(affinities.routing_board(np.array([0.5, 0.2, 0.4]), np.array([0.0, -0.7, 0.1]), chosen))
    left, middle, right = board.axes
    affinity, score = ([bar.get_height() for bar in group] for group in left.containers)
    np.testing.assert_allclose(affinity, [0.5, 0.2, 0.4])
    np.testing.assert_allclose(score, [0.5, -0.5, 0.5])
    assert left.get_ylim()[0] < -0.5
    np.testing.assert_array_equal(left.lines[1].get_xdata(), [0, 2])
    np.testing.assert_array_equal(middle.images[0].get_array(), chosen)
    assert [bar.get_height() for bar in right.containers[0]] == [2, 1, 1]
    assert ticks_of(middle.get_yticklabels()) == ["your token", "token 1"]


def test_clocks_share_colours_and_leave_gaps():
    rows = {"loop": [1.0, 2.0], "ragged": [3.0, float("nan")]}
    panels = {"tokens": ([1, 16], rows), "experts": ([8], {"ragged": [5.0]})}
    left, right = draw(dispatch.dispatch_clocks(panels)).axes
    assert list(left.lines[0].get_ydata()) == [1.0, 2.0]
    assert left.lines[1].get_color() == right.lines[0].get_color() == style.color_of(1)
    assert ticks_of(left.get_xticklabels()) == ["1", "16"]
    with pytest.raises(UserError, match="loop: 1 times for 2 sizes"):
        dispatch.dispatch_clocks({"tokens": ([1, 2], {"loop": [1.0]})})
    with pytest.raises(UserError, match="hold no times"):
        dispatch.dispatch_clocks({})


def test_combinations_are_written_out_until_they_are_too_long():
    axes = draw(dispatch.combinations({"one": 1, "small": 120, "huge": 10**20})).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1, 120, 1e20]
    assert texts_of(axes) == ["1", "120", r"$1.0\times10^{20}$"]
    for counts in ({}, {"none": 0}):
        with pytest.raises(UserError, match="at least one count"):
            dispatch.combinations(counts)


def test_changed_outputs_count_earlier_tokens_alone():
    changes = {"leaks": np.array([0.0, 1e-9, 2.0]), "causal": np.array([0.0, 0.0, 1.0])}
    axes = draw(dispatch.changed_outputs(changes)).axes[0]
    assert texts_of(axes) == ["1 of 2 earlier tokens", "0 of 2 earlier tokens"]
    shades = [[to_hex(bar.get_facecolor()).upper() == style.ALARM for bar in group] for group in axes.containers]
    assert shades == [[False, True, False], [False, False, False]]
    for bad in ({}, {"a": np.ones(1)}, {"a": np.ones(2), "b": np.ones(3)}):
        with pytest.raises(UserError, match="give rows of one length"):
            dispatch.changed_outputs(bad)


def test_information_draws_a_curve_and_levels():
    levels = {"layer 0": 0.4, "hash": 0.01}
    axes = draw(dispatch.information_by_window([1, 8, 32], [0.5, 1.5, 2.2], levels, ceiling=2.5)).axes[0]
    heights = [line.get_ydata()[0] for line in axes.lines]
    assert heights == [2.5, 0.4, 0.01, 0.5]
    assert texts_of(axes) == [
        "all there is to know  2.50",
        "a reader of the window  2.20",
        "layer 0  0.40",
        "hash  0.01",
    ]
    draw(dispatch.information_by_window([1], [0.0], {}, ceiling=1.0))
    with pytest.raises(UserError, match="2 widths and 1 values"):
        dispatch.information_by_window([1, 2], [0.5], {}, ceiling=1.0)
