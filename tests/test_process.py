"""Memory that the process keeps, compiled programs that the disk keeps, and commands that import nothing of the folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import minimoe

ROOT = Path(minimoe.__file__).parent.parent


def python(*arguments: str, cwd: Path = ROOT, **environment: str) -> str:
    """Output of another Python with this package, whose malloc nobody has configured but ``environment``."""
    from minimoe.process import CHOICES

    clean = {name: value for name, value in os.environ.items() if name not in CHOICES}
    clean |= {"PYTHONPATH": str(ROOT)} | environment
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=clean)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def has_glibc() -> bool:
    from minimoe.process import _has_glibc

    return _has_glibc()


RESIDENT_AFTER_FREEING_200_MB = """
import sys
from minimoe.process import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
block = b"1" * 200_000_000
del block
print(int(open("/proc/self/statm").read().split()[1]) * 4096 // 10**6)
"""


@pytest.mark.skipif(not has_glibc(), reason="mallopt is glibc's")
def test_freed_memory_stays_with_the_process():
    kept, returned = (int(python("-c", RESIDENT_AFTER_FREEING_200_MB, how)) for how in ("keep", "return"))
    assert kept > 200 > 100 > returned


@pytest.mark.skipif(not has_glibc(), reason="mallopt is glibc's")
def test_it_takes_addresses_and_no_memory():
    """Huge pages are asked for in advance: gigabytes of addresses, of which none is used before it is needed."""
    code = RESIDENT_AFTER_FREEING_200_MB.replace("200_000_000", "1")
    assert int(python("-c", code, "keep")) < 60


SAY = "from minimoe.process import keep_memory as k; first = k(); assert k() is first; print(first.kept, first.why)"


@pytest.mark.skipif(not has_glibc(), reason="mallopt is glibc's")
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "True glibc keeps it"),
        ({"GLIBC_TUNABLES": "glibc.cpu.x86_ibt=off"}, "True glibc keeps it"),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, "False the environment variable GLIBC_TUNABLES configures"),
        ({"MALLOC_ARENA_MAX": "4"}, "False the environment variable MALLOC_ARENA_MAX configures"),
    ],
    ids=str,
)
def test_it_says_what_it_did_and_respects_the_users_choice(environment, said):
    assert python("-c", SAY, **environment).startswith(said)


@pytest.mark.parametrize("error", [AttributeError, ValueError, OSError])
def test_without_glibc_nothing_happens(monkeypatch, error):
    from minimoe import process

    def confstr(name):
        raise error(name)

    monkeypatch.setattr(os, "confstr", confstr, raising=False)
    assert process._keep_memory() == process.MemoryKept(False, "this system's C library is not glibc")


# Commands and the folder they are started in


def test_commands_import_nothing_of_the_current_folder(tmp_path):
    """As the installed script does it: the folder of the script is searched, the current one is not."""
    script, here = tmp_path / "bin" / "minimoe", tmp_path / "here"
    for folder in (script.parent, here / "minimoe"):
        folder.mkdir(parents=True)
    script.write_text("from minimoe.cli import main\n\nmain()\n", encoding="utf-8")
    for name in ("random.py", "types.py", "typing.py", "minimoe/__init__.py", "minimoe/__main__.py"):
        (here / name).write_text(f"raise SystemExit('imported {name} of the current folder')\n", encoding="utf-8")
    assert python(str(script), "--version", cwd=here) == f"minimoe {minimoe.__version__}"


def test_commands_keep_the_flags_of_the_interpreter(tmp_path):
    script = tmp_path / "minimoe"
    script.write_text(
        "import atexit, sys\nfrom minimoe.cli import main\n"
        "atexit.register(lambda: print(sys.flags.optimize, sys.flags.dev_mode, sys.flags.bytes_warning))\nmain()\n",
        encoding="utf-8",
    )
    assert python("-O", "-X", "dev", "-b", str(script), "--version").splitlines()[-1] == "1 True 1"


# The compilation cache


@pytest.fixture
def no_cache(monkeypatch):
    """JAX's option unset, and restored afterwards; no variable chooses a folder."""
    import jax

    before = jax.config.values["jax_compilation_cache_dir"], jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", None)
    for name in ("JAX_COMPILATION_CACHE_DIR", "MINIMOE_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def kept_programs():
    """What `keep_compiled_programs` returns, which is also what JAX was told."""
    import jax

    from minimoe.process import keep_compiled_programs

    folder = keep_compiled_programs()
    assert jax.config.values["jax_compilation_cache_dir"] == (None if folder is None else str(folder))
    return folder


def test_programs_are_kept_in_the_chosen_folder(no_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMOE_CACHE_DIR", str(tmp_path / "new" / "cache"))
    assert kept_programs() == tmp_path / "new" / "cache" / "xla"
    assert list((tmp_path / "new" / "cache" / "xla").iterdir()) == []


@pytest.mark.parametrize("chosen", ["", "  "])
def test_an_empty_choice_keeps_nothing(no_cache, tmp_path, monkeypatch, chosen):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIMOE_CACHE_DIR", chosen)
    assert kept_programs() is None
    assert list(tmp_path.iterdir()) == []


def test_without_a_home_nothing_is_kept(no_cache, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert kept_programs() is None


def test_a_home_that_is_not_there_is_not_made(no_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "nobody")
    assert kept_programs() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file/cache", "nul\0l", "n" * 300])
def test_a_folder_that_cannot_be_made_is_skipped(no_cache, tmp_path, monkeypatch, name):
    from minimoe import process

    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setattr(process, "cache_folder", lambda: tmp_path / name)
    assert kept_programs() is None


def test_a_folder_that_cannot_be_written_is_skipped(no_cache, tmp_path, monkeypatch):
    def refuse(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setenv("MINIMOE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(Path, "touch", refuse)
    assert kept_programs() is None


def test_the_users_cache_is_left_alone(no_cache, monkeypatch, tmp_path):
    import jax

    from minimoe.process import keep_compiled_programs

    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert keep_compiled_programs() is None
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path)
