"""The doctor: what it finds on set-ups of every kind, what it says of this one, and its exit codes."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

import minimoe
from minimoe import doctor
from minimoe.cli import app
from minimoe.doctor import facts as looking
from minimoe.doctor import findings as judging

ROOT = Path(minimoe.__file__).parent.parent
NEED = {"name": "jax", "least": "0.8", "extra": "", "has": "0.10.2"}
HEALTHY = {
    "versions": {"python": "3.11.7", "minimoe": "0.1.0", "jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8"},
    "requirements": [NEED, {"name": "torch", "least": "2.6", "extra": "interop", "has": "2.13.0"}],
    "devices": {"platform": "cpu", "names": ["cpu:0 cpu"], "x64": False, "error": None},
    "accelerators": [],
    "cores": {"usable": 4, "machine": 4, "load": 0.3},
    "memory": {"total_bytes": 16e9, "available_bytes": 9e9},
    "cache": {"folder": "/c", "writable": True, "bytes": 1e8, "files": 9, "free_bytes": 5e10},
    "environment": {},
    "machine": {"cores": 4, "peak_flops": {"float32": 2e11, "bfloat16": 1e11}},
}


def changed(**parts):
    """Healthy facts with some values of some parts replaced."""
    merged = {name: HEALTHY[name] | new if isinstance(new, dict) else new for name, new in parts.items()}
    return HEALTHY | merged


def test_nothing_is_said_of_a_healthy_setup():
    assert doctor.diagnose(HEALTHY) == []
    assert doctor.diagnose({name: part for name, part in HEALTHY.items() if name != "machine"}) == []


@pytest.mark.parametrize(
    ("facts", "level", "words"),
    [
        (changed(versions={"python": "3.10.2"}), "repair", "Python 3.10.2 is too old; use Python 3.11"),
        (changed(requirements=[NEED | {"has": None}]), "repair", 'jax is not installed; pip install "jax>=0.8"'),
        (changed(requirements=[NEED | {"has": "0.7.9"}]), "repair", "jax 0.7.9 is older than 0.8"),
        (changed(requirements=[NEED | {"extra": "export", "has": None}]), "note", 'pip install "minimoe[export]"'),
        (changed(requirements=[NEED | {"extra": "export", "has": "0.1"}]), "note", "older than 0.8"),
        (changed(requirements=[]), "note", "not installed"),
        (changed(versions={"jax": "0.11.0"}), "note", "jax 0.11.0 is newer than 0.10.2"),
        (changed(devices={"platform": None, "error": "RuntimeError: no"}), "repair", "JAX does not start"),
        (changed(accelerators=["NVIDIA"]), "slow", "an accelerator is here (NVIDIA), and JAX uses the CPU"),
        (changed(devices={"platform": "gpu"}), "slow", 'set dispatch="ragged"'),
        (changed(devices={"x64": True}), "slow", "unset JAX_ENABLE_X64"),
        (changed(environment={"JAX_DISABLE_JIT": "1"}), "slow", "unset JAX_DISABLE_JIT"),
        (changed(cores={"usable": 1}), "slow", "may use 1 of 4 cores"),
        (changed(cores={"usable": 1, "machine": 1}), "slow", "one core"),
        (changed(cores={"load": 3.9}), "note", "other work keeps 3.9 of 4 cores busy"),
        (changed(environment={"NPROC": "1"}), "slow", "NPROC=1 keeps JAX from using 4 cores"),
        (changed(environment={"OMP_NUM_THREADS": "1"}), "note", "OMP_NUM_THREADS=1 slows PyTorch"),
        (changed(environment={"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}), "slow", "every matmul use one core"),
        (
            changed(environment={"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}),
            "note",
            "makes 8 devices of one processor",
        ),
        (changed(memory={"available_bytes": 5e8}), "repair", "0.5 GB of memory are free"),
        (changed(memory={"available_bytes": 2e9}), "note", "enough for nano, not for small"),
        (changed(cache={"folder": None}), "slow", "set MINIMOE_CACHE_DIR"),
        (changed(cache={"writable": False}), "slow", "the cache folder /c cannot be written"),
        (changed(cache={"free_bytes": 1e8}), "repair", "0.10 GB of disk are free"),
        (changed(cache={"bytes": 6e9}), "note", "holds 6.0 GB"),
        (changed(machine={"peak_flops": {"float32": 3e10}}), "slow", "7.5 GFLOP/s a core"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", value)[:30] if isinstance(value, str) else "",
)
def test_each_fault_is_found_alone_with_its_repair(facts, level, words):
    (finding,) = doctor.diagnose(facts)
    assert finding.level == level
    assert words in str(finding)


def test_what_must_be_repaired_comes_first():
    facts = changed(environment={"JAX_DISABLE_JIT": "1"}, versions={"python": "3.9", "jax": "1.0"})
    assert [finding.level for finding in doctor.diagnose(facts)] == ["repair", "slow", "note"]


def test_a_variable_that_is_off_is_not_blamed():
    off = {"JAX_DISABLE_JIT": "0", "NPROC": "8", "OMP_NUM_THREADS": "4", "XLA_FLAGS": "--xla_dump_to=x"}
    assert doctor.diagnose(changed(environment=off)) == []


def test_versions_are_those_of_the_project():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert {name: pinned[name] for name in judging.TESTED} == judging.TESTED
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={judging.LEAST_PYTHON}"
    assert set(judging.USES) == set(project["optional-dependencies"]) - {"dev"}


def test_facts_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("MINIMOE_CACHE_DIR", str(tmp_path / "new" / "cache"))
    facts = doctor.gather()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["versions"]["minimoe"] == minimoe.__version__
    assert 1 <= facts["cores"]["usable"] <= facts["cores"]["machine"]
    assert facts["devices"]["platform"] == "cpu"
    assert facts["cache"]["writable"]  # it is not there yet, but can be made
    assert not (tmp_path / "new").exists()  # and looking did not make it
    assert facts["environment"]["MINIMOE_CACHE_DIR"] == str(tmp_path / "new" / "cache")


def test_cache_folder_that_is_a_file_and_its_size(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("MINIMOE_CACHE_DIR", str(tmp_path))
    (tmp_path / "xla").mkdir()
    (tmp_path / "xla" / "program").write_bytes(b"x" * 1000)
    found = looking.cache()
    assert (found["bytes"], found["files"], found["writable"]) == (1000, 1, True)
    monkeypatch.setenv("MINIMOE_CACHE_DIR", str(tmp_path / "xla" / "program"))
    assert looking.cache()["writable"] is False
    monkeypatch.setenv("MINIMOE_CACHE_DIR", "")
    assert looking.cache()["folder"] is None


def test_a_cache_folder_below_one_that_may_not_be_read(tmp_path, monkeypatch):
    """Path's questions raise there (PermissionError); the doctor is asked because of such things and must answer."""

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "closed" / "xla"))
    for question in ("is_dir", "is_file", "exists", "stat"):
        monkeypatch.setattr(Path, question, refuse)
    found = looking.cache()
    assert (found["folder"], found["bytes"], found["files"]) == (str(tmp_path / "closed" / "xla"), 0, 0)


def test_requirements_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = looking.requirements()
    assert all(need["has"] for need in found if not need["extra"])
    core = {f"{need['name']}>={need['least']}" for need in found if not need["extra"]}
    assert core == set(project["dependencies"])


def test_command_says_what_is_there(capsys):
    assert app.run(["doctor", "--no-measure", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["usable"] is True
    assert "machine" not in record
    assert app.run(["doctor", "--no-measure"]) == 0
    shown = capsys.readouterr().out
    assert f"jax {record['versions']['jax']}" in " ".join(shown.split())


def test_command_ends_with_1_when_something_must_be_repaired(capsys, monkeypatch):
    old = [NEED | {"name": "flax", "least": "99"}]
    monkeypatch.setattr(looking, "requirements", lambda: old)
    assert app.run(["doctor", "--no-measure"]) == 1
    assert "repair: flax 0.10.2 is older than 99" in " ".join(capsys.readouterr().out.split())
