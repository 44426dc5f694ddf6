"""The builder of the notebooks on tiny masters: once as a command, otherwise its main function in this process."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path
from unittest import mock

import pytest

SCRIPT = Path(__file__).parents[1] / "notebooks" / "build.py"
for needed in ("jupytext", "nbclient", "ipykernel"):
    if importlib.util.find_spec(needed) is None:  # not imported here: that takes seconds in each worker
        pytest.skip(f"{needed} is not installed", allow_module_level=True)

GOOD = """\
# %% [markdown]
# # A lesson

# %%
import os, sys
print(sys.executable)
print("fast:", os.environ.get("MINIMOE_FAST"), "in", os.path.basename(os.getcwd()))

# %%
1 + 1

# %%
1 + 1
"""


def run_command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a person runs it, in a process of its own."""
    command = [sys.executable, str(SCRIPT), "--folder", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", timeout=120, env={**os.environ, **environment}
    )


@functools.cache
def builder() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_build", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's own, at import
        spec.loader.exec_module(module)
    return module


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same without the start of an interpreter and the imports."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        mock.patch.dict(os.environ),
    ):
        try:
            code = builder().main(["--folder", str(folder), *arguments])
        except SystemExit as error:  # from argparse
            code = error.code
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def write_master(folder: Path, name: str, text: str) -> Path:
    (folder / "source").mkdir(parents=True, exist_ok=True)
    path = folder / "source" / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lessons", numbered=False)
    write_master(folder, "00_good", GOOD)
    result = run_command(folder, MINIMOE_FAST="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ok    00_good" in result.stdout
    return folder


@pytest.fixture
def lessons(built: Path, tmp_path: Path) -> Path:
    """A copy that the test may spoil."""
    return Path(shutil.copytree(built, tmp_path / "lessons"))


def load(folder: Path, name: str = "00_good") -> dict:
    return json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))


def store(folder: Path, notebook: dict, name: str = "00_good") -> None:
    (folder / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


def test_build_runs_this_interpreter_in_the_folder_and_in_full(built: Path):
    cells = load(built)["cells"]
    text = "".join(cells[1]["outputs"][0]["text"])
    assert text.splitlines() == [sys.executable, f"fast: None in {built.name}"]  # MINIMOE_FAST=1 outside is not heard
    assert [cell.get("execution_count") for cell in cells] == [None, 1, 2, 3]
    assert cells[2]["outputs"][0]["data"]["text/plain"] == ["2"]


def test_metadata_is_minimal_and_ids_are_distinct(built: Path):
    notebook = load(built)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    assert len({cell["id"] for cell in notebook["cells"]}) == 4


def test_building_again_gives_the_same_bytes(lessons: Path):
    before = (lessons / "00_good.ipynb").read_bytes()
    assert run(lessons, "00_good").returncode == 0
    assert (lessons / "00_good.ipynb").read_bytes() == before
    assert sorted(path.name for path in lessons.iterdir()) == ["00_good.ipynb", "source"]


def test_prose_only_carries_text_over_and_keeps_outputs(lessons: Path):
    before = load(lessons)
    text = GOOD.replace("# # A lesson", "# # Another title").replace(
        "1 + 1\n\n", "1 + 1\n\n# %% [markdown]\n# New.\n\n", 1
    )
    write_master(lessons, "00_good", text)
    assert run(lessons, "--check", "--no-execute").returncode == 1
    assert run(lessons, "00_good", "--prose-only").returncode == 0
    after = load(lessons)
    assert [cell["cell_type"] for cell in after["cells"]] == ["markdown", "code", "code", "markdown", "code"]
    assert after["cells"][0]["source"] == ["# Another title"]
    assert [c for c in after["cells"] if c["cell_type"] == "code"] == before["cells"][1:]
    assert run(lessons, "--check", "--no-execute").returncode == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace("1 + 1", "1 + 2", 1), "code cell 2 differs from the notebook's"),
        (GOOD + "\n# %%\n2 + 2\n", "the master has 4 code cells, the notebook 3"),
    ],
)
def test_prose_only_refuses_other_code(lessons: Path, text: str, told: str):
    before = (lessons / "00_good.ipynb").read_bytes()
    write_master(lessons, "00_good", text)
    result = run(lessons, "00_good", "--prose-only")
    assert result.returncode == 1
    assert told in result.stdout
    assert "run: python notebooks/build.py 00_good" in result.stdout
    assert (lessons / "00_good.ipynb").read_bytes() == before


def test_prose_only_needs_a_notebook_and_does_not_go_with_check(lessons: Path):
    (lessons / "00_good.ipynb").unlink()
    assert "so there are no outputs" in run(lessons, "--prose-only").stdout
    assert run(lessons, "--prose-only", "--check").returncode == 2


def test_check_passes_on_a_fresh_build_and_writes_nothing(lessons: Path):
    before = (lessons / "00_good.ipynb").read_bytes()
    result = run(lessons, "--check")
    assert result.returncode == 0, result.stdout
    assert "1 notebooks checked, 0 with problems" in result.stdout
    assert (lessons / "00_good.ipynb").read_bytes() == before


def test_check_executes_fast(lessons: Path):
    write_master(lessons, "00_good", GOOD + "\n# %%\nassert os.environ.get('MINIMOE_FAST') != '1', 'ran fast'\n")
    result = run(lessons, "--check")
    assert result.returncode == 1
    assert "run with MINIMOE_FAST=1: cell 5 of 5 failed" in result.stdout
    assert "AssertionError: ran fast" in result.stdout


def test_two_notebooks_at_once_are_told_in_order(lessons: Path):
    """The second waits for a file of the first's; the first waits until the second has begun."""
    meet = """
# %%
import pathlib, time
pathlib.Path("{mine}").touch()
for _ in range(600):
    if pathlib.Path("{other}").exists():
        break
    time.sleep(0.1)
else:
    raise TimeoutError("alone")
"""
    for name, mine, other in (("00_good", "a", "b"), ("01_bad", "b", "a")):
        ends = "" if mine == "a" else "\n# %%\n1 / 0\n"
        write_master(lessons, name, GOOD + meet.format(mine=mine, other=other) + ends)
    result = run(lessons, "--check", "--jobs", "2")
    assert result.returncode == 1
    assert "TimeoutError" not in result.stdout
    assert result.stdout.index("00_good") < result.stdout.index("01_bad") < result.stdout.index("ZeroDivisionError")
    for arguments in (("--jobs", "2"), ("--check", "--jobs", "0")):
        assert run(lessons, *arguments).returncode == 2


@pytest.mark.parametrize("arguments", [("--check", "--no-execute"), ("--check",), ()])
def test_no_notebook_at_all_fails(tmp_path: Path, arguments: tuple[str, ...]):
    result = run(tmp_path, *arguments)
    assert result.returncode == 1
    assert "no notebook and no master" in result.stdout


def spoil_code(folder: Path) -> None:
    notebook = load(folder)
    notebook["cells"][2]["source"] = ["1 + 2"]
    store(folder, notebook)


def spoil_prose(folder: Path) -> None:
    notebook = load(folder)
    notebook["cells"][0]["source"] = ["# Another lesson"]
    store(folder, notebook)


def drop_cell(folder: Path) -> None:
    notebook = load(folder)
    notebook["cells"].pop()
    store(folder, notebook)


def forget_execution(folder: Path) -> None:
    notebook = load(folder)
    notebook["cells"][2].update(execution_count=None, outputs=[])
    store(folder, notebook)


def hold_error(folder: Path) -> None:
    notebook = load(folder)
    error = {"output_type": "error", "ename": "ValueError", "evalue": "left behind", "traceback": []}
    notebook["cells"][2]["outputs"] = [error]
    store(folder, notebook)


def grow(folder: Path) -> None:
    notebook = load(folder)
    notebook["cells"][1]["outputs"][0]["text"] = ["x" * 1_100_000]
    store(folder, notebook)


def break_file(folder: Path) -> None:
    (folder / "00_good.ipynb").write_text("{", encoding="utf-8")


def lose_notebook(folder: Path) -> None:
    (folder / "00_good.ipynb").unlink()


def lose_master(folder: Path) -> None:
    (folder / "source" / "00_good.py").unlink()


def write_long_cell(folder: Path) -> None:
    write_master(folder, "00_good", GOOD + "\n# %%\n" + "\n".join(f"x{i} = {i}" for i in range(26)) + "\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_code, "cell 3 differs from the master"),
        (spoil_prose, "cell 1 differs from the master"),
        (drop_cell, "has 3 cells, its master 4"),
        (forget_execution, "cell 3 was never executed"),
        (hold_error, "cell 3 holds an error: ValueError: left behind"),
        (grow, "is 1.10 MB, over 1 MB"),
        (break_file, "00_good.ipynb cannot be read"),
        (lose_notebook, "has no 00_good.ipynb; run: python notebooks/build.py 00_good"),
        (lose_master, "has no master source/00_good.py"),
        (write_long_cell, "cell 5 has 26 lines of code, over 25"),
    ],
)
def test_comparison_finds(lessons: Path, spoil, message: str):
    spoil(lessons)
    result = run(lessons, "--check", "--no-execute")
    assert result.returncode == 1, result.stdout
    assert "FAIL  00_good" in result.stdout
    assert message in result.stdout
    assert not result.stderr


def test_a_failing_cell_stops_the_build_and_keeps_the_old_notebook(lessons: Path):
    before = (lessons / "00_good.ipynb").read_bytes()
    write_master(lessons, "00_good", GOOD + "\n# %%\nvalue = 0\nprint(1 / value)\n")
    write_master(lessons, "01_later", GOOD)
    result = run(lessons)
    assert result.returncode == 1
    assert "FAIL  00_good: cell 5 of 5 failed" in result.stdout
    assert "    | print(1 / value)" in result.stdout
    assert "ZeroDivisionError: division by zero" in result.stdout
    assert "\x1b" not in result.stdout
    assert (lessons / "00_good.ipynb").read_bytes() == before
    assert not (lessons / "01_later.ipynb").exists()


def test_a_hanging_notebook_is_stopped(tmp_path: Path):
    slow = "# %%\nimport os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n"
    write_master(tmp_path, "00_slow", slow)
    result = run(tmp_path, "--timeout", "3")
    assert result.returncode == 1
    assert "took over 3 s" in result.stdout
    if sys.platform != "win32":  # where signal 0 would not ask but end the process
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


def test_wrong_usage_is_said_in_one_line(lessons: Path):
    result = run(lessons, "07_missing")
    assert (result.returncode, result.stderr) == (2, "no notebook called 07_missing; there are: 00_good\n")
    assert run(lessons, "--no-execute").returncode == 2


def test_help_shows_an_example(tmp_path: Path):
    assert "python notebooks/build.py --check" in run(tmp_path, "--help").stdout
