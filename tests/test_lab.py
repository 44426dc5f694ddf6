"""The lessons in the reader's folder: whole, never over his own work, and what Jupyter Lab is asked."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import minimoe
from minimoe.cli import app, lab

SOURCE = Path(minimoe.__file__).parent.parent / "notebooks"


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader") / "lessons"
    assert app.run(["notebooks", str(folder)]) == 0
    return folder


def test_all_lessons_and_their_pages_come(copied):
    there = {p.relative_to(copied).as_posix(): p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    wanted = {"microscope.html", *(p.name for p in SOURCE.glob("*.ipynb")), *(p.name for p in SOURCE.glob("*.md"))}
    assert wanted | {"figures/facts_recalled.png"} <= set(there)
    assert there == {name: (SOURCE / name).read_bytes() for name in there}


def test_a_notebook_that_was_worked_on_is_kept(copied, capsys):
    mine = copied / "03_load_balancing.ipynb"
    mine.write_text("my work")
    assert app.run(["notebooks", str(copied)]) == 0
    out = capsys.readouterr()
    assert "0 files written" in out.out
    assert "03_load_balancing.ipynb" in out.err
    assert mine.read_text() == "my work"
    assert app.run(["notebooks", str(copied), "--overwrite"]) == 0
    assert "1 files written" in capsys.readouterr().out
    assert mine.read_bytes() == (SOURCE / mine.name).read_bytes()


def test_a_folder_with_other_things_is_refused(tmp_path, capsys):
    (tmp_path / "figures").write_text("a file where a folder must be")
    assert app.run(["notebooks", str(tmp_path)]) == 2
    assert "figures" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["figures"]


def test_the_source_is_no_target(capsys):
    assert app.run(["notebooks", str(SOURCE)]) == 2
    assert "another folder" in capsys.readouterr().err


def test_without_jupyter_lab_one_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    assert app.run(["lab", str(tmp_path / "new")]) == 2
    err = capsys.readouterr().err
    assert "pip install 'minimoe[notebooks]'" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("words", [["list"], ["run", "knowledge"], ["show", "nano"]], ids=" ".join)
def test_the_old_name_of_experiments_points_to_the_new_one(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert app.run(["lab", *words]) == 2
    assert f"minimoe experiments {' '.join(words)}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_lab_opens_the_first_lesson_in_the_copy(copied, monkeypatch):
    asked = []

    class Process:
        def __init__(self, command, cwd):
            asked.append((command, cwd))
            self.interrupted = False

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def wait(self):
            if not self.interrupted:
                self.interrupted = True
                raise KeyboardInterrupt
            return 7

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: object())
    assert app.run(["lab", str(copied), "--no-browser"]) == 7
    assert asked == [([sys.executable, "-m", "jupyterlab", "00_tour.ipynb", "--no-browser"], copied)]


def test_the_wheel_gets_what_the_command_copies(monkeypatch, copied):
    """The build's own step, without building."""
    pytest.importorskip("setuptools", reason="a build brings it along, this environment may not")
    from setuptools import Distribution

    monkeypatch.syspath_prepend(str(SOURCE))
    from in_wheel import WithLessons

    step = WithLessons(Distribution())
    step.build_lib = "made"
    targets = {Path(target).as_posix() for _, target in step._lessons()}
    there = {p.relative_to(copied).as_posix() for p in copied.rglob("*") if p.is_file()} - {lab.PAGE}
    assert targets == {f"made/minimoe/notebooks/{name}" for name in there}
