"""The command line as a person meets it: what it writes, what it says, and what it leaves behind when it fails."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from flax import nnx

import minimoe.config
from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, MoETransformer
from minimoe.cli import app
from minimoe.cost import account
from minimoe.data import load_tokenizer
from minimoe.experiments import EXPERIMENTS, Run
from minimoe.experiments.records import RECORDS, read_record_file
from minimoe.hub import save
from minimoe.quant import quantize_model
from minimoe.tour import cached, claims, report
from minimoe.tour.run import TRAINED
from minimoe.training import recipe as recipes
from minimoe.training.checkpoint import CheckpointFolder, load_checkpoint
from minimoe.training.recipe import Recipe

TINY = ModelConfig(
    vocab_size=2048,
    d_model=16,
    num_layers=2,
    attention=GroupedQueryConfig(num_heads=2, num_kv_heads=1, head_dim=8),
    context_length=32,
    # The dense dispatch compiles fastest, and no command asks how tokens are dispatched.
    moe=MoEConfig(16, 8, 4, 2, num_shared_experts=1, score="sigmoid", dispatch="dense"),
)
TINY_RECIPE = Recipe(steps=6, batch_size=4, learning_rate=0.01, warmup_steps=2, log_every=1, checkpoint_every=2)
TEXT = "The quick brown fox jumps over the lazy dog.\n\nPack my box with five dozen liquor jugs.\n\n" * 40

# A process of its own with the same tiny preset, for tests that kill it.
PROGRAM = """
import sys
import minimoe.config
from minimoe.training import recipe as recipes
from tests.test_cli import TINY, TINY_RECIPE
minimoe.config.PRESETS["tiny"] = TINY
recipes.RECIPES["tiny"] = TINY_RECIPE
from minimoe.cli.app import run
sys.exit(run(sys.argv[1:]))
"""

KILLED = """
import os, signal
from minimoe.training.loop import _Session
log, lines = _Session.log, []
def killed(*args, **kwargs):
    lines.append(1)
    if len(lines) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return log(*args, **kwargs)
_Session.log = killed
"""


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch, tmp_path):
    monkeypatch.setitem(minimoe.config.PRESETS, "tiny", TINY)
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY_RECIPE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with one finished tiny run on a small text; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(minimoe.config.PRESETS, "tiny", TINY)
        patch.setitem(recipes.RECIPES, "tiny", TINY_RECIPE)
        code = app.run(["train", "--config", "tiny", "--text", str(folder / "text.txt"), "--out", str(folder / "run")])
    assert code == 0
    return folder


def run_json(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert app.run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # one object and nothing else


def test_train_leaves_a_complete_folder(trained):
    run = trained / "run"
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "metrics.jsonl",
        "curve.png",
        "checkpoints",
    }
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if r["kind"] == "eval"] == [6]
    assert len(records[0]["max_violation"]) == TINY.num_layers
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert CheckpointFolder(run).steps() == [4, 6]


def test_eval_and_generate(trained, capsys):
    run, text = str(trained / "run"), str(trained / "text.txt")
    values = run_json(capsys, "eval", run, "--text", text)
    assert 0 < values["bits_per_byte"] < 12
    assert values["num_bytes"] <= len(TEXT.encode())
    arguments = ("generate", run, "--prompt", "The quick", "--max-new-tokens", "5", "--temperature", "0")
    first, second = (run_json(capsys, *arguments)["texts"] for _ in range(2))
    assert first == second
    assert app.run([*arguments]) == 0
    assert capsys.readouterr().out.startswith("The quick")


def test_a_model_whose_logits_are_nan_is_named_and_its_json_is_json(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = MoETransformer(TINY, rngs=nnx.Rngs(0))
    model.norm.scale[...] = model.norm.scale[...] * float("nan")
    save(model, tmp_path / "nan", load_tokenizer())
    assert app.run(["generate", "nan", "--prompt", "a", "--max-new-tokens", "2"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("minimoe: the logits of nan are NaN")
    (tmp_path / "a.txt").write_text("Some text.")
    assert app.run(["eval", "nan", "--text", "a.txt", "--json"]) == 0
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert report["bits_per_byte"] is None
    assert report["num_bytes"] == 10


def test_resuming_a_finished_run_changes_nothing(trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[:6]
    text = str(trained / "text.txt")
    assert app.run(["train", "--config", "tiny", "--text", text, "--out", "run", "--resume"]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[:6] == before


def test_killed_in_the_middle_then_resumed_is_the_unbroken_run(trained, tmp_path):
    """The system kills a process three steps after its first checkpoint."""
    text = str(trained / "text.txt")
    arguments = ["train", "--config", "tiny", "--text", text, "--steps", "14", "--checkpoint-every", "5"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    program = PROGRAM.replace("from minimoe.cli.app import run\n", KILLED + "from minimoe.cli.app import run\n")
    died = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--out", "killed"],
        env=environment,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=120,
    )
    assert died.returncode == -signal.SIGKILL
    assert CheckpointFolder(tmp_path / "killed").steps() == [5]
    for name in ("killed", "whole"):
        assert app.run([*arguments, "--out", name, "--resume"]) == 0
    (killed, _, _), (whole, _, _) = load_checkpoint(tmp_path / "killed"), load_checkpoint(tmp_path / "whole")
    import jax
    from flax import nnx

    for a, b in zip(jax.tree.leaves(nnx.state(killed)), jax.tree.leaves(nnx.state(whole)), strict=True):
        np.testing.assert_array_equal(a, b)
    losses = [
        [
            r["loss"]
            for r in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
            if "loss" in r
        ]
        for name in ("killed", "whole")
    ]
    assert losses[0] == losses[1]


BAD = {
    "no command": (["frob"], "frob"),
    "unknown preset": (["train", "--config", "nosuch", "--out", "new"], "nosuch"),
    "not a number": (["train", "--config", "tiny", "--steps", "x", "--out", "new"], "'--steps'"),
    "no steps": (["train", "--config", "tiny", "--steps", "0", "--out", "new"], "steps=0"),
    "dropout of one": (["train", "--config", "tiny", "--dropout", "1", "--out", "new"], "dropout=1.0"),
    "missing text": (["train", "--config", "tiny", "--text", "nosuch.txt", "--out", "new"], "nosuch.txt"),
    "empty text": (["train", "--config", "tiny", "--text", "empty.txt", "--out", "new"], "empty.txt"),
    "not UTF-8": (["train", "--config", "tiny", "--text", "latin.txt", "--out", "new"], "latin.txt"),
    "unknown balance": (["train", "--config", "tiny", "--balance", "fair", "--out", "new"], "fair"),
    "unknown tokenizer": (["train", "--config", "tiny", "--tokenizer", "nosuch", "--out", "new"], "nosuch"),
    "folder in use": (["train", "--config", "tiny", "--out", "foreign"], "foreign"),
    "out is a file": (["train", "--config", "tiny", "--out", "empty.txt"], "empty.txt"),
    "out below a file": (["train", "--config", "tiny", "--out", "empty.txt/new"], "empty.txt"),
    "no checkpoint": (["eval", "nosuch"], "nosuch"),
    "foreign checkpoint": (["eval", "foreign"], "foreign"),
    "no such protocol": (["eval", "run", "--protocol", "half"], "half"),
    "long prompt": (["generate", "run", "--max-new-tokens", "32"], "max_new_tokens=32"),
    "no new tokens": (["generate", "run", "--max-new-tokens", "0"], "max_new_tokens=0"),
    "negative temperature": (["generate", "run", "--max-new-tokens", "4", "--temperature", "-1"], "temperature=-1.0"),
    "top_p of two": (["generate", "run", "--max-new-tokens", "4", "--top-p", "2"], "top_p=2.0"),
    "no samples": (["generate", "run", "--samples", "0"], "--samples 0"),
    "negative seed": (["generate", "run", "--max-new-tokens", "4", "--seed", "-1"], "--seed=-1"),
    "large seed": (["generate", "run", "--max-new-tokens", "4", "--seed", str(2**63)], f"--seed={2**63}"),
    "tour with a large seed": (["tour", "--fast", "--seed", str(2**32), "--out", "new"], f"--seed={2**32}"),
    "tour into a foreign folder": (["tour", "--fast", "--out", "foreign"], "foreign"),
    "unknown experiment": (["experiments", "run", "nosuch"], "nosuch"),
    "record is a folder": (["experiments", "run", "nano", "--work", "w", "--record", "foreign"], "foreign"),
    "record is something else": (["experiments", "run", "nano", "--work", "w", "--record", "other.json"], "other.json"),
    "record cannot be written": (["experiments", "run", "nano", "--work", "w", "--record", "/proc/r.json"], "/proc/r"),
    "text of no name": (["train", "--text", "", "--out", "new"], "the argument after --text is empty"),
    "text of no name, joined": (["train", "--text=", "--out", "new"], "the argument after --text is empty"),
    "folder of no name": (["train", "--steps", "1", "--out", ""], "the argument after --out is empty"),
    "checkpoint of no name": (["export", "", "--out", "new"], "the argument after export is empty"),
    "bad shape": (["bench", "moe", "--shape", "1,2"], "1,2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_exit_code_two_and_nothing_left(name, trained, tmp_path, capsys):
    arguments, value = BAD[name]
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 50)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.doc").write_text("years of work")
    shutil.copytree(trained / "run", tmp_path / "run")
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    capsys.readouterr()
    assert app.run(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("minimoe: ")
    assert value in lines[0]
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", ["truncate", "delete", "config"])
def test_a_damaged_checkpoint_is_named(damage, trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "6"
    if damage == "config":
        (tmp_path / "run" / "config.json").write_text('{"format": "minimoe-training-1", "model": ')
    else:
        files = [p for p in last.rglob("*") if p.is_file()]
        for path in files:
            path.unlink() if damage == "delete" else os.truncate(path, path.stat().st_size // 2)
    capsys.readouterr()
    assert app.run(["eval", "run", "--text", str(trained / "text.txt")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "run" in lines[0]
    if damage != "config":
        shutil.rmtree(last)  # the repair that the message names
        assert str(last) in lines[0]
        assert app.run(["eval", "run", "--text", str(trained / "text.txt")]) == 0


def test_another_recipe_does_not_resume(trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
    text = str(trained / "text.txt")
    assert app.run(["train", "--config", "tiny", "--text", text, "--out", "run", "--resume", "--steps", "9"]) == 2
    assert "steps=9" in capsys.readouterr().err
    assert app.run(["train", "--config", "tiny", "--text", text, "--out", "run"]) == 2
    assert "--resume" in capsys.readouterr().err


def test_tour_writes_a_report_and_replaces_its_own(monkeypatch, tmp_path, capsys):
    experts = MoEConfig(32, 32, 4, 2, num_shared_experts=1, score="sigmoid", dispatch="dense")  # 32: a block of FP4
    tiny = TINY.replace(context_length=80, d_model=32, moe=experts)
    monkeypatch.setitem(minimoe.config.PRESETS, "nano", tiny)
    monkeypatch.setitem(recipes.RECIPES, "nano", TINY_RECIPE)
    monkeypatch.setattr("minimoe.tour.race.STEPS", 4)
    monkeypatch.setattr("minimoe.tour.quantized.OF_EACH_LEVEL", 2)
    for module in ("known", "collapsed"):
        monkeypatch.setattr(f"minimoe.tour.{module}.BOOK", (64, 4))
        monkeypatch.setattr(f"minimoe.tour.{module}.FAST_BOOK", (64, 4))
    monkeypatch.setattr("minimoe.data.documents", _short_documents)
    teacher = MoETransformer(tiny, rngs=nnx.Rngs(1))
    monkeypatch.setattr("minimoe.hub.load_pretrained", lambda name: (quantize_model(teacher, "int8"), None, None))
    (tmp_path / "report" / "figures").mkdir(parents=True)
    (tmp_path / "report" / "figures" / "old.png").write_bytes(b"")
    (tmp_path / "report" / "report.json").write_text(json.dumps({"format": "minimoe-tour-1"}))
    for fast in (False, True):
        values = run_json(capsys, "tour", *["--fast"][:fast], "--out", "report")
        assert json.loads((tmp_path / "report" / "report.json").read_text()) == values
        assert [m["name"] for m in values["models"]] == ["sparse", "dense"]
        assert [way["name"] for way in values["collapse"]["ways"]] == ["no balancing", "the bias"]
        assert [row["name"] for row in values["quantized"]["recipes"]] == ["int8", "fp8", "v4"]
        asked = 0 if fast else 10
        assert values["quantized"]["asked"] == asked
        assert all((row["solved"] is None) == fast for row in values["quantized"]["recipes"])
        assert sum(values["seconds_by_part"].values()) == pytest.approx(values["seconds"], abs=0.6)
        assert np.asarray(values["load"]).shape == (6, TINY.num_layers, 4)
        page = (tmp_path / "report" / "report.html").read_text()
        assert f"{values['models'][0]['bits_per_byte']:.3f}" in page
        assert page.count("<img") == len(list((tmp_path / "report" / "figures").iterdir())) == (7 if fast else 8)
        assert [way["name"] for way in values["facts"]["ways"]] == ["dense", "8 experts", "32 experts"]
        assert all(len(way["recalled"]) == 3 for rung in ("facts", "collapse") for way in values[rung]["ways"])
        assert len(values["solved"]["problems"]) == 10
        first = page.index(values["claims"][0]["claim"])
        assert page.index("What was claimed") < first < page.index('aria-label="Contents"')
        assert all(row["verdict"] in page and row["numbers"] for row in values["claims"])
        assert not (tmp_path / "report" / "figures" / "old.png").exists()
        inside = (tmp_path / "report" / "microscope.html").read_text()
        assert '<a href="microscope.html">' in page
        assert values["microscope"] == {"model": "nano" if fast else TRAINED, "trained_here": not fast}
        assert f"<strong>{values['microscope']['model']}</strong>" in inside
        assert f'"stored":"{"int8" if fast else "float"}"' in inside, "the model trained is float, the shipped one int8"
    assert values["race"]["source"] == "record longer-text"
    assert len(values["race"]["gains"]) == 3
    report.prepare(tmp_path / "report")  # the next tour replaces this one


def test_tour_weighs_caches_and_computes_the_published_claim():
    rung = cached.cache_rung(load_tokenizer())
    for one in rung["ours"]:
        config = minimoe.ModelConfig.preset(one["name"])
        assert one["bytes"] == [sum(account(config, n).cache_bytes.values()) for n in rung["contexts"]]
        assert one["bytes_per_token"] == account(config, 64).kv_bytes_per_token
    published = rung["published"]
    assert published["crossing"] == 541
    assert published["reported"] == pytest.approx(9.545, abs=5e-4)
    wrote = rung["written"]
    assert wrote["new_tokens"] == wrote["agreeing"] == 40
    config = minimoe.ModelConfig.preset("v4-nano")
    assert wrote["bytes"] == sum(account(config, wrote["tokens"]).cache_bytes.values()) < wrote["plain_bytes"]
    row = claims._cached({"caches": rung})
    assert row["verdict"] == "holds at 1M tokens, not for short contexts"
    assert all(part in row["numbers"] for part in ("9.55", "541", "2,048", "104"))


def test_experiments_records_what_it_ran_and_continues(monkeypatch, tmp_path, capsys):
    def trials(done):
        return [Run("one", "tiny"), Run("two", "tiny", {"seed": 1}, dense=True)]

    monkeypatch.setitem(EXPERIMENTS, "toy", trials)
    monkeypatch.setattr("minimoe.data.documents", _few_documents)
    assert app.run(["experiments", "run", "toy", "--work", "work", "--record", "toy.json", "--minutes", "0"]) == 0
    assert app.run(["experiments", "run", "toy", "--work", "work", "--record", "toy.json"]) == 0
    record = read_record_file(tmp_path / "toy.json")
    assert set(record["runs"]) == {"one", "two"}
    assert record["runs"]["one"]["full"]["num_bytes"] == sum(d.num_bytes for d in _few_documents() if d.split == "val")
    assert record["runs"]["two"]["config"]["model"]["moe"] is None


def _few_documents(domain=None, split=None):
    from minimoe.data.corpus import documents

    train, val = documents("austen", "train")[:2], documents("austen", "val")[:1]
    return [d for d in train + val if split in (None, d.split)]


def _short_documents(domain=None, split=None):
    """Of each domain the beginning of a document to train on and of one to score."""
    from minimoe.data.corpus import documents

    firsts = {(d.domain, d.split): dataclasses.replace(d, text=d.text[:3000]) for d in reversed(documents())}
    return [d for d in firsts.values() if domain in (None, d.domain) and split in (None, d.split)]


RECORDED = sorted(path.stem for path in RECORDS.glob("*.json"))


@pytest.mark.parametrize("name", RECORDED)
def test_experiments_shows_every_record_in_eighty_columns_and_whole(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert app.run(["experiments", "show", name]) == 0
    shown = capsys.readouterr().out
    assert app.run(["experiments", "show", name, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    for run, values in record.get("runs", {}).items():
        if "recalled" in values:
            scores = [f"{values['recalled']:.1%}"]
        elif "found" in values:
            scores = [f"{100 * share:.0f}" for share in values["found"].values()]
        else:
            scores = [f"{values['full']['bits_per_byte']:.4f}"]
        assert set(scores) <= set(lines[run])
        for recipe, share in values.get("formats", {}).items():
            assert any(line.startswith(recipe) and f"{share:.1%}" in line for line in shown.splitlines()), recipe
    for recipe, values in record.get("recipes", {}).items():
        assert f"{values[record['protocol']]['bits_per_byte']:.4f}" in lines[recipe]
    assert "…" not in shown


def test_experiments_lists_what_is_recorded_and_what_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "nano", lambda done: [Run("nano", "nano"), Run("more", "nano")])
    monkeypatch.setitem(EXPERIMENTS, "toy", lambda done: [Run("one", "nano")])
    assert app.run(["experiments", "list"]) == 0
    lines = capsys.readouterr().out
    assert "nano (1 of 2 runs missing)" in lines
    assert "small-hour (recorded)" in lines
    assert "toy (not recorded)" in lines
    assert app.run(["experiments", "show", "nano"]) == 0
    assert "Not run yet: more." in capsys.readouterr().out


def commands(group, words: tuple[str, ...] = ()) -> list[str]:
    """Every command below a Typer group, as typed."""
    if not hasattr(group, "commands"):
        return [" ".join(words)]
    return [one for name, inner in group.commands.items() for one in commands(inner, (*words, name))]


COMMANDS = commands(typer.main.get_command(app.app))


def test_all_commands_are_found():
    assert {"train", "experiments run", "bench moe", "exercises grade", "tour"} <= set(COMMANDS)
    assert {"lab", "notebooks", "claims"} <= set(COMMANDS)
    assert not any(command.startswith("lab ") for command in COMMANDS)  # experiments were called so once


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_everywhere(command, capsys):
    assert app.run([*command.split(), "--help"]) == 0
    assert f"Example: minimoe {command}" in " ".join(capsys.readouterr().out.split())


NAMES = (
    b"notes [draft].txt",
    b"dir[/x].txt",
    b"caf\xe9.txt",
    b"[/x]/a.txt",
    b"$a_$.txt",
    b"two\nlines.txt",
    b"n" * 251 + b".txt",
)


@pytest.fixture
def odd_names(tmp_path):
    """A folder of text whose names hold what terminals, plots and JSON could trip over; two of the files are equal."""
    folder = tmp_path / "[text]"
    try:
        for i, name in enumerate([*NAMES, b"copy.txt"]):
            path = folder / os.fsdecode(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"Text number {i % len(NAMES)}. " + TEXT)
    except OSError:
        pytest.skip("the file system refuses such a name")
    return folder


def test_any_name_in_a_folder_of_text_works_and_equal_files_are_told(odd_names, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    assert app.run(["train", "--config", "tiny", "--text", str(odd_names), "--out", "new"]) == 0
    said = capsys.readouterr().err
    assert "[text]: 1 text is there more than once (such as copy.txt, notes [draft].txt); all copies" in said
    assert json.loads(Path("new/config.json").read_text())["data"]["name"] == "[text]"
    for name in NAMES:
        one = odd_names / os.fsdecode(name)
        assert app.run(["eval", "new", "--text", str(one)]) == 0
        shown = capsys.readouterr().out
        assert all(part in shown for part in one.stem.replace("\udce9", r"\xe9").splitlines()), shown
    assert app.run(["eval", "new", "--text", str(odd_names)]) == 0
    shown = capsys.readouterr().out
    assert all(domain in shown for domain in ("dir[", "[text]"))


@pytest.mark.parametrize("name", [*NAMES, b"$x$", b"$\\alpha", "日本".encode(), b"-x", b"n" * 255], ids=ascii)
def test_any_name_for_a_run_works_or_is_refused_before_the_first_step(name, trained, capsys):
    """Brackets are markup to rich, dollars formulas to Matplotlib, and not every font has every letter."""
    out = os.fsdecode(name)
    code = app.run(["train", "--config", "tiny", "--text", str(trained / "text.txt"), f"--out={out}"])
    said = capsys.readouterr().err
    if b"\xe9" in name or b"\\" in name:
        assert code == 2
        assert said.count("\n") == 1
        assert not os.path.exists(out)
        return
    assert code == 0, said
    assert app.run(["eval", f"./{out}", "--text", str(trained / "text.txt")]) == 0


def test_a_second_process_on_one_run_is_refused_in_one_line(trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    hold = "import sys, time; from pathlib import Path; from minimoe.files import only_writer\n"
    hold += "with only_writer(Path('run')):\n print('held', flush=True)\n time.sleep(60)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        text = str(trained / "text.txt")
        capsys.readouterr()
        assert app.run(["train", "--config", "tiny", "--text", text, "--out", "run", "--resume"]) == 2
        said = capsys.readouterr().err
        assert (
            said
            == "minimoe: run is being written by another process; wait until it is done, or choose another folder\n"
        )
        other.kill()
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) in (
        before,
        sorted([*before, Path("run/.lock")]),
    )


def test_a_fresh_process_loads_a_run_from_any_path(trained, tmp_path):
    folder = tmp_path / "[v1]* {a,b}?" / "two\nlines" / "ünï 日本 [/x]" / "run"
    try:
        folder.parent.mkdir(parents=True)
    except OSError:
        pytest.skip("the file system refuses such a name")
    code = "import sys; from minimoe.training import load_checkpoint; from minimoe.model import model_fingerprint\n"
    code += "for path in sys.argv[1:]: print(model_fingerprint(load_checkpoint(path)[0]))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    text = str(trained / "text.txt")
    assert app.run(["train", "--config", "tiny", "--text", text, "--out", str(folder)]) == 0
    command = [sys.executable, "-c", code, str(folder), str(trained / "run")]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    first, second = said.splitlines()
    assert first == second != ""
