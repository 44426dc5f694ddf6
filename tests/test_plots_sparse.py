"""The figures of sparse models and of seeds hold the data they were given, in edge cases too, without a warning."""

from __future__ import annotations

import numpy as np
import pytest
from drawing import draw
from matplotlib.colors import to_hex

from minimoe.errors import UserError
from minimoe.plots import seed_spread, sparse, style


def texts_of(axes) -> list[str]:
    return [item.get_text() for item in axes.texts]


def make_run(steps: int, level: float) -> list[dict[str, object]]:
    run: list[dict[str, object]] = [
        {"kind": "train", "step": s, "tokens": 100 * s, "seconds": 0.5 * s, "loss": level} for s in range(1, steps + 1)
    ]
    return [*run, {"kind": "eval", "step": steps, "tokens": 100 * steps, "seconds": 0.5 * steps, "bits_per_byte": 2.0}]


# ---- sparse


def test_assignments_fill_what_is_used_and_sum_up_the_batch():
    axes = draw(sparse.assignments([(0, 1), (1, 3)], 4)).axes[0]
    blue, orange = to_hex(style.PALETTE[0]), to_hex(style.PALETTE[1])
    filled = [[to_hex(bar.get_facecolor()) in (blue, orange) for bar in group] for group in axes.containers]
    assert filled == [[True, True, False, False], [False, True, False, True], [True, True, False, True]]
    assert texts_of(axes) == ["2 of 4", "2 of 4", "3 of 4"]
    draw(sparse.assignments([[0]], 1))
    draw(sparse.assignments([[63]] * 3, 64))


@pytest.mark.parametrize(("chosen", "message"), [([], "is empty"), ([[4]], r"token 0 uses experts \[4\]")])
def test_impossible_assignments_are_refused(chosen, message: str):
    with pytest.raises(UserError, match=message):
        sparse.assignments(chosen, 4)


MODELS = {"dense": {"attention": 10, "shared": 30}, "sparse $": {"attention": 10, "shared": 10, sparse.IDLE: 80}}


def test_parts_are_stacked_to_the_total():
    axes = draw(sparse.parameter_parts(MODELS)).axes[0]
    widths = [[bar.get_width() for bar in group] for group in axes.containers]
    assert widths == [[10, 10], [30, 10], [0, 80]]
    assert [bar.get_x() for bar in axes.containers[2]] == [40, 20]
    assert texts_of(axes) == ["40", "100"]
    assert to_hex(axes.containers[2][1].get_facecolor()).upper() == style.FAINT
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dense", "sparse $"]


def test_parts_as_shares_fill_every_bar():
    axes = draw(sparse.parameter_parts(MODELS, share=True)).axes[0]
    widths = np.array([[bar.get_width() for bar in group] for group in axes.containers])
    np.testing.assert_allclose(widths.sum(0), 1)
    np.testing.assert_allclose(widths[:, 1], [0.1, 0.1, 0.8])


@pytest.mark.parametrize("models", [{}, {"a": {}}, {"a": {"x": 0}}])
def test_parts_of_nothing_are_refused(models):
    with pytest.raises(UserError, match="at least one part each"):
        sparse.parameter_parts(models)


def test_active_and_total_are_points_between_lines():
    axes = draw(sparse.active_and_total({"nano": (2e6, 1e6), "large": (1.6e12, 4.9e10)})).axes[0]
    diagonals, points = axes.lines[:3], axes.lines[3:]
    assert [line.get_ydata()[1] / line.get_xdata()[1] for line in diagonals] == pytest.approx(list(sparse.SHARES))
    assert [(float(p.get_xdata()[0]), float(p.get_ydata()[0])) for p in points] == [(2e6, 1e6), (1.6e12, 4.9e10)]
    assert {"nano  50.0%", "large  3.1%"} <= set(texts_of(axes))
    draw(sparse.active_and_total({"dense": (5, 5)}))


@pytest.mark.parametrize(("models", "message"), [({}, "is empty"), ({"a": (1, 2)}, "a: total=1, active=2")])
def test_impossible_models_are_refused(models, message: str):
    with pytest.raises(UserError, match=message):
        sparse.active_and_total(models)


def test_experts_read_draws_lines_and_dots():
    axes = draw(sparse.experts_read([1, 8, 64], {"formula": [0.25, 0.9, 1.0]}, {"run": [0.25, 0.8, 1.0]})).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.25, 0.9, 1.0], [0.25, 0.8, 1.0]]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "None"]
    with pytest.raises(UserError, match="run: 1 values for 3 batch sizes"):
        sparse.experts_read([1, 8, 64], {}, {"run": [0.25]})


def test_time_per_token_holds_the_times():
    axes = draw(sparse.time_per_token([1, 16], {"a": [900.0, 80.0], "b": [300.0, 90.0]})).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[900.0, 80.0], [300.0, 90.0]]
    with pytest.raises(UserError, match="a: 1 values for 2 batch sizes"):
        sparse.time_per_token([1, 16], {"a": [900.0]})


def test_costs_have_a_panel_each_and_say_what_was_not_measured():
    rows = {"dense": {"ms per step": 120.5, "MB": 17}, "wide": {"ms per step": 260.0}}
    time, memory = draw(sparse.costs_side_by_side(rows)).axes
    assert [bar.get_width() for bar in time.patches] == [120.5, 260.0]
    assert texts_of(memory) == ["17", "not measured"]
    assert [panel.get_title(loc="left") for panel in (time, memory)] == ["ms per step", "MB"]
    draw(sparse.costs_side_by_side({"zero": {"x": 0}}))
    with pytest.raises(UserError, match="hold no quantity"):
        sparse.costs_side_by_side({})


def test_counts_are_written_short():
    assert [sparse.short_count(n) for n in (0, 999, 2233472, 284.3e9, 1.573e12)] == [
        "0",
        "999",
        "2.23M",
        "284B",
        "1.57T",
    ]


# ---- seeds


def test_seeds_show_each_one_and_the_mean():
    axes = draw(seed_spread.seeds({"sparse": [2.0, 2.2, 2.4], "dense": [2.5]})).axes[0]
    assert list(axes.lines[1].get_xdata()) == [2.0, 2.2, 2.4]
    assert axes.lines[2].get_xdata()[0] == pytest.approx(2.2)
    assert texts_of(axes) == ["2.200 ± 0.200", "2.500, one seed"]


def test_seeds_that_are_percentages_are_printed_with_one_decimal():
    axes = draw(seed_spread.seeds({"dense": [30.0, 50.0], "sparse": [99.5]})).axes[0]
    assert texts_of(axes) == ["40.0 ± 14.1", "99.5, one seed"]
    assert texts_of(draw(seed_spread.seeds({"dense": [0.0, 0.0]})).axes[0]) == ["0.000 ± 0.000"]


@pytest.mark.parametrize("results", [{}, {"a": []}])
def test_seeds_of_nothing_are_refused(results):
    with pytest.raises(UserError, match="are empty"):
        seed_spread.seeds(results)


@pytest.mark.parametrize("x", ["tokens", "seconds"])
def test_curves_show_mean_and_range(x: str):
    groups = {"a": [make_run(50, 3.0), make_run(40, 4.0)], "b": [make_run(1, 2.0)]}
    axes = draw(seed_spread.curves_with_spread(groups, x=x)).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 3.5)
    assert axes.lines[0].get_xdata()[-1] == 40 * (100 if x == "tokens" else 0.5)
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (3.0, 4.0)
    assert texts_of(axes) == ["── a", "– – b"]


def test_curves_skip_the_start_openly():
    axes = draw(seed_spread.curves_with_spread({"a": [make_run(100, 3.0)]}, skip=0.5)).axes[0]
    assert axes.get_xlim()[0] == axes.lines[0].get_xdata()[0] == 5000


def test_curves_name_what_is_wrong():
    with pytest.raises(UserError, match="x='steps' is not known"):
        seed_spread.curves_with_spread({"a": [make_run(2, 1.0)]}, x="steps")
    with pytest.raises(UserError, match=r"groups \['a'\] must each hold runs"):
        seed_spread.curves_with_spread({"a": [[]]})


def test_gaps_are_a_thin_line_a_seed_and_a_thick_mean():
    gaps = {"eight $": [[(100, 0.1), (200, -0.1)], [(100, 0.3), (200, -0.3)]], "one": [[(100, 0.0), (200, 0.2)]]}
    axes = draw(seed_spread.gaps_over_tokens(gaps)).axes[0]
    thick = [line for line in axes.lines if line.get_label() in gaps]
    np.testing.assert_allclose([line.get_ydata() for line in thick], [[0.2, -0.2], [0.0, 0.2]])
    assert len({(line.get_linestyle(), line.get_marker()) for line in thick}) == 2
    assert len(axes.lines) == 1 + 3 + 2


@pytest.mark.parametrize("gaps", [{}, {"none": []}, {"unlike": [[(1, 0.1)], [(1, 0.1), (2, 0.2)]]}])
def test_gaps_without_common_points_are_refused(gaps):
    with pytest.raises(UserError, match="give at least one"):
        seed_spread.gaps_over_tokens(gaps)


def test_rows_of_one_figure_differ_in_more_than_colour():
    rows = {"a": [1.0, 2.0], "b": [2.0, 3.0], "c": [3.0, 4.0]}
    for axes in (
        draw(sparse.time_per_token([1, 2], rows)).axes[0],
        draw(sparse.experts_read([1, 2], rows, {})).axes[0],
    ):
        assert len({line.get_linestyle() for line in axes.lines}) == 3
