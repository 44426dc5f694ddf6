"""Exercises that grade themselves: write a pure function, and `check` says what is wrong in the idea.

`record` says what an exercise is, `lesson01` to `lesson09` hold them, `registry` lists them. `calls` runs an answer
(within `limits`) and knows no solution. `grade` compares what came back: `values` and `gradients`, by the tolerances of
`numeric`; `messages` puts it into words. `judging` gives each answer a clean process of its own (`judge_process`), under
a `guard`; only numbers come back from there (`wire`). `notebook` is what a notebook calls, `submission` reads a student's
file, `gradebook` grades whole classes.

    import minimoe.exercises as ex

    ex.exercises()["routing.topk"]       # the statement
    ex.check("routing.topk", my_topk)    # the verdict, printed; .passed and .points in what it returns
    ex.hint("routing.topk")              # the next of three hints
    ex.status()                          # what is done
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minimoe.exercises.notebook import check, exercises, hint, status
    from minimoe.exercises.record import Exercise, Result

__all__ = ["Exercise", "Result", "check", "exercises", "hint", "status"]

# Loaded on first use: the process that runs answers imports from here, and must not have the solutions in its memory.
_HOME = {"Exercise": "record", "Result": "record"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'notebook')}"), name)
