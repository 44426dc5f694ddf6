"""A disk that fails in mid-work: one line, exit code 2, the last good state stays, and the same command continues later.

One process of its own meets all troubles, each in its own folder. A preset is small there, and something happens to the
disk at a chosen moment: the process may write no large file any more (a file-size limit, which the kernel enforces for
libraries in C++ too), the system call says that the disk is full, or the folder is deleted. What goes on later, untroubled,
runs here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from test_cli import PROGRAM, TEXT, TINY, TINY_RECIPE

import minimoe.config
from minimoe.cli import app
from minimoe.training import recipe as recipes
from minimoe.training.checkpoint import CheckpointFolder, load_checkpoint

pytest.importorskip("resource", reason="Windows has no file-size limits")

# What may happen, as functions of the other process. ``before(owner, name, number, what)`` lets it happen before the call
# of that number of a function. ``put`` replaces something until the case is over.
TROUBLE = """
import errno, os, resource, shutil
from pathlib import Path

changed = []

def put(owner, name, value):
    changed.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)

def small_files(size=1000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def full():
    def fsync(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    put(os, "fsync", fsync)

def gone():
    shutil.rmtree(OUT)

def before(owner, name, number, what):
    original, calls = getattr(owner, name), []
    def watched(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            what()
        return original(*args, **kwargs)
    put(owner, name, watched)

def over():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    while changed:
        setattr(*changed.pop())

OUT = Path("out")
"""
# Meets one case after the other, and says on stderr where each begins and how it ends.
ALL_CASES = PROGRAM.replace("sys.exit(run(sys.argv[1:]))\n", """
import json
here = os.getcwd()
for name, (trouble, arguments) in json.load(open("cases.json")).items():
    os.chdir(os.path.join(here, name))
    print("begins:", name, file=sys.stderr, flush=True)
    exec(trouble)
    code = run(arguments)
    over()
    print("ended:", code, file=sys.stderr, flush=True)
""")  # fmt: skip


def start(program: str, *arguments: str, before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    settings = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run(
        [*(before or []), sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=settings,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[dict[str, subprocess.CompletedProcess[str]], Path]:
    """How the command of each case ended, and what holds their folders."""
    root = tmp_path_factory.mktemp("troubles")
    cases = {name: (trouble, train("text.txt")) for name, (trouble, *_) in (IN_TRAINING | VANISHING).items()}
    cases |= {name: (trouble, arguments) for name, (trouble, arguments, *_) in OTHER_COMMANDS.items()}
    for name in cases:
        (root / name).mkdir()
        (root / name / "text.txt").write_text(TEXT)
    (root / "cases.json").write_text(json.dumps(cases))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        done = start(TROUBLE + ALL_CASES)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^begins: (.*)\n((?:.*\n)*?)ended: (\d+)$", done.stderr, re.MULTILINE)
    assert [name for name, _, _ in found] == list(cases)
    return {name: subprocess.CompletedProcess(cases[name], int(code), "", said) for name, said, code in found}, root


def complaint(ended: subprocess.CompletedProcess[str]) -> str:
    """The one line that ends a command; before it come only what a run says of itself."""
    assert ended.returncode == 2, ended.stderr
    lines = ended.stderr.splitlines()
    assert [line for line in lines if line.startswith("minimoe: ")] == lines[-1:], ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Error" not in ended.stderr, ended.stderr
    assert len(lines) < 10, ended.stderr
    return lines[-1]


@pytest.fixture
def text(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return "text.txt"


def train(text: str) -> list[str]:
    return ["train", "--config", "tiny", "--text", text, "--out", "out"]


@pytest.fixture(scope="module", autouse=True)
def tiny_preset():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(minimoe.config.PRESETS, "tiny", TINY)
        patch.setitem(recipes.RECIPES, "tiny", TINY_RECIPE)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_preset) -> Path:
    """The same run without any trouble."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert app.run(train("text.txt")) == 0
    return folder / "out"


def same_weights(one: Path, other: Path) -> bool:
    (first, _, _), (second, _, _) = load_checkpoint(one), load_checkpoint(other)
    leaves = zip(jax.tree.leaves(nnx.state(first)), jax.tree.leaves(nnx.state(second)), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


IN_TRAINING = {
    "a file-size limit at the second checkpoint": (
        "from minimoe.training.checkpoint import CheckpointFolder as c; before(c, 'save', 2, small_files)",
        "out/checkpoints cannot be written: the file would be larger",
        [2],
    ),
    "a file-size limit at the metrics": (
        "from minimoe.training.loop import _Session as c; before(c, 'log', 4, lambda: small_files(100))",
        "out/metrics.jsonl cannot be written: the file would be larger",
        [2],
    ),
    "a full disk at the first checkpoint": (
        "from minimoe.training.checkpoint import CheckpointFolder as c; before(c, 'save', 1, small_files)",
        "out/checkpoints cannot be written: the file would be larger",
        [],
    ),
    "a full disk at the curve": (
        "import minimoe.progress as c; before(c, 'draw_curve', 1, full)",
        "out/curve.png cannot be written: the disk is full; make room",
        [4, 6],
    ),
}


@pytest.fixture
def case(request, ended, text) -> subprocess.CompletedProcess[str]:
    """How the case of the test's parameter ended. The test goes on in a copy of its folder."""
    name = request.node.callspec.params["name"]
    shutil.copytree(ended[1] / name, ".", dirs_exist_ok=True)
    return ended[0][name]


@pytest.mark.parametrize("name", IN_TRAINING)
def test_training_stops_in_one_line_and_resumes_once_there_is_room(name, text, case, whole):
    _, said, kept = IN_TRAINING[name]
    assert said in complaint(case)
    assert CheckpointFolder(Path("out")).steps() == kept
    if kept:
        load_checkpoint("out")
    assert app.run([*train(text), "--resume"]) == 0
    assert same_weights(Path("out"), whole)
    assert (Path("out") / "metrics.jsonl").read_text().count('"train"') == 6


VANISHING = {
    f"the folder vanishes at {moment}": (
        f"from minimoe.training.loop import _Session as c; before(c, {moment!r}, 2, gone)",
    )
    for moment in ("save", "log")
}


@pytest.mark.parametrize("name", VANISHING)
def test_a_folder_that_vanishes_in_mid_run_is_one_line(name, case):
    assert "cannot be written: the folder is gone" in complaint(case)
    assert not Path("out").exists()


SAVED = """
import minimoe.hub
from flax import nnx
from minimoe import MoETransformer
minimoe.hub.save(MoETransformer(TINY, rngs=nnx.Rngs(0)), "float")
"""
TOY = """
import minimoe.data
from minimoe.experiments import EXPERIMENTS, Run
from tests.test_cli import _few_documents
put(minimoe.data, "documents", _few_documents)
EXPERIMENTS["toy"] = lambda done: [Run("one", "tiny")]
"""
OTHER_COMMANDS = {
    "quantize": (
        SAVED + "small_files()",
        ["quantize", "float", "--recipe", "int8", "--out", "out", "--no-eval"],
        "out cannot be written: the file would be larger",
        [],
    ),
    "quantize, at the picture": (
        SAVED + "import minimoe.cli.quantize as c; before(c, 'draw', 1, full)",
        ["quantize", "float", "--recipe", "int8", "--out", "out", "--no-eval"],
        "out/sizes.png cannot be written: the disk is full",
        ["config.json", "model.safetensors"],
    ),
    "experiments, at a checkpoint": (
        TOY + "from minimoe.training.checkpoint import CheckpointFolder as c; before(c, 'save', 1, small_files)",
        ["experiments", "run", "toy", "--work", "out", "--record", "record.json"],
        "toy/one/checkpoints cannot be written: the file would be larger",
        ["toy"],
    ),
    "experiments, at the record": (
        TOY + "import minimoe.experiments.runner as c; before(c, 'write_record', 1, full)",
        ["experiments", "run", "toy", "--work", "out", "--record", "record.json"],
        "record.json cannot be written: the disk is full",
        ["toy"],
    ),
}


@pytest.mark.parametrize("name", OTHER_COMMANDS)
def test_other_commands_stop_in_one_line_too(name, case):
    _, _, said, left = OTHER_COMMANDS[name]
    assert said in complaint(case)
    assert not Path("record.json").exists()
    assert (sorted(path.name for path in Path("out").iterdir()) if Path("out").exists() else []) == left


def test_a_disk_that_is_really_full(text, whole):
    """A disk of a megabyte, where the system lets a user mount one; a checkpoint takes half of it."""
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m none small && exec "$@"', "sh"]
    Path("small").mkdir()
    try:
        possible = subprocess.run([*mount, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("no disk can be mounted here")
    ended = start(PROGRAM, *train(text)[:-1], "small/out", before=mount)
    assert "cannot be written: the disk is full; make room or choose another folder" in complaint(ended)
