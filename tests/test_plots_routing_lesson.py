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
    assert left.lines[0].get_linestyle() != left.lines[1].get_linestyle()
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


def test_clocks_share_colours_and_leave_gaps():
    rows = {"loop": [1.0, 2.0], "ragged": [3.0, float("nan")]}
    panels = {"tokens": ([1, 16], rows), "experts": ([8], {"ragged": [5.0]})}
    left, right = draw(dispatch.dispatch_clocks(panels)).axes
    assert list(left.lines[0].get_ydata()) == [1.0, 2.0]
    assert left.lines[1].get_color() == right.lines[0].get_color() == style.color_of(1)
    assert left.lines[1].get_marker() == right.lines[0].get_marker() != left.lines[0].get_marker()
    assert ticks_of(left.get_xticklabels()) == ["1", "16"]
    with pytest.raises(UserError, match="loop: 1 times for 2 sizes"):
        dispatch.dispatch_clocks({"tokens": ([1, 2], {"loop": [1.0]})})
    with pytest.raises(UserError, match="hold no times"):
        dispatch.dispatch_clocks({})


def test_changed_outputs_count_earlier_tokens_alone():
    changes = {"leaks": np.array([0.0, 1e-9, 2.0]), "causal": np.array([0.0, 0.0, 1.0])}
    axes = draw(dispatch.changed_outputs(changes)).axes[0]
    assert texts_of(axes) == ["1 of 2 earlier tokens", "0 of 2 earlier tokens"]
    shades = [[to_hex(bar.get_facecolor()).upper() == style.ALARM for bar in group] for group in axes.containers]
    assert shades == [[False, True, False], [False, False, False]]
    for bad in ({}, {"a": np.ones(1)}, {"a": np.ones(2), "b": np.ones(3)}):
        with pytest.raises(UserError, match="give rows of one length"):
            dispatch.changed_outputs(bad)


def test_bits_of_a_choice_stand_beside_those_of_the_token():
    axes = draw(dispatch.expert_and_token({"layer 0": (0.5, 0.1), "hash": (0.01, -0.02)}, 1.08)).axes[0]
    alone, beyond = ([bar.get_width() for bar in group] for group in axes.containers)
    assert (alone, beyond) == ([0.5, 0.01], [0.1, -0.02])
    assert texts_of(axes) == ["0.50", "0.01", "0.10", "-0.02"]
    assert axes.lines[0].get_xdata()[0] == 1.08
    with pytest.raises(UserError, match="give at least one router"):
        dispatch.expert_and_token({}, 1.0)


def test_damage_has_a_marker_a_domain():
    use, damage = np.array([[2.0, 0.1], [0.2, 1.5]]), np.array([[0.3, 0.0], [0.0, 0.2]])
    axes = draw(dispatch.damage_by_use(use, damage, ["verse", "code"])).axes[0]
    first, second = axes.lines[1:]
    np.testing.assert_array_equal(first.get_ydata(), damage[0])
    np.testing.assert_array_equal(second.get_xdata(), use[1])
    assert first.get_marker() != second.get_marker()
    assert ticks_of(axes.get_legend().get_texts()) == ["verse", "code"]
    with pytest.raises(UserError, match="one name a row"):
        dispatch.damage_by_use(use, damage, ["verse"])
