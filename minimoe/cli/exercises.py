"""``minimoe exercises``: list them, show one, give a hint, grade a file of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minimoe.console import Bar, messages, print_json, write_out
from minimoe.errors import UserError

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
    from minimoe.exercises.notebook import hint_text

    write_out(hint_text(id, level))


@app.command("grade")
def grade(
    path: Annotated[Path, typer.Argument(help="A .py file that defines ANSWERS, or a folder of such files.")],
    json: Json = False,
    time_limit: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds for each call of an answer; 20 by default.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Files graded at a time, for a folder.")] = 2,
    out: Annotated[
        Path | None, typer.Option(help="Of a folder: keep each verdict here, a line each; again: grade what is left.")
    ] = None,
) -> None:
    """Check every answer in a file, each in a process of its own; of a folder, every file.

    Exit code 0 if all that are written pass, 1 if not, 2 if the file is of no use. The file ends with
    ANSWERS = {"routing.topk": topk}. A function that raises NotImplementedError is not written yet. Of a folder, a file of
    no use is an entry with its error, and the exit code is 0. With --out, Ctrl-C loses nothing.

    A graded file cannot reach other processes, the network or your files by way of Python. That is no prison: grade
    strangers' files in a container.

    Example: minimoe exercises grade answers.py --json

    Example: minimoe exercises grade submissions --out grades.jsonl
    """
    from minimoe.exercises.gradebook import files_of, grade_file, grade_folder, table

    if out is not None and not path.is_dir():
        raise UserError(f"--out keeps the verdicts of a folder, and {path} is none; use --json > {out} for one file")
    if path.is_dir():
        with Bar("grade", len(files_of(path))) as bar:
            record = grade_folder(
                path, time_limit=time_limit, jobs=jobs, out=out, progress=lambda done, name: bar.update(done, name)
            )
    else:
        record = grade_file(path, time_limit=time_limit, show=lambda result: messages.print(str(result)))
    if json:
        print_json(record)
    else:
        write_out(str(table(record)))
    attempted = [entry for entry in record.get("exercises", []) if entry["attempted"]]
    if not path.is_dir() and not (attempted and all(entry["passed"] for entry in attempted)):
        raise typer.Exit(1)
