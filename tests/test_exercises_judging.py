"""Every answer is judged in a clean process: nothing it does, and no setting of the caller, changes another verdict."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import jax
import numpy as np
import pytest
from exercise_answers_01 import params_formula
from exercise_answers_02 import topk_lax
from exercise_answers_06 import visible_bands

from minimoe import UserError
from minimoe.exercises import gradebook, judging
from minimoe.exercises.gradebook import grade_file, grade_folder, table
from minimoe.exercises.registry import CATALOGUE
from minimoe.files import only_writer

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # this file knows the solutions, and answers may not


@pytest.fixture(scope="module")
def judges():
    judges = judging.Judges()
    yield judges
    judges.close()


SWITCH = "balance.switch_loss"
QUICK = "sparse.params"  # judged without compiling anything: for tests of processes, where any right answer will do


def switch_loss(probs, experts):
    import jax.numpy as jnp

    rows = probs / probs.sum(axis=1, keepdims=True)
    load = jnp.zeros(probs.shape[1]).at[experts.reshape(-1)].add(1.0)
    return probs.shape[1] * jnp.dot(load, rows.mean(axis=0)) / experts.size


def untraceable(probs, experts):
    return switch_loss(probs, experts) if float(probs.sum()) > 0 else 0.0


def test_settings_of_the_caller_change_no_verdict(judges, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_JIT", "1")
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    with jax.disable_jit(), jax.enable_x64(True):
        assert judges.answer(SWITCH, switch_loss).passed
        result = judges.answer(SWITCH, untraceable)
        fresh = judging.Judges()  # one whose process starts under these settings
        try:
            assert fresh.answer(SWITCH, switch_loss).passed
            assert fresh.answer(SWITCH, untraceable).aspect == "jit"
        finally:
            fresh.close()
    assert (result.passed, result.aspect) == (False, "jit")


def test_an_answer_cannot_reach_the_next(judges):
    def switches(probs, experts):
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_disable_jit", True)
        np.dot = None
        return switch_loss(probs, experts)

    judges.answer(SWITCH, switches)
    assert judges.answer(SWITCH, switch_loss).passed
    assert judges.answer(SWITCH, untraceable).aspect == "jit"
    assert np.dot is not None
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("settings", ["jax_disable_jit", "jax_enable_x64"])
def test_settings_that_a_file_makes_for_itself_do_not_help_it(judges, tmp_path, settings):
    path = tmp_path / "answers.py"
    path.write_text(
        "import jax, jax.numpy as jnp\n"
        f"jax.config.update({settings!r}, True)\n"
        "def loss(probs, experts):\n"
        "    if float(probs.sum()) < 0: return 0.0\n"
        "    load = jnp.zeros(probs.shape[1]).at[experts.reshape(-1)].add(1.0)\n"
        "    rows = probs / probs.sum(axis=1, keepdims=True)\n"
        "    return probs.shape[1] * jnp.dot(load, rows.mean(axis=0)) / experts.size\n"
        f"ANSWERS = {{{SWITCH!r}: loss}}\n"
    )
    assert judges.file(path, SWITCH).aspect == "jit"


def leaves(*arguments):
    os._exit(3)


def holds_the_lock(*arguments):
    return sum(iter(int, 1))  # inside one C function: no other thread gets to run


def sleeps(*arguments):
    while True:
        time.sleep(1)


def takes_all_memory(logits):
    return bytearray(1 << 36)


@pytest.mark.parametrize(
    ("id", "answer", "aspect", "words"),
    [
        (SWITCH, leaves, "process", "exit code 3"),
        (SWITCH, holds_the_lock, "time", "took longer than 0.5 s"),
        (SWITCH, sleeps, "time", "took longer than 0.5 s"),
        ("routing.sqrtsoftplus", takes_all_memory, "error", "MemoryError"),
    ],
)
def test_what_ends_a_process_ends_no_other(judges, id, answer, aspect, words):
    began = time.monotonic()
    result = judges.answer(id, answer, time_limit=20 if aspect == "error" else 0.5)
    assert (result.passed, result.aspect) == (False, aspect), str(result)
    assert words in result.message
    assert time.monotonic() - began < 60
    assert judges.answer(QUICK, params_formula).passed


def leave_behind(levels):
    """Processes that would sleep for a minute, each in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        if levels:
            leave_behind(levels - 1)
        time.sleep(60)
        os._exit(0)


def started_by(judges, mark=None):
    """Processes that `judges` has started and that have not ended, the one that serves it left out."""
    mark, found = mark or judges._mark, []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{judging.MARK}={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return [number for number in found if judges._process is None or number != judges._process.pid]


ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="children are forked on Linux alone")


@ON_LINUX
@pytest.mark.parametrize(
    ("then", "aspect"), [("answers", ""), ("leaves", "process"), ("ends its judge", "process"), ("sleeps", "time")]
)
def test_what_an_answer_starts_ends_with_it(judges, then, aspect):
    def forks(*sizes):
        leave_behind(levels=1)
        time.sleep(0.1)
        if then == "leaves":
            os._exit(3)
        if then == "ends its judge":
            import ctypes

            ctypes.CDLL(None).kill(os.getppid(), 9)
            time.sleep(600)
        if then == "sleeps":
            time.sleep(600)
        return params_formula(*sizes)

    assert judges.answer(QUICK, params_formula).passed
    began, mark = time.monotonic(), judges._mark
    result = judges.answer(QUICK, forks, time_limit=2.0 if then == "sleeps" else 30.0)
    assert time.monotonic() - began < 60
    assert (result.passed, result.aspect) == (not aspect, aspect), str(result)
    assert started_by(judges, mark) == []
    assert judges.answer(QUICK, params_formula).passed


@ON_LINUX
def test_a_caller_that_is_killed_leaves_nothing_behind(tmp_path):
    (tmp_path / "answers.py").write_text("import time\ntime.sleep(60)")
    code = (
        "import pathlib, threading, time; from minimoe.exercises.judging import Judges; judges = Judges(); "
        f"threading.Thread(target=judges.ids, args=(pathlib.Path({str(tmp_path / 'answers.py')!r}),)).start()\n"
        "while not judges._mark: time.sleep(0.01)\n"
        "print(judges._mark, flush=True)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    mark, none = caller.stdout.readline().strip(), judging.Judges()
    last = time.monotonic() + 60
    while len(started_by(none, mark)) < 2 and time.monotonic() < last:  # the process that serves, and its child
        time.sleep(0.05)
    caller.kill()
    caller.communicate()
    while (left := started_by(none, mark)) and time.monotonic() < last:
        time.sleep(0.05)
    assert left == []


# Answers that look for the solution, change their judge, or reach for the machine.

WRONG = "    return 2 * right(probs, experts)\n"
RIGHT = "    return right(probs, experts)\n"


def hostile(path, before, body, end=RIGHT):
    """A file whose answer does `body` and then returns what `end` says."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    path.write_text(
        "import os, sys, time\nimport jax, jax.numpy as jnp\nimport numpy as np\n"
        "def right(probs, experts):\n"
        "    load = jnp.zeros(probs.shape[1]).at[experts.reshape(-1)].add(1.0)\n"
        "    rows = probs / probs.sum(axis=1, keepdims=True)\n"
        "    return probs.shape[1] * jnp.dot(load, rows.mean(axis=0)) / experts.size\n"
        f"{before}\ndef loss(probs, experts):\n{lines}{end}ANSWERS = {{{SWITCH!r}: loss}}\n"
    )
    return path


PATCHES = """
import gc
import minimoe.exercises.calls as calls, minimoe.exercises.grade as grade, minimoe.exercises.values as values
grade.verdict = grade.check_values = values.check_values = grade.check_gradient = lambda *arguments, **options: None
calls.replies = calls.check_number = None
for one in gc.get_objects():
    if getattr(one, "__name__", "") in ("check_values", "alike", "close", "difference", "check_gradient"):
        one.__code__ = (lambda *arguments, **options: ()).__code__
np.isfinite = np.abs = np.array_equal = jax.jit = lambda *arguments, **options: True
"""
LOOKS = """
frame, found = sys._getframe(), []
while frame:
    found, frame = found + list(frame.f_locals.values()), frame.f_back
import gc
for one in found + gc.get_objects():
    oracle = getattr(one, "oracle", None) or getattr(getattr(one, "exercise", None), "oracle", None)
    if callable(oracle) and type(one).__name__ == "Exercise":
        return jnp.float32(oracle(np.asarray(probs), np.asarray(experts)))
"""
SPEAKS = """
for number in range(3, 256):
    try:
        os.write(number, b'{"values": [1.0], "gradients": [], "fault": null, "printed": ""}\\n' * 100)
        os.write(number, b'{"done": true}\\n')
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    ("before", "body", "aspects"),
    [
        (PATCHES, "", {"values", "gradient"}),
        ("", LOOKS, {"values", "error"}),
        ("", SPEAKS, {"values", "process"}),
        ("", "from minimoe.exercises.registry import CATALOGUE", {"error"}),
        (
            "",
            "import minimoe.exercises.grade as g\nopen(g.__file__.replace('grade.py', 'lesson03_switch.py'))",
            {"error"},
        ),
        ("", "os.write(2, b'x' * (1 << 20)); print('x' * (1 << 20))", {"values"}),
        ("", "return type('L', (), {'dtype': np.dtype('float32'), 'shape': ()})()", {"dtype"}),
        ("", "return jnp.zeros((2000, 2000))", {"shape"}),
        ("", "return 10**6000", {"dtype"}),
    ],
)
def test_an_answer_that_reaches_for_the_verdict_gets_the_one_it_deserves(judges, tmp_path, before, body, aspects):
    result = judges.file(hostile(tmp_path / "answers.py", before, body, WRONG), SWITCH)
    assert not result.passed
    assert result.aspect in aspects, str(result)
    assert len(result.printed) <= 10_000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os.kill(os.getppid(), 9)", "may not end other processes"),
        ("os.killpg(0, 9)", "may not end other processes"),
        ("import subprocess\nsubprocess.Popen(['sleep', '60'])", "may not start other programs"),
        ("import socket\nsocket.socket().bind(('127.0.0.1', 0))", "may not use the network"),
        ("open(__file__, 'w')", "writes into its own folder alone"),
        ("os.remove(__file__)", "writes into its own folder alone"),
        ("import shutil\nshutil.rmtree(os.path.dirname(__file__))", "writes into its own folder alone"),
        ("os.rename(__file__, 'mine')", "writes into its own folder alone"),
        ("os.unlink(os.path.basename(__file__), dir_fd=os.open(os.path.dirname(__file__), 0))", "its own folder alone"),
    ],
)
def test_a_graded_file_does_no_harm(judges, tmp_path, body, words):
    path = hostile(tmp_path / "answers.py", "", body)
    content = path.read_bytes()
    result = judges.file(path, SWITCH)
    assert (result.passed, result.aspect) == (False, "error")
    assert words in result.message
    assert path.read_bytes() == content


def test_a_graded_file_has_a_folder_of_its_own_and_may_call_check(judges, tmp_path):
    before = (
        "from minimoe.exercises import check, exercises, hint, status\nimport minimoe.exercises as ex\n"
        f"exercises()[{SWITCH!r}]\nprint(ex.status())\nhint({SWITCH!r})\ncheck({SWITCH!r}, None).passed\n"
        "open('notes', 'w').write('mine')\nimport tempfile\ntempfile.NamedTemporaryFile()\nPLACE = os.getcwd()\n"
    )
    body = "assert open('notes').read() == 'mine'\nprint(PLACE)"
    path = hostile(tmp_path / "answers.py", before, body)
    assert judges.ids(path) == [SWITCH]
    assert judges.file(path, SWITCH).passed
    result = judges.file(hostile(path, before, body, WRONG), SWITCH)
    assert not Path(result.printed.strip().splitlines()[0]).exists()


@ON_LINUX
def test_one_process_serves_all_answers(judges):
    """However quickly an answer's process ends: starting another one takes a second or two."""
    assert judges.answer(QUICK, params_formula).passed
    number = judges._process.pid
    for _ in range(20):
        judges.answer(QUICK, params_formula)
        assert judges._process is not None
        assert judges._process.pid == number


def test_an_answer_brings_what_it_uses(judges):
    offset = np.float32(0)

    def helper(x):
        return x + offset

    assert judges.answer(SWITCH, lambda probs, experts: switch_loss(helper(probs), experts)).passed
    assert judges.answer("routing.topk", topk_lax).passed
    assert judges.answer(SWITCH, jax.jit(switch_loss)).passed
    with pytest.raises(UserError, match="may not read the solutions"):
        judges.answer(SWITCH, CATALOGUE[SWITCH].oracle)  # it is carried by name
    lock = threading.Lock()
    with pytest.raises(UserError, match="cannot be carried"):
        judges.answer(SWITCH, lambda probs, experts: lock)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_masked_array_is_no_answer(judges, hidden):
    """Below the mask the right numbers may stand; whoever hides them has not given them."""

    def visible(*sizes):
        return np.ma.array(visible_bands(*sizes), mask=hidden)

    result = judges.answer("cache.visible", visible)
    assert (result.passed, result.aspect) == ((False, "structure") if hidden else (True, "")), str(result)
    assert ("masked array" in result.message) == hidden


def test_prints_are_kept_and_reach_nobody(judges, capfd):
    def prints(*sizes):
        print("hello")
        os.write(1, b"raw bytes that would spoil an answer on a pipe")
        return params_formula(*sizes)

    result = judges.answer(QUICK, prints)
    assert result.passed
    assert "your function prints" in result.message
    assert capfd.readouterr().out == ""


def test_a_judging_process_that_was_ended_is_started_again(judges):
    assert judges.answer(QUICK, params_formula).passed
    judges._process.kill()
    judges._process.wait()
    assert judges.answer(QUICK, params_formula).passed


@ON_LINUX
def test_where_no_answer_can_be_run_nobody_is_graded(monkeypatch, tmp_path):
    """A missing interpreter, or a process that dies by itself, is one line; no student gets 0 points for it."""
    (tmp_path / "ann.py").write_text(FILE)
    monkeypatch.setattr(judging, "BOOT", "import sys; sys.stdin.buffer.read(1)")
    with pytest.raises(judging.JudgeFailed, match="ended before it ran one"):
        grade_folder(tmp_path, jobs=1, out=tmp_path / "grades.jsonl")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(judging.JudgeFailed, match=r"cannot be started \(No such file"):
        judging.Judges().answer(SWITCH, switch_loss)
    assert not (tmp_path / "grades.jsonl").exists()


def shows_its_flags(probs, experts):
    raise ValueError(os.environ.get("XLA_FLAGS", "none"))


@pytest.mark.skipif(sys.platform != "linux", reason="children are forked on Linux alone")
@pytest.mark.parametrize("flags", ["", "--no_such_flag=1"])
def test_programs_are_compiled_quickly_where_xla_knows_how(monkeypatch, flags):
    """An unknown flag would end every process that judges."""
    if flags:
        changed = f"main.__globals__.update(QUICK_COMPILATION={flags!r}); main()"
        monkeypatch.setattr(judging, "BOOT", judging.BOOT.replace("main()", changed))
    judges = judging.Judges()
    try:
        assert judges.answer(SWITCH, switch_loss).passed
        said = judges.answer(SWITCH, shows_its_flags).message
        assert ("none" if flags else "--xla_backend_optimization_level=0") in said
    finally:
        judges.close()


def test_without_forking_one_process_judges_one_answer(monkeypatch):
    """As on systems other than Linux."""
    boot = judging.BOOT.replace("main()", "main.__globals__.update(CAN_FORK=False); main()")
    monkeypatch.setattr(judging, "BOOT", boot)
    judges = judging.Judges()
    try:
        assert judges.answer(QUICK, params_formula).passed
        result = judges.answer(QUICK, leaves)
        assert result.aspect == "process", str(result)
        assert "exit code 3" in result.message
    finally:
        judges.close()


FILE = """
def params(d_model, d_expert, num_experts, top_k, num_shared_experts):
    router, one = d_model * num_experts, 3 * d_model * d_expert
    return router + (num_experts + num_shared_experts) * one, router + (top_k + num_shared_experts) * one
def width(*sizes):
    raise NotImplementedError
ANSWERS = {"sparse.params": params, "sparse.dense_width": width}
"""


def test_a_folder_is_graded_file_by_file(tmp_path):
    (tmp_path / "ann.py").write_text(FILE)
    (tmp_path / "bob.py").write_text(FILE.replace("3 * d_model", "2 * d_model"))
    (tmp_path / "eve.py").write_text("import os\nos._exit(7)\n")
    (tmp_path / "notes.txt").write_text("not a submission")
    seen = []
    record = grade_folder(tmp_path, jobs=2, progress=lambda done, name: seen.append((done, name)))
    assert [(file["file"], file["points"]) for file in record["files"]] == [("ann.py", 5), ("bob.py", 0), ("eve.py", 0)]
    assert "ended its process (exit code 7)" in record["files"][2]["error"]
    assert sorted(name for _, name in seen) == ["ann.py", "bob.py", "eve.py"]
    assert record["max_points"] == sum(exercise.points for exercise in CATALOGUE.values())
    assert "1 of 2 answers pass" in str(table(record))
    json.dumps(record)
    one = grade_file(tmp_path / "ann.py")
    assert [entry["attempted"] for entry in one["exercises"]] == [True, False]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.py file"):
        grade_folder(tmp_path / "empty")


def test_grading_a_class_goes_on_where_it_stopped(tmp_path, monkeypatch):
    folder, out = tmp_path / "class", tmp_path / "grades.jsonl"
    folder.mkdir()
    for name in ("ann.py", "bob.py", "cem.py"):
        (folder / name).write_text(FILE)

    def stop(done, name):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade_folder(folder, jobs=1, out=out, progress=stop)
    assert len(out.read_text().splitlines()) == 2
    out.write_bytes(out.read_bytes() + b'{"key": "cut sh')  # as a full disk leaves it
    (folder / "bob.py").write_text(FILE.replace("3 * d_model", "2 * d_model"))
    graded = []
    monkeypatch.setattr(gradebook, "grade_file", lambda path, **o: graded.append(path.name) or grade_file(path, **o))
    record = grade_folder(folder, jobs=2, out=out)
    assert sorted(graded) == ["bob.py", "cem.py"]
    assert [(file["file"], file["points"]) for file in record["files"]] == [("ann.py", 5), ("bob.py", 0), ("cem.py", 5)]
    assert grade_folder(folder, out=out) == record
    assert sorted(graded) == ["bob.py", "cem.py"]
    with only_writer(out, tmp_path / ".grades.jsonl.lock"), pytest.raises(UserError, match="by another process; wait"):
        grade_folder(folder, out=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["class", "grades.jsonl"]
    with pytest.raises(UserError, match=r"is no plain file|cannot be written"):
        grade_folder(folder, out=Path(os.devnull))
    out.write_text('{"other": 1}\n')
    with pytest.raises(UserError, match="is not a gradebook"):
        grade_folder(folder, out=out)
