"""``minimoe exercises``: list them, show one, give a hint, grade a file of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from minimoe.cli.console import messages, print_json, write_out

app = typer.Typer(help="Exercises of the lessons: list, show, hint, grade.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(help="Such as routing.topk; `minimoe exercises list` names all.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]


@app.command("list")
def list_exercises(json: Json = False) -> None:
    """All exercises, with lesson, difficulty, minutes and points.

    Example: minimoe exercises list
    """
    from minimoe.exercises import exercises

    if not json:
        write_out(str(exercises().table()))
        return
    fields = ("id", "lesson", "title", "signature", "difficulty", "minutes", "points")
    print_json({"exercises": [{name: getattr(e, name) for name in fields} for e in exercises().values()]})


@app.command("show")
def show(id: Id) -> None:
    """The statement of one exercise and its unfilled function.

    Example: minimoe exercises show routing.topk
    """
    from minimoe.exercises import exercises

    write_out(str(exercises()[id]))


@app.command("hint")
def give_hint(
    id: Id,
    level: Annotated[int, typer.Option(help="1 to 3: each says more than the one before.")] = 1,
) -> None:
    """One of the three hints of an exercise; never the solution.

    Example: minimoe exercises hint routing.topk --level 2
    """
    from minimoe.exercises import hint

    hint(id, level)


@app.command("grade")
def grade_file(
    path: Annotated[Path, typer.Argument(help="A .py file that defines ANSWERS, a dict from id to function.")],
    json: Json = False,
    time_limit: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds for each call of an answer; 20 by default.")
    ] = None,
) -> None:
    """Check every answer in a file. Exit code 0 if all that are written pass, 1 if not, 2 if the file is of no use.

    The file ends with ANSWERS = {"routing.topk": topk}. A function that raises NotImplementedError is not written yet.

    Example: minimoe exercises grade answers.py --json
    """
    from minimoe.exercises.submission import load_answers

    answers = load_answers(path)
    from minimoe.cli.console import start
    from minimoe.exercises import exercises
    from minimoe.exercises.grade import grade

    start()
    results = []
    for id, answer in answers.items():
        results.append(grade(exercises()[id], answer, time_limit=time_limit))
        messages.print(str(results[-1]), markup=False)
    record = _record(path, results)
    if json:
        print_json(record)
    else:
        write_out(str(_table(record)))
    attempted = [result for result in results if result.attempted]
    if not attempted or not all(result.passed for result in attempted):
        raise typer.Exit(1)


def _record(path: Path, results: list[Any]) -> dict[str, Any]:
    """What a gradebook reads: points of the file, and one entry an exercise, in the order of the file."""
    from minimoe import __version__
    from minimoe.exercises import exercises

    known = exercises()
    fields = ("id", "attempted", "passed", "points", "max_points", "aspect", "mistake", "message")
    return {
        "file": path.name,
        "minimoe": __version__,
        "points": sum(result.points for result in results),
        "max_points": sum(exercise.points for exercise in known.values()),
        "exercises": [
            {"lesson": known[result.id].lesson} | {name: getattr(result, name) for name in fields} for result in results
        ],
    }


def _table(record: dict[str, Any]) -> Any:
    from minimoe.exercises.registry import Table

    rows = []
    for entry in record["exercises"]:
        verdict = "passed" if entry["passed"] else "not passed" if entry["attempted"] else "not written"
        reason = entry["mistake"] or entry["aspect"] if entry["attempted"] else ""
        rows.append((entry["id"], verdict, f"{entry['points']}/{entry['max_points']}", reason))
    note = f"{record['points']} points of {record['max_points']} in all exercises"
    return Table(("exercise", "verdict", "points", "reason"), tuple(rows), note)
