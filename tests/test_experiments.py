"""Experiments: the runs are those of the records, and folders of earlier versions go on."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import minimoe
from minimoe.errors import UserError
from minimoe.experiments import EXPERIMENTS, MEASUREMENTS, Run, missing_runs, read_record, run_experiment
from minimoe.experiments.workplace import Workplace, default_folder
from minimoe.progress import check_resume
from minimoe.training.run_folder import read_run_config

ROOT = Path(minimoe.__file__).parent


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("work"))


def stated(values: dict) -> dict:
    return {name: value for name, value in values.items() if value}


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if (ROOT / "records" / f"{name}.json").is_file()])
def test_runs_are_those_of_the_record(name, work, tmp_path):
    """Same names, seeds, steps, models and settings: who runs an experiment again gets what is recorded."""
    recorded = read_record(name)["runs"]
    made = {run.name: run for run in EXPERIMENTS[name](recorded)}
    assert set(recorded) <= set(made)
    for run, values in recorded.items():
        (tmp_path / "config.json").write_text(json.dumps(values["config"]))
        there, here = read_run_config(tmp_path), made[run].config(work)
        assert (here.model, here.recipe, here.tokenizer) == (there.model, there.recipe, there.tokenizer)
        # Earlier versions said less of a run, and never anything else.
        assert stated(values.get("method", {})).items() <= made[run].method().items()
        assert dict(there.data).items() <= dict(here.data).items()


def test_later_runs_follow_from_the_recorded_ones():
    """Equal time is known once the speeds are."""
    for name in ("sparse-vs-dense", "distillation", "reasoning"):
        recorded = read_record(name)["runs"]
        first = {run.name for run in EXPERIMENTS[name]({})}
        assert {run for run in recorded if "equal-time" in run} == set(recorded) - first
        assert missing_runs(name, recorded) == []


def test_the_folder_of_an_earlier_version_goes_on(work, tmp_path, capsys):
    """Its config.json is the one in the record."""
    recorded = read_record("reasoning")["runs"]
    made = {run.name: run for run in EXPERIMENTS["reasoning"](recorded)}
    for name in ("direct-0", "sampled-right-1", "on-policy-2"):
        (tmp_path / "config.json").write_text(json.dumps(recorded[name]["config"]))
        assert check_resume(tmp_path, made[name].config(work), resume=True) == 0
        with pytest.raises(UserError, match="started with"):
            check_resume(tmp_path, made["worked-0"].config(work), resume=True)


def test_runs_of_an_earlier_version_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_folder() == Path("runs/experiments")
    Path("runs/lab").mkdir(parents=True)
    assert default_folder() == Path("runs/lab")
    Path("runs/experiments").mkdir()
    assert default_folder() == Path("runs/experiments")


def test_the_record_says_what_the_run_was_given(work):
    run = Run("a", "nano", settings={"tasks": 0.5, "teachers": ("one",), "distill": {"alpha": 0.9}})
    assert stated(run.method()) == {
        "tasks": 0.5, "teachers": ["one"], "distill": {"alpha": 0.9}, "form": "worked", "text": "corpus"
    }  # fmt: skip
    assert run.config(work).data["teachers"] == ["one"]
    assert "start" not in run.config(work).data


def test_an_unknown_experiment_is_refused(tmp_path):
    with pytest.raises(UserError, match="choose one of small-hour"):
        run_experiment("nothing", tmp_path)


def test_every_experiment_has_a_file_that_asks_a_question():
    for name in {**EXPERIMENTS, **MEASUREMENTS}:
        path = ROOT / "experiments" / f"{name.replace('-', '_')}.py"
        says = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert says.partition("\n")[0].rstrip(".").partition("?")[1] == "?", name


def test_the_control_of_fp8_training_begins_a_millionth_away(work):
    """The same model but for the nudge, which is small and not zero; so what it parts by is chance."""
    import jax
    import numpy as np
    from flax import nnx

    from minimoe.training.loop import init_model

    run = next(run for run in EXPERIMENTS["fp8-training"]({}) if run.name == "nudged-1")
    config = run.config(work)
    nudged = run.learn(work, config, **run.settings).model
    states = [nnx.state(model, nnx.Param) for model in (nudged, init_model(config.model, 1))]
    for ours, plain in zip(*(jax.tree.leaves(state) for state in states), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1.2e-6)
        assert (np.asarray(ours) != np.asarray(plain)).any()
