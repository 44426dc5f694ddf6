"""Reading a student's file.

The file is Python and defines ``ANSWERS``, a dict from exercise id to function::

    def topk(affinities, bias, k):
        ...

    ANSWERS = {"routing.topk": topk}
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minimoe.errors import UserError
from minimoe.exercises.limits import Raised, TimeLimitExceeded, run_limited
from minimoe.exercises.messages import words_of

NAME = "minimoe_submission"  # of the module that the file becomes
FORM = 'ANSWERS = {"routing.topk": topk}'


def load_answers(path: Path, *, time_limit: int | float = 60.0) -> dict[str, Any]:
    """Runs the file and returns its ``ANSWERS``, whose ids are not looked up; what it prints goes to stderr.

    Args:
      path: a ``.py`` file in UTF-8. It may import files beside it.
      time_limit: seconds for running the file itself.

    Raises:
      UserError: if it cannot be read or run, or has no usable ``ANSWERS``.
    """
    if path.suffix == ".ipynb":
        raise UserError(f"{path} is a notebook; save its answers as a .py file that ends with {FORM}")
    try:
        source = path.read_bytes()
        code = compile(source, str(path), "exec")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; pass a .py file that defines ANSWERS") from error
    except (SyntaxError, ValueError) as error:  # wrong encoding and null bytes among them
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(f"{path} is not valid Python{where}: {reason}; run it with python first") from error
    module = types.ModuleType(NAME)
    module.__file__ = str(path)
    try:
        with _as_module(module, path), contextlib.redirect_stdout(sys.stderr):
            run_limited(lambda: exec(code, module.__dict__), time_limit)
    except TimeLimitExceeded as error:
        raise UserError(f"{path} did not finish within {time_limit:g} s; keep long work out of the file") from error
    except Raised as raised:
        kind, words = type(raised.error).__name__, words_of(raised.error)
        raise UserError(f"{path} raised {kind} when run: {words}; run it with python first") from raised
    return _answers(path, module)


def _answers(path: Path, module: types.ModuleType) -> dict[str, Any]:
    answers = getattr(module, "ANSWERS", None)
    if not isinstance(answers, dict) or not answers:
        found = "is missing" if answers is None else "is empty" if answers == {} else f"is a {type(answers).__name__}"
        raise UserError(f"ANSWERS {found} in {path}; it must be a dict from exercise id to function, as {FORM}")
    return dict(answers)


@contextlib.contextmanager
def _as_module(module: types.ModuleType, path: Path) -> Iterator[None]:
    """The module is importable by name while it runs, as dataclasses need, and its folder is searched first."""
    folder = str(path.resolve().parent)
    sys.modules[NAME] = module
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.modules.pop(NAME, None)
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
