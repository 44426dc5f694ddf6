"""Figures of hardware hold the numbers they were given, and say which part of a step decides."""

from __future__ import annotations

import numpy as np
import pytest
from drawing import draw

from minimoe.cost import chip, decode_step, published_model
from minimoe.errors import UserError
from minimoe.plots import roofline, rows_between, step_parts


def test_the_roof_bends_at_the_ridge_point_and_no_point_is_lost():
    h800 = chip("H800")
    peak, bandwidth = h800.peak("bf16"), h800.memory_bandwidth
    points = {"dense": [(2.0, 1e12), (500.0, 7e14)], "sparse": [(1.0, 5e11)]}
    axes = draw(roofline(peak, bandwidth, points, {"dense": ["T=1", "T=512"]})).axes[0]
    roof, _, *lines = axes.lines
    x, y = np.asarray(roof.get_xdata(), float), np.asarray(roof.get_ydata(), float)
    np.testing.assert_allclose(y, np.minimum(peak, x * bandwidth))
    assert x[1] == pytest.approx(295, abs=1)
    assert [list(zip(*line.get_data(), strict=True)) for line in lines] == list(points.values())
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 2
    assert {"T=1", "T=512"} < {text.get_text() for text in axes.texts}
    for wrong in ({}, {"a": [(0.0, 1.0)]}, {"a": [(1.0, -1.0)]}):
        with pytest.raises(UserError, match="above 0"):
            roofline(peak, bandwidth, wrong)


def test_the_longest_part_of_a_step_is_marked():
    rows = {}
    for name in ("A100", "A800"):
        step = decode_step(published_model("deepseek-v4-flash"), chip(name), 64, 4096)
        rows[name] = {"memory": 1e3 * step.read, "compute": 1e3 * step.calculate, "links": 1e3 * step.send}
    axes = draw(step_parts(rows)).axes[0]
    lengths = [bar.get_width() for bar in axes.patches]
    assert lengths == [row[part] for part in ("memory", "compute", "links") for row in rows.values()]
    assert sum("is the step" in text.get_text() for text in axes.texts) == 2
    for wrong in ({}, {"a": {}}, {"a": {"x": 1.0}, "b": {"y": 1.0}}):
        with pytest.raises(UserError, match="same parts"):
            step_parts(wrong)


def test_rows_between_devices_are_the_tables():
    tables = {"all": np.arange(16).reshape(4, 4), "groups": np.eye(4)}
    figure = draw(rows_between(tables))
    for axes, table in zip(figure.axes, tables.values(), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), table)
        numbers = [text.get_text() for text in axes.texts if not text.get_text().startswith("sum")]
        assert [float(n) for n in numbers] == table.ravel().tolist()
    assert len({axes.images[0].get_clim() for axes in figure.axes}) == 1
    for wrong in ({}, {"a": np.zeros((2, 3))}):
        with pytest.raises(UserError, match="square"):
            rows_between(wrong)
