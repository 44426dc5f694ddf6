"""Grades files of answers: one, or a folder of them, into what a gradebook reads."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minimoe.errors import UserError
from minimoe.exercises.judging import Judges
from minimoe.exercises.record import Result
from minimoe.exercises.registry import CATALOGUE, Table

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
    progress: Callable[[int, str], None] = lambda done, name: None,
) -> Record:
    """Judges every ``.py`` file of a folder, ``jobs`` at a time; a file of no use is an entry with its ``error``.

    Args:
      folder: one file a student. time_limit: as for `grade_file`.
      progress: called with (files done, the last one's name).

    Raises:
      UserError: if the folder holds no such file.
    """
    paths = sorted(folder.glob("*.py"))
    if not paths:
        raise UserError(f"{folder} holds no .py file; name a folder of files that define ANSWERS")
    mine, all_judges = threading.local(), []

    def grade_one(path: Path) -> Record:
        if not hasattr(mine, "judges"):
            mine.judges = Judges()
            all_judges.append(mine.judges)
        try:
            return grade_file(path, time_limit=time_limit, judges=mine.judges)
        except UserError as error:
            return {"file": path.name, "points": 0, "error": str(error), "exercises": []}

    records: dict[Path, Record] = {}
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(grade_one, path): path for path in paths}
        for future in concurrent.futures.as_completed(futures):
            records[futures[future]] = future.result()
            progress(len(records), futures[future].name)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for judges in all_judges:
            judges.close()
    return _summary() | {"folder": str(folder), "files": [records[path] for path in paths]}


def _summary() -> Record:
    from minimoe import __version__

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
