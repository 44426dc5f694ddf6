"""`minimoe bench predict` on a tiny model: its rows, its sums, its figure; what overflows; mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from drawing import draw

from minimoe import UserError, plots
from minimoe.bench import predict
from minimoe.cli import app
from minimoe.cost import Machine
from minimoe.cost.machine import FEW_ROWS, KINDS, grid_shapes
from minimoe.experiments import read_record

ROW = {"model": "a", "kind": "train", "batch": 8, "measured_ms": 10.0, "predicted_ms": 9.0, "peak_roofline_ms": 1.0}


def made() -> Machine:
    grid = {(m, k, n): m * k * n / 5e10 for m, k, n in grid_shapes()}
    reads, rates = {(rows, 2**20): 1e10 for rows in FEW_ROWS}, dict.fromkeys(KINDS, 1e9)
    peaks = {"float32": 1e11, "bfloat16": 1e11}
    copies = {2**20: 1e10}
    return Machine("made up", 1, 2**33, grid, peaks, copies, reads, rates, {20: 1e-7}, copies, copies)


def test_rows_of_a_tiny_model(monkeypatch, tmp_path, capsys, tiny_config):
    for name, value in {"MODELS": {"nano": tiny_config}, "SEQUENCES": 2, "LENGTH": 8, "NEW_TOKENS": 4}.items():
        monkeypatch.setattr(predict, name, value)
    monkeypatch.setattr("minimoe.cost.measure_machine", lambda progress: made())
    monkeypatch.setattr("minimoe.process.keep_memory", lambda: None)
    paths = ["--record", str(tmp_path / "times.json"), "--figure", str(tmp_path / "times.svg")]
    assert app.run(["bench", "predict", "--model", "nano", "--batch", "1", "--rounds", "1", "--json", *paths]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole == json.loads((tmp_path / "times.json").read_text())
    assert (tmp_path / "times.svg").is_file()
    assert [(row["kind"], row["batch"]) for row in whole["rows"]] == [("train", 2), ("decode", 1)]
    for row in whole["rows"]:
        assert row["predicted_ms"] == pytest.approx(sum(row["parts_ms"].values()), rel=1e-3)
        assert row["error"] == pytest.approx(row["predicted_ms"] / row["measured_ms"] - 1, abs=2e-3)
        assert all(value > 0 or part in ("turning", "slicing") for part, value in row["parts_ms"].items())
    assert whole["rows"][1]["parts_ms"]["slicing"] > 0  # few tokens slice out their experts
    assert Machine.from_record(whole["machine"]).cores == 1


def test_errors_are_medians_of_both_sides():
    rows = [ROW, ROW | {"predicted_ms": 15.0}, ROW | {"predicted_ms": 10.0}]
    assert predict.errors(rows)["errors"] == {
        "predicted": {"median_error": 0.1, "largest_error": 0.5},
        "peak_roofline": {"median_error": 0.9, "largest_error": 0.9},
    }


def test_overflow_blocks_are_those_that_the_dispatch_makes():
    """Four experts, 400 assignments: 104 slots each; 105 needs a block, 300 needs four."""
    load = np.asarray([[105, 95, 100, 100], [300, 100, 0, 0]])
    assert predict.overflow_blocks(load[:1], 200) == 1
    assert predict.overflow_blocks(load[1:], 200) == 4
    assert predict.overflow_blocks(load, 200) == 2.5
    assert predict.overflow_blocks(np.asarray([[16, 0]]), 8) == 0  # so few slice out their own experts


def test_figure():
    rows = [ROW, ROW | {"kind": "decode", "batch": 1, "measured_ms": 0.2, "predicted_ms": 0.25, "model": "b"}]
    (axes,) = draw(plots.predicted_times(rows)).axes
    assert axes.get_xlim() == axes.get_ylim()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b", "peaks alone"]
    with pytest.raises(UserError, match="empty"):
        plots.predicted_times([])


def test_unknown_model(capsys):
    assert app.run(["bench", "predict", "--model", "gpt"]) == 2
    assert "choose one of nano, dense-nano" in capsys.readouterr().err


def test_the_record_says_what_its_rows_say():
    """Of the machine on which it was recorded: training within a quarter, and more than half of all times."""
    record = read_record("predicted-times")
    rows = record["rows"]
    assert predict.errors(rows)["errors"] == record["errors"]
    assert max(abs(row["error"]) for row in rows if row["kind"] == "train") < 0.25
    assert record["errors"]["predicted"]["median_error"] < 0.25
    assert record["errors"]["predicted"]["median_error"] < record["errors"]["peak_roofline"]["median_error"] / 2
    assert [row["model"] for row in rows] == [name for name in predict.MODELS for _ in range(4)]
    assert all(sum(row["parts_ms"].values()) == pytest.approx(row["predicted_ms"], rel=1e-3) for row in rows)
    assert Machine.from_record(record["machine"]).cores == 2
