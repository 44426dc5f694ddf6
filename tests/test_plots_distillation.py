"""The figures of distillation hold the data they were given, in edge cases too, without a warning."""

from __future__ import annotations

import numpy as np
import pytest
from drawing import draw

from minimoe.errors import UserError
from minimoe.plots import distillation, toward_teacher


def texts_of(axes) -> list[str]:
    return [item.get_text() for item in axes.texts]


# ---- distributions


def test_next_words_have_a_bar_a_model_and_mark_the_true_one():
    rows = {"teacher": np.array([0.6, 0.0001]), "student $a$": np.array([0.3, 0.2], np.float32)}
    axes = draw(distillation.next_words([" the", "\n"], rows, truth=1)).axes[0]
    assert [bar.get_width() for bar in axes.patches[1:]] == pytest.approx([0.6, 0.0001, 0.3, 0.2])
    assert texts_of(axes) == ["in the text", "60.0%", "<0.1%", "30.0%", "20.0%"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["·the", "↵"]
    assert [label.get_fontweight() for label in axes.get_yticklabels()] == ["normal", "bold"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["teacher", "student $a$"]


def test_next_words_on_a_logarithmic_axis_leave_zeros_out():
    rows = {"teacher": np.array([0.5, 1e-6, 0.0]), "student": np.array([0.25, 0.0, 0.0])}
    axes = draw(distillation.next_words(["a", "b", "ש"], rows, log=True)).axes[0]
    assert axes.get_xscale() == "log"
    joined, alone, teacher, student = axes.lines[:4]
    assert list(joined.get_xdata()) == [0.25, 0.5]
    assert list(alone.get_xdata()) == [1e-6, 1e-6]
    np.testing.assert_array_equal(teacher.get_xdata(), [0.5, 1e-6, np.nan])
    np.testing.assert_array_equal(student.get_xdata(), [0.25, np.nan, np.nan])


def test_next_words_refuse_rows_that_do_not_fit():
    for rows in ({}, {"teacher": np.array([1.0])}):
        with pytest.raises(UserError, match="must hold 2 probabilities"):
            distillation.next_words(["a", "b"], rows)
    for truth in (-1, 2):
        with pytest.raises(UserError, match=rf"truth={truth} must be in 0\.\.1"):
            distillation.next_words(["a", "b"], {"teacher": np.array([0.5, 0.5])}, truth=truth)


def test_temperatures_have_a_panel_each_with_its_own_scale():
    cold, hot = draw(distillation.temperatures(["a", "b"], {1: np.array([0.8, 0.1]), 4.0: np.array([0.03, 0.02])})).axes
    assert [bar.get_width() for bar in hot.patches] == [0.03, 0.02]
    assert cold.get_xlim()[1] > 0.8 > hot.get_xlim()[1]
    assert [axes.get_title(loc="left") for axes in (cold, hot)] == ["T = 1", "T = 4"]
    assert [axes.get_xlabel() for axes in (cold, hot)] == ["together 90.0%", "together 5.0%"]
    draw(distillation.temperatures(["a"], {1: np.array([0.0])}))
    with pytest.raises(UserError, match=r"'T=0\.5'.* must hold 2"):
        distillation.temperatures(["a", "b"], {0.5: np.array([1.0])})


# ---- fits


def bump(x: np.ndarray, middle: float, width: float) -> np.ndarray:
    return np.exp(-(((x - middle) / width) ** 2)) / width


def overlap(first, second) -> bool:
    return first.x0 < second.x1 and second.x0 < first.x1 and first.y0 < second.y1 and second.y0 < first.y1


def test_two_modes_label_every_curve_where_it_can_be_read():
    x = np.linspace(-6, 6, 101)
    p = bump(x, -2, 1.0) + bump(x, 2.2, 1.3)
    fits = {"forward": bump(x, 0, 3.0), "reverse": bump(x, -2, 0.8), "between": bump(x, -1.9, 1.0)}
    figure = draw(distillation.two_modes(x, p, fits))
    axes = figure.axes[0]
    np.testing.assert_array_equal([line.get_ydata() for line in axes.lines], [p, *fits.values()])
    assert texts_of(axes) == ["teacher", *fits]
    assert len({line.get_linestyle() for line in axes.lines[1:]}) == 3  # not told apart by colour alone
    teacher, _, _, moved = axes.texts
    assert teacher.xy[0] == pytest.approx(2.2, abs=0.1)  # the mode that no fit takes
    assert moved.arrow_patch is not None
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(overlap(boxes[i], boxes[j]) for i in range(4) for j in range(i))
    with pytest.raises(UserError, match="must hold 101 values"):
        distillation.two_modes(x, p, {"short": p[1:]})


def test_two_modes_of_a_flat_density():
    x = np.linspace(0, 1, 5)
    draw(distillation.two_modes(x, np.ones(5), {"a fit with a name that is too long to be moved anywhere": np.ones(5)}))


# ---- on the way to the teacher


def test_gap_closed_writes_shares_in_both_directions():
    rows = [
        {"name": "a $", "mean": 1.75, "low": 1.7, "high": 1.8, "seconds": 60.4},
        {"name": "b", "mean": 2.05, "low": 2, "high": 2.1},
    ]
    axes = draw(toward_teacher.gap_closed(rows, 2.0, 1.5)).axes[0]
    assert axes.get_xlabel() == "bits per byte (lower is better)"
    written = texts_of(axes)
    assert written[:2] == ["student alone 2.000", "teacher 1.500"]
    assert written[2:] == ["mean", "1.750", "2.050", "gap closed", "50%", "-10%", "time", "60 s", ""]
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[1.7, 1.8], [1.75]]
    higher = draw(
        toward_teacher.gap_closed([{"name": "a", "mean": 0.5, "low": 0.5, "high": 0.5}], 0, 1, "exact match", "t", True)
    ).axes[0]
    assert higher.get_xlabel() == "exact match (higher is better)"
    assert texts_of(higher)[2:] == ["mean", "50.0%", "gap closed", "50%"]


def test_gap_closed_refuses_what_has_no_gap():
    row = {"name": "a", "mean": 1.0, "low": 1.0, "high": 1.0}
    for rows, teacher in (([], 1.0), ([row], 2.0)):
        with pytest.raises(UserError, match="give at least one row and two levels"):
            toward_teacher.gap_closed(rows, 2.0, teacher)
    with pytest.raises(UserError, match=r"row 0 \(a\) lacks \['low', 'high'\]"):
        toward_teacher.gap_closed([{"name": "a", "mean": 1.0}], 2.0, 1.0)


@pytest.mark.parametrize(("seconds", "written"), [(119, "119 s"), (120, "2 min"), (7200, "2.0 h"), (None, "")])
def test_durations_read_well(seconds, written: str):
    assert toward_teacher._duration(seconds) == written


def test_exact_match_draws_means_and_ranges():
    shares = {"alone": {2: [0.2], 1: [0.4, 0.6]}, "distilled": {1: [0.9], 2: [], 3: [0.7]}}
    axes = draw(toward_teacher.exact_match_by_level(shares)).axes[0]
    alone, distilled = axes.lines
    assert list(alone.get_ydata()) == [0.5, 0.2]
    assert list(distilled.get_ydata()) == [0.9, 0.7]
    np.testing.assert_allclose(alone.get_xdata(), [0.97, 1.97])
    assert [segment[:, 1].tolist() for segment in axes.collections[0].get_segments()] == [[0.4, 0.6], [0.2, 0.2]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
    assert texts_of(axes) == ["── alone", "– – distilled"]
    assert alone.get_marker() != distilled.get_marker()
    assert alone.get_linestyle() != distilled.get_linestyle()
    draw(toward_teacher.exact_match_by_level({"nothing solved": {1: [0, 0.0]}}))
    for wrong in ({}, {"alone": {}}, {"alone": {1: []}}):
        with pytest.raises(UserError, match="are empty"):
            toward_teacher.exact_match_by_level(wrong)
