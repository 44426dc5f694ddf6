"""Grades files of answers: one, or a folder of them, into what a gradebook reads."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minimoe import __version__
from minimoe.errors import UserError
from minimoe.exercises.judging import JudgeFailed, Judges
from minimoe.exercises.record import Result
from minimoe.exercises.registry import CATALOGUE, Table
from minimoe.files import check_file, only_writer, write_atomically, writing

Record = dict[str, Any]


def grade_file(
    path: Path,
    *,
    time_limit: int | float | None = None,
    show: Callable[[Result], None] = lambda result: None,
    judges: Judges | None = None,
) -> Record:
    """Judges every answer of a student's file, each in a process of its own.

    Args:
      path: a ``.py`` file that defines ``ANSWERS``; see `minimoe.exercises.submission`.
      time_limit: seconds for each call of an answer; the exercise's own by default.
      show: called with each verdict. judges: the process to use; None starts one and ends it.

    Returns:
      Points of the file, and one entry an exercise, in the order of the file.

    Raises:
      UserError: if the file is of no use.
    """
    own = judges is None
    judges = Judges() if judges is None else judges
    results = []
    try:
        for id in judges.ids(path):
            results.append(judges.file(path, id, time_limit=time_limit))
            show(results[-1])
    finally:
        if own:
            judges.close()
    return _record(path, results)


def grade_folder(
    folder: Path,
    *,
    time_limit: int | float | None = None,
    jobs: int = 2,
    out: Path | None = None,
    progress: Callable[[int, str], None] = lambda done, name: None,
) -> Record:
    """Judges every ``.py`` file of a folder, ``jobs`` at a time; a file of no use is an entry with its ``error``.

    Args:
      folder: one file a student. time_limit: as for `grade_file`.
      out: a file of lines of JSON, one entry each, written as soon as the file is graded. Files whose entry it holds
        already are not graded again, unless they, the time limit or the version of minimoe have changed.
      progress: called with (files done, the last one's name).

    Raises:
      UserError: if the folder holds no such file, or ``out`` cannot be written, holds something else, or is
        being written by another grading.
    """
    paths = files_of(folder)
    lock = contextlib.nullcontext() if out is None else only_writer(out, out.with_name(f".{out.name}.lock"))
    with lock:
        entries = _grade_all(paths, _Kept(out, time_limit), time_limit, jobs, progress)
    return _summary() | {"folder": str(folder), "files": entries}


def _grade_all(
    paths: list[Path],
    kept: _Kept,
    time_limit: int | float | None,
    jobs: int,
    progress: Callable[[int, str], None],
) -> list[Record]:
    """The entries of the files, in their order."""
    mine, all_judges = threading.local(), []

    def grade_one(path: Path) -> Record:
        if not hasattr(mine, "judges"):
            mine.judges = Judges()
            all_judges.append(mine.judges)
        try:
            return grade_file(path, time_limit=time_limit, judges=mine.judges)
        except JudgeFailed:
            raise
        except UserError as error:
            return {"file": path.name, "points": 0, "error": str(error), "exercises": []}

    records: dict[Path, Record] = {path: entry for path in paths if (entry := kept.find(path))}
    if records:
        progress(len(records), "graded before")
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(grade_one, path): path for path in paths if path not in records}
        for future in concurrent.futures.as_completed(futures):
            path = futures[future]
            records[path] = future.result()
            kept.add(path, records[path])
            progress(len(records), path.name)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for judges in all_judges:  # what still runs after Ctrl-C ends with them
            judges.close()
    return [records[path] for path in paths]


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that are graded.

    Raises:
      UserError: if there are none.
    """
    paths = sorted(path for path in folder.glob("*.py") if path.is_file())
    if not paths:
        raise UserError(f"{folder} holds no .py file; name a folder of files that define ANSWERS")
    return paths


class _Kept:
    """The entries of earlier and of this grading, in a file of lines of JSON.

    Args:
      path: the file, which may be new; None to keep nothing.
      time_limit: seconds for each call, or None: the exercises' own.
    """

    def __init__(self, path: Path | None, time_limit: int | float | None):
        self.path, self.time_limit = path, time_limit
        self.entries: dict[str, Record] = {}
        self._keys: dict[Path, str] = {}
        if path is None:
            return
        check_file(path)
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no plain file; name a new one")
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        if lines and lines[-1]:  # the last line was cut short by a kill or a full disk
            with writing(path):
                write_atomically(path, b"".join(line + b"\n" for line in lines[:-1]))
        for line in lines[:-1]:
            try:
                kept = json.loads(line)
                self.entries[kept["key"]] = kept["entry"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path} holds something that is not a gradebook; name a new file") from None

    def find(self, path: Path) -> Record | None:
        """The entry of a file as it is now; to be asked before `add`."""
        self._keys[path] = self._key(path)
        return self.entries.get(self._keys[path])

    def add(self, path: Path, entry: Record) -> None:
        """Appends an entry; it is in the file when this returns."""
        if self.path is None:
            return
        with writing(self.path), open(self.path, "ab") as file:
            file.write(json.dumps({"key": self._keys[path], "entry": entry}).encode() + b"\n")

    def _key(self, path: Path) -> str:
        """What an entry depends on."""
        content = b""
        with contextlib.suppress(OSError):
            content = path.read_bytes()
        about = json.dumps([path.name, __version__, self.time_limit]).encode()
        return hashlib.sha256(about + b"\n" + content).hexdigest()


def _summary() -> Record:
    return {"minimoe": __version__, "max_points": sum(exercise.points for exercise in CATALOGUE.values())}


def _record(path: Path, results: list[Result]) -> Record:
    fields = ("id", "attempted", "passed", "points", "max_points", "aspect", "mistake", "message")
    entries = [
        {"lesson": CATALOGUE[result.id].lesson} | {name: getattr(result, name) for name in fields} for result in results
    ]
    return {"file": path.name, "points": sum(result.points for result in results)} | _summary() | {"exercises": entries}


def table(record: Record) -> Table:
    """A record of `grade_file` as a line an exercise, one of `grade_folder` as a line a file."""
    if "files" in record:
        files: list[tuple[str, ...]] = []
        for file in record["files"]:
            passed = sum(entry["passed"] for entry in file["exercises"])
            state = file.get("error") or f"{passed} of {len(file['exercises'])} answers pass"
            files.append((file["file"], f"{file['points']}/{record['max_points']}", state))
        return Table(("file", "points", "result"), tuple(files))
    rows = []
    for entry in record["exercises"]:
        verdict = "passed" if entry["passed"] else "not passed" if entry["attempted"] else "not written"
        reason = entry["mistake"] or entry["aspect"] if entry["attempted"] else ""
        rows.append((entry["id"], verdict, f"{entry['points']}/{entry['max_points']}", reason))
    note = f"{record['points']} points of {record['max_points']} in all exercises"
    return Table(("exercise", "verdict", "points", "reason"), tuple(rows), note)
