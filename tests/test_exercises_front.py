"""What a student meets: check, hint and status in a notebook, files of answers, and the commands."""

from __future__ import annotations

import json
import re
import sys

import cloudpickle
import numpy as np
import pytest
from exercise_answers_03 import bias_numpy

from minimoe import UserError
from minimoe import exercises as ex
from minimoe.exercises import notebook
from minimoe.exercises.grade import grade
from minimoe.exercises.registry import CATALOGUE
from minimoe.exercises.submission import load_answers

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # this file knows the solutions, and answers may not


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    monkeypatch.setattr(notebook, "_results", {})
    monkeypatch.setattr(notebook, "_hints_given", {})


def nothing(*args):
    return None


def test_check_hint_status(capsys):
    result = ex.check("balance.bias_update", bias_numpy)
    assert result
    out = capsys.readouterr().out
    assert out.startswith("PASSED   balance.bias_update  5 of 5 points")
    assert repr(result) == "Result('balance.bias_update', passed, 5 of 5 points)"
    ex.check("balance.bias_update", nothing)  # a later failure does not undo it
    ex.check("routing.topk", nothing)
    ex.check("sparse.params", None)
    out = capsys.readouterr().out
    assert "NOT YET" in out
    assert 'minimoe.exercises.hint("routing.topk")' in out
    text = str(ex.status())
    assert re.search(r"balance.bias_update +done +03 +1/5 +10 +5/5", text)
    assert re.search(r"routing.topk +not yet +02 ", text)
    assert re.search(r"sparse.params +01 ", text)
    count, points = len(ex.exercises()), sum(exercise.points for exercise in ex.exercises().values())
    assert f"1 of {count} done, 5 of {points} points" in text
    assert "<td" in ex.status()._repr_html_()


def test_inputs_stay_as_they_were_and_prints_are_kept(capsys):
    def mutates(bias, load, rate):
        print("bias is", bias)
        bias += np.float32(rate) * np.sign(load.mean() - load)
        bias -= bias.mean()
        return bias

    result = ex.check("balance.bias_update", mutates)
    assert result.aspect == "mutation"
    assert "changes its argument bias in place" in result.message
    assert result.printed.count("bias is") == 1  # of the deciding call only
    assert "| bias is" in capsys.readouterr().out
    assert grade(CATALOGUE["balance.bias_update"], bias_numpy).passed  # the case is unharmed


def test_hints_come_one_by_one(capsys):
    for _ in range(4):
        ex.hint("routing.topk")
    ex.hint("routing.topk", 1)
    levels = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert levels == [f"routing.topk, hint {n} of 3" for n in (1, 2, 3, 3, 1)]
    with pytest.raises(UserError, match="hint level 4 does not exist; choose 1 to 3"):
        ex.hint("routing.topk", 4)


def test_unknown_ids_name_the_close_ones():
    for call in (ex.hint, lambda id: ex.check(id, nothing), lambda id: ex.exercises()[id]):
        with pytest.raises(UserError, match=r"no exercise 'routing.top'; did you mean routing.topk"):
            call("routing.top")
    with pytest.raises(UserError, match=r"did you mean .*balance.switch_loss"):
        ex.hint("switch")
    with pytest.raises(UserError, match=r"known are sparse.params, "):
        ex.hint("%%%")
    assert "routing.topk" in repr(ex.exercises())
    assert ex.exercises().get("nothing") is None


# Files of answers.

GOOD = """
from helper import half
def params(d_model, d_expert, num_experts, top_k, num_shared_experts):
    print("counting")
    router, one = d_model * num_experts, 6 * half * d_model * d_expert
    return router + (num_experts + num_shared_experts) * one, router + (top_k + num_shared_experts) * one
def bias_update(bias, load, rate):
    raise NotImplementedError
print("loaded")
ANSWERS = {"sparse.params": params, "balance.bias_update": bias_update}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "helper.py").write_text("half = 1 / 2\nhalf = 1 // 2 + 1\nhalf = 0.5 if False else 1\n")
    (tmp_path / "answers.py").write_text(GOOD.replace("6 * half", "3 * half"))
    return tmp_path


def cli(*arguments):
    import typer

    from minimoe.cli import app, exercises

    whole = typer.Typer()
    whole.add_typer(exercises.app, name="exercises")
    try:
        code = whole(["exercises", *map(str, arguments)], standalone_mode=False)
    except UserError as error:
        return app._complain(str(error))
    return code if isinstance(code, int) else 0


def test_grade_a_file(folder, capfd):
    assert cli("grade", folder / "answers.py", "--json") == 0  # what is not written is not attempted
    captured = capfd.readouterr()
    record = json.loads(captured.out)
    assert "loaded" not in captured.err  # hundreds of files that print would hide the messages
    assert record["points"] == 5
    assert record["max_points"] == sum(e.points for e in CATALOGUE.values())
    assert [(e["id"], e["attempted"], e["passed"]) for e in record["exercises"]] == [
        ("sparse.params", True, True),
        ("balance.bias_update", False, False),
    ]
    (folder / "answers.py").write_text(GOOD.replace("6 * half", "2 * half"))
    assert cli("grade", folder / "answers.py") == 1
    captured = capfd.readouterr()
    assert re.search(r"sparse.params +not passed +0/5 +two matrices an expert", captured.out)
    assert re.search(r"balance.bias_update +not written", captured.out)
    (folder / "answers.py").write_text("ANSWERS = {'sparse.params': None}")
    assert cli("grade", folder / "answers.py") == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "cannot read"),
        (b"def f(:", "is not valid Python in line 1"),
        (b"# coding: utf-8\nx = '\xff'", "is not valid Python"),
        (b"x = 1", "ANSWERS is missing"),
        (b"ANSWERS = {}", "ANSWERS is empty"),
        (b"ANSWERS = [1]", "ANSWERS is a list"),
        (b"ANSWERS = {'routing.top': len}", "did you mean routing.topk"),
        (b"import sys; sys.exit(0)", "raised SystemExit"),
        (b"1 / 0", "raised ZeroDivisionError when run: division by zero"),
    ],
)
def test_files_of_no_use(tmp_path, capsys, source, words):
    path = tmp_path / "answers.py"
    if source is not None:
        path.write_bytes(source)
    assert cli("grade", path) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_files_that_do_not_end_and_notebooks(tmp_path):
    path = tmp_path / "answers.py"
    path.write_text("while True:\n    pass\n")
    with pytest.raises(UserError, match=r"did not finish within 0.2 s"):
        load_answers(path, time_limit=0.2)
    with pytest.raises(UserError, match="is a notebook"):
        load_answers(tmp_path / "answers.ipynb")


def test_cli_list_show_hint(capsys):
    assert cli("list") == 0
    assert "routing.group_limited" in capsys.readouterr().out
    assert cli("list", "--json") == 0
    assert [e["id"] for e in json.loads(capsys.readouterr().out)["exercises"]] == list(CATALOGUE)
    assert cli("show", "balance.switch_loss") == 0
    assert "def switch_loss(probs, experts):" in capsys.readouterr().out
    assert cli("hint", "balance.switch_loss", "--level", "2") == 0
    assert "hint 2 of 3" in capsys.readouterr().out
    assert cli("hint", "balance.switch") == 2
    for command in ("list", "show", "hint", "grade"):
        assert cli(command, "--help") == 0
        assert f"minimoe exercises {command}" in " ".join(capsys.readouterr().out.split())
