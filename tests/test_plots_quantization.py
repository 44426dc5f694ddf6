"""The figures of quantization hold the data they were given, in edge cases too, without a warning."""

from __future__ import annotations

import numpy as np
import pytest
from drawing import draw

from minimoe.errors import UserError
from minimoe.plots import quantization


def texts_of(axes) -> list[str]:
    return [item.get_text() for item in axes.texts]


def made_up_record(recipes: tuple[str, ...] = ("int8", "mxfp4")) -> dict:
    """The shape of the record, with numbers that mean nothing."""
    rows = {
        name: {
            "bytes": 1_000_000 * (2 - index), "file_bytes": 1_010_000 * (2 - index),
            "compression_vs_bf16": 2.0 + index, "bits_per_value": 8.1 - index,
            "quick": {"bits_per_byte": 1.9 + index, "per_domain": {"a": 1.0, "b": 2.8}},
            "full": {
                "bits_per_byte": 2.0 + index, "per_domain": {"a": 1.0, "b": 3.0},
                "relative_change": 0.01 * index, "per_domain_relative_change": {"a": -0.01, "b": 0.03},
            },
            "routing_changed": 0.05 * index,
        }
        for index, name in enumerate(recipes)
    }  # fmt: skip
    return {
        "model": "none",
        "float32": {"bytes": 8_000_000, "full": {"bits_per_byte": 1.99}, "quick": {"bits_per_byte": 1.89}},
        "recipes": rows,
    }


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


def test_error_by_block_circles_the_chosen_point():
    rows = {"int8": [40.0, 38.0], "fp4": [20.0, 18.0]}
    axes = draw(quantization.error_by_block([16, 32], rows, ("fp4", 32))).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[40, 38], [20, 18], [18]]
    for wrong in (("nf4", 32), ("fp4", 64)):
        with pytest.raises(UserError, match="must hold one value for each"):
            quantization.error_by_block([16, 32], rows, wrong)


def test_one_block_marks_every_answer():
    axes = draw(quantization.one_block(np.array([1.0, -2.0]), {"up": np.array([1.0, -2.0])})).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [1, -2]
    with pytest.raises(UserError, match="must each hold 2"):
        quantization.one_block(np.array([1.0, -2.0]), {})


def test_quality_against_size_joins_what_is_not_beaten():
    points = {"float32": (8.0, 2.0), "int8": (2.0, 2.0), "bad": (4.0, 2.5), "tiny": (1.0, 2.2)}
    assert quantization.pareto(points) == ["tiny", "int8"]
    axes = draw(quantization.quality_against_size(points, reference="float32")).axes[0]
    assert list(axes.lines[0].get_xdata()) == [1.0, 2.0]
    assert "int8  2.0000" in texts_of(axes)
    draw(quantization.quality_against_size({"one": (1.0, 2.0)}))
    for wrong, reference in (({}, None), ({"a": (1.0, 1.0)}, "b")):
        with pytest.raises(UserError, match="must hold at least one"):
            quantization.quality_against_size(wrong, reference=reference)


def test_recipe_points_read_the_record():
    points = quantization.recipe_points(made_up_record(), "full")
    assert points == {"float32": (8.0, 1.99), "int8": (2.02, 2.0), "mxfp4": (1.01, 3.0)}
    assert quantization.recipe_points(made_up_record(), "quick")["float32"] == (8.0, 1.89)
    with pytest.raises(UserError, match="has no protocol 'other'"):
        quantization.recipe_points(made_up_record(), "other")


def test_recorded_recipes_write_every_number():
    size, quality, routing = draw(quantization.recorded_recipes(made_up_record(), "full")).axes
    assert texts_of(size) == ["2.00x", "3.00x"]
    assert texts_of(quality) == ["+0.00%", "+1.00%"]
    assert texts_of(routing) == ["0.0%", "5.0%"]
    draw(quantization.recorded_recipes(made_up_record(("int8",)), "full"))
    with pytest.raises(UserError, match="no recipe"):
        quantization.recorded_recipes(made_up_record(()), "full")


def test_sensitivity_map_leaves_missing_layers_empty():
    axes = draw(quantization.sensitivity_map({"experts": np.array([0.1, -0.2]), "embed": np.array([0.05])})).axes[0]
    assert texts_of(axes) == ["+0.1000", "-0.2000", "+0.0500"]
    draw(quantization.sensitivity_map({"zero": np.array([0.0])}))
    with pytest.raises(UserError, match="is empty"):
        quantization.sensitivity_map({})


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
    assert texts_of(below) == ["true", "straight through"]
