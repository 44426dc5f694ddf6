"""Records: small files, the same numbers, and old files that still read."""

from __future__ import annotations

import ast
import copy
import json
from pathlib import Path

import numpy as np
import pytest

import minimoe
from minimoe.errors import UserError
from minimoe.experiments import EXPERIMENTS, MEASUREMENTS, read_record, training_speed, write_record
from minimoe.experiments.records import POINTS, RECORDS, read_record_file, thin_curve
from minimoe.experiments.results import facts_recalled, results_page

NOTEBOOKS = Path(minimoe.__file__).parent.parent / "notebooks" / "source"


def full_record(steps: int = 10 * POINTS) -> dict:
    """A record as earlier versions wrote it: every curve a list of records with all their fields."""
    rng = np.random.default_rng(0)
    train = [
        {
            "kind": "train",
            "step": step,
            "tokens": 2048 * step,
            "seconds": round(1.7 * step, 3),
            "loss": float(rng.normal(4.0)),
            "learning_rate": 0.001,
            "grad_norm": float(rng.normal(1.0)),
            "tokens_per_second": round(float(rng.normal(1000.0, 100.0)), 1),
            "max_violation": [round(float(v), 4) for v in rng.random(4)],
        }
        for step in range(10, steps + 1, 10)
    ]
    last = {
        "kind": "eval",
        "step": steps,
        "tokens": 2048 * steps,
        "bits_per_byte": 1.23456789,
        "per_domain": {"a": 1.5},
    }
    run = {"full": {"bits_per_byte": 1.987654321}, "tokens": 2048 * steps, "curve": [*train, last]}
    return {"experiment": "toy", "command": "minimoe experiments run toy", "runs": {"one": run}}


def of_kind(curve: list[dict], kind: str) -> list[dict]:
    return [record for record in curve if record["kind"] == kind]


def test_all_records_together_stay_small():
    assert sum(path.stat().st_size for path in RECORDS.iterdir()) < 1_000_000


def test_a_written_record_reads_as_the_same_numbers(tmp_path):
    record = full_record()
    before = copy.deepcopy(record)
    write_record(tmp_path / "new" / "toy.json", record)
    assert record == before
    there = read_record_file(tmp_path / "new" / "toy.json")
    old, new = record["runs"]["one"], there["runs"]["one"]
    assert training_speed(new) == training_speed(old)
    assert {name: new[name] for name in old if name != "curve"} == {name: old[name] for name in old if name != "curve"}
    assert of_kind(new["curve"], "eval") == of_kind(old["curve"], "eval")
    assert len(of_kind(new["curve"], "train")) == POINTS == len(of_kind(old["curve"], "train"))
    for ours, theirs in zip(of_kind(new["curve"], "train"), of_kind(old["curve"], "train"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["max_violation"] == theirs["max_violation"]
        assert (ours["step"], ours["tokens"], ours["seconds"]) == (theirs["step"], theirs["tokens"], theirs["seconds"])
    write_record(tmp_path / "again.json", there)  # what is thin stays as it is
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "new" / "toy.json").read_bytes()


def test_a_whole_curve_of_an_earlier_version_reads(tmp_path):
    record = full_record()
    (tmp_path / "toy.json").write_text(json.dumps(record))
    assert read_record_file(tmp_path / "toy.json") == record


CONFIG = {
    "seed": 0,
    "model": {"moe": {"experts": 8, "score": "sigmoid"}, "d_ff": None, "rate": 1},
    "data": {"tasks": 0.5},
}


@pytest.mark.parametrize(
    ("changed", "paths"),
    [
        (CONFIG, []),
        (CONFIG | {"seed": 2, "model": CONFIG["model"] | {"rate": 1.0}}, ["seed", "model.rate"]),
        (CONFIG | {"model": {"moe": None, "d_ff": 384, "rate": 1}}, ["model.moe", "model.d_ff"]),
        (CONFIG | {"data": {"entries": 9}}, ["data"]),
        ({"seed": 0, "steps": 3}, None),
        (CONFIG | {"data": {"tasks": {"a.b": 1}}}, ["data.tasks"]),
    ],
)
def test_a_run_keeps_of_its_config_what_differs_from_the_first(tmp_path, changed, paths):
    record = full_record()
    run = record["runs"].pop("one")
    record["runs"] = {"first": run | {"config": CONFIG}, "second": run | {"config": changed}}
    write_record(tmp_path / "toy.json", record)
    written = json.loads((tmp_path / "toy.json").read_text())
    assert written["config"] == CONFIG
    assert written["runs"]["first"]["changes"] == {}
    assert list(written["runs"]["second"].get("changes", {})) == (paths or [])
    assert ("config" in written["runs"]["second"]) == (paths is None)
    read = read_record_file(tmp_path / "toy.json")
    assert "config" not in read
    for name in ("first", "second"):
        there, before = read["runs"][name]["config"], record["runs"][name]["config"]
        assert json.dumps(there) == json.dumps(before)  # types and order, too


@pytest.mark.parametrize("length", [1, 2, 99, 100, 101, 199, 200, 1234])
def test_thinning_keeps_the_ends_the_even_spacing_and_all_evaluations(length):
    curve = full_record(10 * length)["runs"]["one"]["curve"]
    thin = thin_curve(curve)
    steps = [record["step"] for record in of_kind(thin, "train")]
    assert (steps[0], steps[-1]) == (10, 10 * length)
    assert min(length, POINTS // 2) <= len(steps) <= POINTS
    assert len(set(np.diff(steps)[:-1])) <= 1
    assert of_kind(thin, "eval") == of_kind(curve, "eval")


def test_a_record_that_is_not_there_names_the_command():
    with pytest.raises(UserError, match="minimoe experiments run nothing"):
        read_record("nothing")


def test_runs_of_dense_models_have_no_balance():
    curve = read_record("sparse-vs-dense")["runs"]["dense-0"]["curve"]
    assert "max_violation" not in curve[0]


def test_notebooks_do_not_import_commands():
    """Lessons show the library: what they need is public there."""
    for path in sorted(NOTEBOOKS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(f"{name}.".startswith("minimoe.cli.") for name in names), f"{path}:{node.lineno}"


def test_the_page_of_results_is_up_to_date():
    """Whoever changes a record writes the page again: `minimoe experiments results --out notebooks/RESULTS.md`."""
    page = Path(__file__).parent.parent / "notebooks" / "RESULTS.md"
    assert page.read_text(encoding="utf-8") == results_page()


def test_a_page_has_every_way_and_every_seed():
    page = results_page()
    runs = read_record("knowledge")["runs"]
    row = "| experts-16 | " + " | ".join(f"{runs[f'experts-16-{seed}']['recalled']:.1%}" for seed in range(3))
    assert row in page
    for name in {**EXPERIMENTS, **MEASUREMENTS}:
        assert (f"minimoe experiments show {name}`" in page) == (RECORDS / f"{name}.json").is_file(), name
    assert "nan" not in page.lower().replace("nano", "")


def test_the_figure_of_the_readme_shows_every_seed_of_the_record():
    rows = {"dense": 3, "4 experts": 3, "16 experts": 3, "64 experts": 3}
    figure = facts_recalled()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert set(rows) < set(labels)
