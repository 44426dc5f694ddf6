"""Experiments: the runs are those of the records, and folders of earlier versions go on."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import minimoe
from minimoe.errors import UserError
from minimoe.experiments import EXPERIMENTS, MEASUREMENTS, Run, missing_runs, read_record, run_experiment, run_together
from minimoe.experiments.fact_run import FactRun, book_of, read_book
from minimoe.experiments.knowledge_distilled import by_half, taught, written
from minimoe.experiments.records import read_record_file
from minimoe.experiments.run import Learning
from minimoe.experiments.workplace import Workplace, default_folder
from minimoe.progress import check_resume
from minimoe.training import evaluate_facts, fact_model
from minimoe.training.loop import init_model
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


def toy_facts(seeds=(0, 1), learn=read_book, **settings):
    changes = {"steps": 30, "batch_size": 32, "warmup_steps": 5, "log_every": 10, "learning_rate": 1e-2}
    settings = {"entries": 40} | settings
    model = fact_model(book_of(settings), 4)
    return [
        FactRun(f"toy-{seed}", changes=changes | {"seed": seed}, settings=settings, model=model, learn=learn)
        for seed in seeds
    ]


def test_seeds_together_are_the_seeds_one_by_one(tmp_path, monkeypatch):
    """Scanned over steps and mapped over seeds, a step is the same step."""
    monkeypatch.setitem(EXPERIMENTS, "toy", lambda done: toy_facts())
    assert run_experiment("toy", tmp_path, tmp_path / "alone.json")
    run_together("toy", tmp_path, tmp_path / "together.json")
    alone, together = (read_record_file(tmp_path / f"{name}.json")["runs"] for name in ("alone", "together"))
    assert set(alone) == set(together) == {"toy-0", "toy-1"}
    for name, run in alone.items():
        other = together[name]
        assert run["config"]["model"] == other["config"]["model"]
        assert [line["step"] for line in other["curve"]] == [10, 20, 30]
        for one, two in zip(run["curve"], other["curve"], strict=True):
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
            assert two["max_violation"] == pytest.approx(one["max_violation"], abs=0.05)
        assert other["bits"] == pytest.approx(run["bits"], rel=0.02, abs=1)
    assert alone["toy-0"]["curve"][-1]["loss"] != alone["toy-1"]["curve"][-1]["loss"]


def test_what_was_trained_together_is_kept_before_it_is_scored(tmp_path, monkeypatch):
    """A kill while runs are scored loses no training, and later runs may begin from the models."""
    monkeypatch.setitem(EXPERIMENTS, "toy", lambda done: toy_facts())
    run_together("toy", tmp_path, tmp_path / "first.json")
    monkeypatch.setattr("minimoe.experiments.together.train_together", None)  # would fail if it were called
    run_together("toy", tmp_path, tmp_path / "again.json")
    first, again = (read_record_file(tmp_path / f"{name}.json")["runs"] for name in ("first", "again"))
    assert again == first
    model = Workplace(tmp_path).finished("toy/toy-1")
    assert evaluate_facts(model, book_of(toy_facts()[1].settings)).recalled == first["toy-1"]["recalled"]


def test_a_teacher_is_asked_run_by_run(tmp_path, monkeypatch):
    """What looks at every batch cannot be scanned over."""

    def learn(work, run, **settings):
        return Learning(book_of(settings), method=taught(init_model(run.model, 0), {"alpha": 0.5}))

    monkeypatch.setitem(EXPERIMENTS, "toy", lambda done: toy_facts(learn=learn))
    with pytest.raises(UserError, match="one by one"):
        run_together("toy", tmp_path, tmp_path / "record.json")
    with pytest.raises(UserError, match="no experiment of training runs"):
        run_together("quant-recipes", tmp_path)


def test_facts_of_a_teacher_reach_the_half_that_was_read(tmp_path, monkeypatch):
    """The written numbers are the teacher's, right or wrong, and the loss is that of the digits."""
    run = toy_facts()[0]
    book = book_of(run.settings)
    model = init_model(run.model, 3)
    numbers = written(model, book)
    assert numbers.shape == (40, 3)
    assert evaluate_facts(model, book.with_numbers(numbers)).recalled == 1.0
    work = Workplace(tmp_path)
    halves = by_half(work, model, run.settings)
    assert set(halves) == {"read", "unread"}
    together = evaluate_facts(model, book).recalled
    assert (halves["read"] + halves["unread"]) / 2 == pytest.approx(together)
