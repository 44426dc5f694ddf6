"""The figures of quantization hold the data they were given, in edge cases too, without a warning."""

from __future__ import annotations

import numpy as np
import pytest
from drawing import draw

from minimoe.errors import UserError
from minimoe.plots import numbers, quantization


def texts_of(axes) -> list[str]:
    return [item.get_text() for item in axes.texts]


def test_rounding_draws_the_grid_inside_the_range_and_an_arrow_a_number():
    values, grid = np.array([0.2, 1.7]), np.arange(-5.0, 6.0)
    figure = draw(quantization.rounding(values, {"whole": (grid, np.round(values))}))
    axes = figure.axes[0]
    assert len(axes.collections[0].get_segments()) == 3  # 0, 1, 2
    np.testing.assert_array_equal(axes.lines[1].get_xdata(), [0, 2])
    assert len(axes.texts) == 2
    with pytest.raises(UserError, match="must each give 2"):
        quantization.rounding(values, {"short": (grid, values[:1])})


def test_error_against_bits_gives_a_way_one_look_in_all_panels():
    figure = draw(quantization.error_against_bits({"a": {"x": (4.0, 18.0), "y": (8.0, 40.0)}, "b": {"y": (8.0, -3.0)}}))
    first, second = figure.axes
    np.testing.assert_allclose(first.lines[0].get_ydata()[1] / first.lines[0].get_xdata()[1], 6.0206, atol=1e-4)
    assert first.lines[2].get_color() == second.lines[1].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y"]
    with pytest.raises(UserError, match="hold no point"):
        quantization.error_against_bits({"a": {}})


def test_compared_writes_the_numbers_beside_the_bars():
    rows = {"int8": {"router": 0.01, "rest": 0.02}, "fp4": {"router": 0.3}}
    axes = draw(quantization.compared(rows, "share", "who changed", "{:.0%}".format)).axes[0]
    assert sorted(texts_of(axes)) == ["1%", "2%", "30%"]
    assert axes.get_legend() is not None
    assert draw(quantization.compared({"a": {"only": 1.0}}, "ms", "t")).axes[0].get_legend() is None
    with pytest.raises(UserError, match="hold no value"):
        quantization.compared({"a": {}}, "ms", "t")


def test_gain_by_rows_and_staircase():
    points = {"own": (np.array([1, 64]), np.array([1.5, 0.8])), "none": (np.array([]), np.array([]))}
    axes = draw(quantization.gain_by_rows(points)).axes[0]
    np.testing.assert_array_equal(axes.lines[1].get_xdata(), [1, 64])
    with pytest.raises(UserError, match="are empty"):
        quantization.gain_by_rows({"none": points["none"]})
    x = np.linspace(-1, 1, 5)
    above, below = draw(quantization.staircase(x, np.round(x), {"true": 0 * x, "straight through": 0 * x + 1})).axes
    np.testing.assert_array_equal(above.lines[1].get_ydata(), np.round(x))
    assert texts_of(below) == ["── true", "– – straight through"]
    assert [line.get_linestyle() for line in below.lines] == ["-", "--"]  # not told apart by colour alone


def test_granularity_errors_leave_out_what_is_not_counted():
    """One value that comes back exactly would raise the ratio of all the others."""
    matrix = np.array([[1.0, -1.0], [100.0, 1.0]])
    back = np.array([[1.1, -0.9], [100.0, 1.1]])
    counted = np.array([[True, True], [False, True]])
    heads = [
        [axes.get_title(loc) for axes in figure.axes for loc in ("left", "center")]
        for figure in (
            draw(numbers.granularity_errors(matrix, {"way": back})),
            draw(numbers.granularity_errors(matrix, {"way": back}, counted=counted)),
        )
    ]
    assert "way: 55.2 dB" in heads[0]
    assert "way: 20.0 dB" in heads[1]
    with pytest.raises(UserError, match="counted has the shape"):
        numbers.granularity_errors(matrix, {"way": back}, counted=counted[:1])
