"""`minimoe bench quant` on tiny sizes: what it reports, and that its contestants compute the same. No time is asserted."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

QUICK = ["--rounds", "2", "--warmup", "0", "--pause", "0"]
FORMS = {"float32", "int8-w8a8", "int8"}


@pytest.fixture
def bench(monkeypatch, tiny_config):
    """Runs a benchmark; the preset ``tiny`` exists, and the compilation cache stays off."""
    from minimoe.cli import bench
    from minimoe.config import PRESETS

    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    monkeypatch.setattr(bench, "start", lambda: None)
    return lambda *arguments: CliRunner().invoke(bench.app, ["quant", *arguments, *QUICK], catch_exceptions=False)


def test_matmuls(bench):
    result = bench("--shape", "1,40,24", "--json")
    assert result.exit_code == 0
    whole = json.loads(result.stdout)
    assert set(whole) == {"benchmark", "environment", "settings", "reports"}
    (report,) = whole["reports"]
    assert report["shape"] == {"T": 1, "I": 40, "O": 24}
    assert set(report["results"]) == FORMS
    results = report["results"]
    assert {name: values["weight_bytes"] for name, values in results.items()} == {
        "float32": 4 * 40 * 24,
        "int8-w8a8": 40 * 24 + 4 * 24,
        "int8": 40 * 24 + 4 * 24,
    }
    assert results["float32"]["relative_error"] == 0
    assert 0 < results["int8"]["relative_error"] < results["int8-w8a8"]["relative_error"] < 0.03
    assert results["float32"]["speed_over_float32"]["median"] == 1.0


def test_decode(bench):
    arguments = ("--decode", "--config", "tiny", "--batch", "2", "--prompt", "3", "--new-tokens", "4")
    result = bench(*arguments, "--json")
    assert result.exit_code == 0
    whole = json.loads(result.stdout)
    assert whole["settings"]["weights"] == "random"
    (report,) = whole["reports"]
    assert (report["config"], report["shape"]) == ("tiny", {"B": 2, "prompt": 3, "new_tokens": 4})
    assert set(report["results"]) == FORMS
    assert report["results"]["int8"]["bytes"] < 0.5 * report["results"]["float32"]["bytes"]
    assert report["results"]["float32"]["tokens_as_float32"] == 1.0


def test_decode_by_other_recipes(bench):
    arguments = ("--decode", "--config", "tiny", "--batch", "1", "--prompt", "2", "--new-tokens", "2")
    result = bench(*arguments, "--recipe", "v4", "--json")
    assert result.exit_code == 0
    (report,) = json.loads(result.stdout)["reports"]
    assert set(report["results"]) == {"float32", "v4"}
    assert report["results"]["v4"]["bytes"] < 0.5 * report["results"]["float32"]["bytes"]


def test_table_says_that_weights_are_random(bench):
    result = bench("--shape", "1,8,8")
    assert result.exit_code == 0
    assert "int8-w8a8" in result.stdout
    assert "relative error" in result.stdout


def test_what_is_measured_by_default():
    """The large model takes more than a gigabyte in float32; small's matmuls are its own."""
    from minimoe.bench.models import RANDOM_300M
    from minimoe.bench.quant import default_shapes
    from minimoe.cost import count_params

    assert 4 * count_params(RANDOM_300M).total > 1.0e9
    shapes = [tuple(shape.values()) for shape in default_shapes()]
    assert shapes[:2] == [(8, 4096, 4096), (1, 4096, 4096)]
    assert set(shapes[2:]) == {(1, 256, 256), (1, 256, 128), (1, 256, 384), (1, 192, 256), (1, 256, 2048)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "8,4"], "must be 3 whole numbers of at least 1: T,I,O"),
        (["--decode", "--config", "giant"], "--config 'giant' is not known"),
        (["--decode", "--config", "tiny", "--recipe", "int3"], "int3"),
        (["--decode", "--config", "tiny", "--prompt", "20", "--new-tokens", "5"], "above context_length=24"),
    ],
)
def test_impossible_settings_are_refused(bench, arguments, message):
    from minimoe.errors import UserError

    with pytest.raises(UserError) as caught:
        bench(*arguments)
    assert message in str(caught.value)


def test_help_has_an_example():
    from minimoe.cli.bench import app

    result = CliRunner().invoke(app, ["quant", "--help"])
    assert result.exit_code == 0
    assert "Example: minimoe bench quant" in result.stdout
