"""Every answer is judged in a clean process: nothing it does, and no setting of the caller, changes another verdict."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from exercise_answers_01 import params_formula
from exercise_answers_02 import topk_lax

from minimoe import UserError
from minimoe.exercises import judging
from minimoe.exercises.gradebook import grade_file, grade_folder, table
from minimoe.exercises.registry import CATALOGUE


@pytest.fixture(scope="module")
def judges():
    judges = judging.Judges()
    yield judges
    judges.close()


SWITCH = "balance.switch_loss"


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
    assert judges.answer(SWITCH, switch_loss).passed


def leave_one_behind(path, levels):
    """A process that would sleep for a minute, in a session of its own; its number goes into a file."""
    if os.fork() == 0:
        os.setsid()
        if levels:
            leave_one_behind(path, levels - 1)
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(60)
        os._exit(0)
    while not os.path.exists(path) or len(Path(path).read_text().split()) <= levels:
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="children are forked on Linux alone")
@pytest.mark.parametrize(
    ("then", "aspect"), [("answers", None), ("leaves", "process"), ("ends its judge", "process"), ("sleeps", "time")]
)
def test_what_an_answer_starts_ends_with_it(judges, tmp_path, then, aspect):
    path = str(tmp_path / "numbers")

    def forks(probs, experts):
        if not os.path.exists(path):
            leave_one_behind(path, levels=1)
        if then == "leaves":
            os._exit(3)
        if then == "ends its judge":
            os.kill(os.getppid(), 9)
            time.sleep(600)
        if then == "sleeps":
            time.sleep(600)
        return switch_loss(probs, experts)

    began = time.monotonic()
    result = judges.answer(SWITCH, forks, time_limit=2.0 if then == "sleeps" else 30.0)
    assert time.monotonic() - began < 60
    assert (result.passed, result.aspect) == ((True, result.aspect) if aspect is None else (False, aspect)), result
    if then != "ends its judge":  # who could end them was ended
        numbers = [int(number) for number in Path(path).read_text().split()]
        assert len(numbers) == 2
        assert not [number for number in numbers if os.path.exists(f"/proc/{number}")]
    assert judges.answer(SWITCH, switch_loss).passed


def test_an_answer_brings_what_it_uses(judges):
    offset = np.float32(0)

    def helper(x):
        return x + offset

    assert judges.answer(SWITCH, lambda probs, experts: switch_loss(helper(probs), experts)).passed
    assert judges.answer("routing.topk", topk_lax).passed
    assert judges.answer(SWITCH, jax.jit(switch_loss)).passed
    lock = threading.Lock()
    with pytest.raises(UserError, match="cannot be carried"):
        judges.answer(SWITCH, lambda probs, experts: lock)


def test_prints_are_kept_and_reach_nobody(judges, capfd):
    def prints(probs, experts):
        print("hello")
        os.write(1, b"raw bytes that would spoil an answer on a pipe")
        return switch_loss(probs, experts)

    result = judges.answer(SWITCH, prints)
    assert result.passed
    assert "your function prints" in result.message
    assert capfd.readouterr().out == ""


def test_a_judging_process_that_was_ended_is_started_again(judges):
    assert judges.answer(SWITCH, switch_loss).passed
    judges._process.kill()
    judges._process.wait()
    assert judges.answer(SWITCH, switch_loss).passed


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
        assert judges.answer("sparse.params", params_formula).passed
        result = judges.answer("sparse.params", leaves)
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
