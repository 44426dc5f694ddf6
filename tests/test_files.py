"""Files are whole or not there, on the disk, and every disk error is one line; folders are refused or made; one writes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from minimoe import UserError
from minimoe.files import (
    LOCK_FILE,
    UNFINISHED,
    check_file,
    check_folder,
    disk_error,
    only_writer,
    prepare_folder,
    write_atomically,
    writing,
)

resource = pytest.importorskip("resource", reason="Windows has no file-size limits")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_files_only():
    """Files end at a thousand bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("content", ["é\r\n", b"\x00\xff", ""])
def test_content_arrives_as_it_is(content, tmp_path):
    path = write_atomically(tmp_path / "new" / "folder" / "file", content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(path.parent) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_longest_name_works(tmp_path):
    assert write_atomically(tmp_path / ("n" * 255), "x").read_text() == "x"


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path, monkeypatch):
    done = []
    fsync, move = os.fsync, os.replace

    def watched(handle):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    monkeypatch.setattr("os.fsync", watched)
    monkeypatch.setattr("os.replace", lambda a, b: (done.append("rename"), move(a, b)))
    write_atomically(tmp_path / "file", "x")
    assert done == ["file", "rename", "folder"]


def test_a_file_that_does_not_fit_leaves_the_old_one_and_one_line(tmp_path, small_files_only):
    path = write_atomically(tmp_path / "file", "old")
    with pytest.raises(UserError, match=r"file cannot be written: .* larger than this process .*ulimit") as caught:
        write_atomically(path, "x" * 5000)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    with pytest.raises(UserError, match="cannot be written"):
        write_atomically(tmp_path / "new" / "below" / "file", "x" * 5000)
    assert names(tmp_path) == ["file"]


REASONS = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk quota is used up; make room",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "no permission; change the permissions",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EIO: "the disk reports an error; choose another disk",
    errno.ENODEV: f"{os.strerror(errno.ENODEV)}; choose another folder",
}


@pytest.mark.parametrize("code", REASONS)
def test_every_disk_error_says_path_reason_and_repair(code):
    with pytest.raises(UserError) as caught, writing("a/path"):
        raise OSError(code, os.strerror(code))
    assert str(caught.value).startswith(f"a/path cannot be written: {REASONS[code]}")


def test_errors_of_other_libraries_are_understood():
    full = os.strerror(errno.ENOSPC)
    caused = RuntimeError("saving failed")
    caused.__cause__ = OSError(errno.ENOSPC, full)
    for error in (
        SafetensorError(f"Error while serializing: I/O error: {full} (os error 28)"),
        ValueError(f'INTERNAL: Error opening "zarr" driver: {full} [source locations=...]'),
        ExceptionGroup("several", [ValueError("x"), caused]),
    ):
        assert disk_error(error).errno == errno.ENOSPC
    assert disk_error(ValueError("shapes differ")) is None
    with pytest.raises(ValueError, match="shapes differ"), writing("a/path"):
        raise ValueError("shapes differ")
    with pytest.raises(UserError, match=r"^mine$"), writing("a/path"):
        raise UserError("mine")


def test_an_array_that_numpy_cuts_short_is_told_apart(tmp_path, small_files_only):
    """As the GGUF writer on a full disk: the error of `tofile` has no number."""
    with (
        pytest.raises(
            UserError, match=r"^a/path cannot be written: a file was cut short, as on a full disk.*make room"
        ),
        writing("a/path"),
        (tmp_path / "array").open("wb") as file,
    ):
        np.zeros(100_000).tofile(file)


def test_a_folder_that_vanishes_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"runs cannot be written: the folder is gone; make it again"), writing("runs"):
        (tmp_path / "gone" / "file").write_text("x")


def is_ours(folder: Path) -> bool:
    return (folder / "ours").is_file()


def test_folders_are_refused_or_made(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.doc").write_text("years of work")
    bad = {
        "file": "file is a file; name a folder",
        "file/below": "below lies below .*file, which is a file",
        "foreign": "foreign holds something that is not a run; name a folder that is new or empty",
        "x" * 300: "the name is too long; choose a shorter one",
        "x/" + "y" * 300: "the name is too long",
    }
    before = sorted(tmp_path.rglob("*"))
    for name, message in bad.items():
        for function in (check_folder, prepare_folder):
            with pytest.raises(UserError, match=message):
                function(tmp_path / name, is_ours, "a run")
    check_folder(tmp_path / "new" / "below", is_ours, "a run")
    assert sorted(tmp_path.rglob("*")) == before
    for name in ("new/below", "caf\udce9", "[v1]"):
        prepare_folder(tmp_path / name, is_ours, "a run")
        assert names(tmp_path / name) == []


def test_a_file_that_cannot_be_written_is_known_before(tmp_path):
    (tmp_path / "file").write_text("")
    for name, message in {
        ".": "it is a folder; choose another name",
        "file/below": "file is a file; name a folder",
        "x" * 300: "the name is too long",
    }.items():
        with pytest.raises(UserError, match=message):
            check_file(tmp_path / name)
    check_file(tmp_path / "new" / "file")
    check_file(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        check_file(Path("/proc/record.json"))
    assert names(tmp_path) == ["file"]


def test_what_a_killed_process_left_does_not_count(tmp_path):
    for name in (f"{UNFINISHED}abc", LOCK_FILE):
        (tmp_path / name).write_text("half")
    prepare_folder(tmp_path, is_ours, "a run")
    (tmp_path / "ours").write_text("")
    (tmp_path / "notes").write_text("")
    prepare_folder(tmp_path, is_ours, "a run")


def test_one_process_writes_and_a_kill_frees_the_folder(tmp_path):
    hold = "import sys, time; from pathlib import Path; from minimoe.files import only_writer\n"
    hold += "with only_writer(Path(sys.argv[1])):\n print('held', flush=True)\n time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"is being written by another process; wait until it is done"):  # noqa: SIM117
            with only_writer(tmp_path):
                pass
        assert names(tmp_path) == [LOCK_FILE]
        other.send_signal(signal.SIGKILL)
    with only_writer(tmp_path) as locked:
        assert locked
    assert names(tmp_path) == []


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with only_writer(tmp_path) as locked, only_writer(tmp_path) as too:
        assert not locked
        assert not too
