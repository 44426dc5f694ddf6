"""The figures of balance hold the data they were given, in edge cases too, without a warning."""

from __future__ import annotations

import numpy as np
import pytest
from drawing import draw
from matplotlib.colors import to_hex

from minimoe.errors import UserError
from minimoe.plots import balancing, style


def texts_of(axes) -> list[str]:
    return [item.get_text() for item in axes.texts]


# ---- the film


def test_film_holds_every_step_and_the_chosen_frames():
    loads = np.array([[2, 2, 2, 2], [8, 0, 0, 0], [4, 4, 0, 0]])
    figure = draw(balancing.load_film(loads, [1, 2]))
    first, second, image = figure.axes[:3]
    assert [bar.get_height() for bar in first.patches] == [1, 1, 1, 1]
    assert [bar.get_height() for bar in second.patches] == [4, 0, 0, 0]
    assert to_hex(second.patches[0].get_facecolor()).upper() == style.ALARM
    np.testing.assert_array_equal(second.lines[0].get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(image.images[0].get_array()[:, 2], [2, 2, 0, 0])
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["step 1", "step 2"]


def test_film_without_frames_or_load():
    draw(balancing.load_film(np.zeros((3, 2))))
    draw(balancing.load_film(np.ones((1, 64)), [1]))


@pytest.mark.parametrize(("steps", "frames"), [(0, []), (3, [0]), (3, [4])])
def test_film_refuses_steps_that_are_not_there(steps: int, frames: list[int]):
    with pytest.raises(UserError, match=f"are not among the {steps} steps"):
        balancing.load_film(np.ones((steps, 4)), frames)


# ---- lines


def test_over_steps_gives_a_run_one_colour_in_all_panels():
    panels = {"MaxVio": {"a": [3.0, 2.0, 1.0], "b": [1.0, 1.0, 1.0]}, "dead": {"b": [0.0, 0.0, 2.0]}}
    top, bottom = draw(balancing.over_steps(panels, events={"shift": 2}, half_width=0)).axes
    assert list(top.lines[1].get_ydata()) == [3, 2, 1]
    assert top.lines[3].get_color() == bottom.lines[1].get_color() == style.color_of(1)
    assert texts_of(top) == ["shift"]
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["a", "b"]
    assert [top.lines[1].get_linestyle(), top.lines[3].get_linestyle()] == ["-", "--"]
    assert bottom.get_xlabel() == "step"
    thinned = draw(balancing.over_steps({"bias": {"a": [-1.0, 1.0]}}, every=10)).axes[0]
    assert list(thinned.lines[0].get_xdata()) == [10, 20]
    draw(balancing.over_steps({"bias": {"a": [-1.0]}}))
    draw(balancing.over_steps({"zero": {"a": [0.0, 0.0]}}))


def test_over_steps_refuses_nothing():
    with pytest.raises(UserError, match="hold no run"):
        balancing.over_steps({"MaxVio": {}})


# ---- losses


def test_loss_ranges_mark_every_state_between_lowest_and_highest():
    values = {"A": {"balanced": 1.0, "collapsed": 4.0}, "B": {"balanced": 2.0, "collapsed": 1.5}}
    axes = draw(balancing.loss_ranges(values)).axes[0]
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(1.0, 3.0), (1.5, 0.5)]
    assert [line.get_xdata()[0] for line in axes.lines[1:]] == [1.0, 4.0, 2.0, 1.5]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["balanced", "collapsed"]


@pytest.mark.parametrize("values", [{}, {"A": {}}, {"A": {"x": 1.0}, "B": {"y": 1.0}}])
def test_loss_ranges_refuse_gaps(values):
    with pytest.raises(UserError, match="every loss must have the states"):
        balancing.loss_ranges(values)


def test_before_and_after_are_a_ring_and_a_dot():
    panels = {"mild": {"A": (1.4, 0.2), "B": (1.4, 1.4)}, "collapsed": {"B": (3.0, 3.0)}}
    mild, collapsed = draw(balancing.before_and_after(panels)).axes
    assert [list(line.get_xdata()) for line in mild.lines[:3]] == [[1.4, 0.2], [1.4], [0.2]]
    assert mild.lines[1].get_markerfacecolor() == "white"
    assert collapsed.lines[2].get_ydata()[0] == 1
    assert mild.get_xlim() == collapsed.get_xlim()
    draw(balancing.before_and_after({"flat": {"A": (0.0, 0.0)}}))
    with pytest.raises(UserError, match="hold no row"):
        balancing.before_and_after({"mild": {}})


# ---- the bias


def test_choices_show_what_the_bias_changed():
    affinity = np.array([[0.5, 0.4, 0.1], [0.5, 0.1, 0.4], [0.9, 0.0, 0.1]])
    board, bars = draw(balancing.choices_under_bias(affinity, np.array([-0.2, 0.0, 0.0]), 1)).axes
    shades = np.array([to_hex(patch.get_facecolor()).upper() for patch in board.patches]).reshape(3, 3)
    assert shades[0, 1] == shades[1, 2] == style.ALARM
    assert shades[2, 0] == style.PALETTE[0]
    assert to_hex(board.patches[0].get_edgecolor()).upper() == style.ALARM
    assert [bar.get_width() for bar in bars.patches] == [1, 1, 1]
    assert bars.get_title(loc="left") == "MaxVio 0.00"


def test_choices_give_ties_to_the_lower_expert_and_refuse_too_many():
    _, bars = draw(balancing.choices_under_bias(np.ones((5, 4)), np.zeros(4), 2)).axes
    assert [bar.get_width() for bar in bars.patches] == [5, 5, 0, 0]
    with pytest.raises(UserError, match=r"top_k=5 must be in 1\.\.4"):
        balancing.choices_under_bias(np.ones((5, 4)), np.zeros(4), 5)


# ---- differences by seed


def test_paired_gaps_mark_every_pair_and_their_mean():
    panels = {"points": {"bias": [14.0, 20.0], "switch": [9.6, 19.4]}, "bits": {"bias": [0.01]}}
    facts, text = draw(balancing.paired_gaps(panels)).axes
    assert list(facts.lines[0].get_xdata()) == [0, 0]
    assert [facts.lines[index].get_xdata()[0] for index in (2, 3, 4)] == [14, 20, 17]
    assert facts.lines[2].get_marker() != facts.lines[3].get_marker()
    assert texts_of(facts) == ["+17.0 ± 4.2", "+14.5 ± 6.9"]
    assert texts_of(text) == ["+0.010"]
    assert [label.get_text() for label in facts.get_yticklabels()] == ["bias", "switch"]


@pytest.mark.parametrize("panels", [{}, {"points": {}}, {"points": {"bias": []}}])
def test_paired_gaps_refuse_what_has_no_pair(panels):
    with pytest.raises(UserError, match="give at least one pair each"):
        balancing.paired_gaps(panels)
