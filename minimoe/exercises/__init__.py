"""Exercises that grade themselves: write a pure function, and `check` says what is wrong in the idea.

`record` says what an exercise is, `lesson01` to `lesson05` hold them. `grade` calls an answer (within `limits`);
`values` and `gradients` compare what comes back (by the tolerances of `numeric`) and `messages` puts it into words.
`judging` gives each answer a clean process of its own (`judge_process`). `registry` lists, `notebook` is what a notebook
calls, `submission` reads a student's file.

    import minimoe.exercises as ex

    ex.exercises()["routing.topk"]       # the statement
    ex.check("routing.topk", my_topk)    # the verdict, printed; .passed and .points in what it returns
    ex.hint("routing.topk")              # the next of three hints
    ex.status()                          # what is done
"""

from minimoe.exercises.notebook import check, exercises, hint, status
from minimoe.exercises.record import Exercise, Result

__all__ = ["Exercise", "Result", "check", "exercises", "hint", "status"]
