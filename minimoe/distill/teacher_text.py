"""Stores in files what a teacher writes below prompts. An interrupted run continues where it stopped."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from minimoe.data import LEVELS, Document, Tokenizer, check_answer, problem
from minimoe.distill.offline import sample_documents
from minimoe.errors import UserError
from minimoe.files import write_atomically
from minimoe.model import MoETransformer, model_fingerprint

PER_FILE = 1024  # texts; a kill loses at most these
# At 1 a teacher's text has its own distribution. Problems are solved at the temperature at which DeepSeek-R1 was sampled.
TEMPERATURES = {"text": 1.0, "reasoning": 0.6}


class Written(NamedTuple):
    """The texts of a teacher, and the seconds that writing them took."""

    documents: list[Document]
    seconds: float


def written(
    folder: Path,
    teacher: Callable[[], MoETransformer],
    name: str,
    prompts: list[Document],
    tokenizer: Tokenizer,
    max_new_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """The texts in ``folder``, and those that are missing, written now. Each file names its teacher by a fingerprint.

    Args:
      folder: is made if it is missing.
      teacher: gives the model, if there is something to write.
      name: ``"text"`` or ``"reasoning"``; decides the temperature.
      progress: called with the number of texts that are written, and of all.

    Raises:
      UserError: if texts are missing and those that are there are another teacher's, or a file is broken.
    """
    temperature = TEMPERATURES[name]
    model, fingerprint = None, ""
    found, seconds = [], 0.0
    for first in range(0, len(prompts), PER_FILE):
        wanted = prompts[first : first + PER_FILE]
        path = folder / f"{name}-t{temperature:g}-n{max_new_tokens}-{first:06d}.json"
        values = _read(path) if path.is_file() else {"documents": []}
        if len(values["documents"]) < len(wanted):  # a shorter list of prompts left a shorter file
            if model is None:
                model = teacher()
                fingerprint = model_fingerprint(model)
                check_teacher_of(folder, fingerprint)
            began = time.monotonic()
            texts = sample_documents(
                model,
                tokenizer,
                wanted,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=first,
                progress=_from(first, len(wanted), len(prompts), progress),
            )
            values = {"teacher": fingerprint, "seconds": time.monotonic() - began}
            values |= {"documents": [dataclasses.asdict(text) for text in texts]}
            write_atomically(path, json.dumps(values))
        seconds += values["seconds"]
        found += [Document(**document) for document in values["documents"][: len(wanted)]]
    return Written(found, seconds)


def check_teacher_of(folder: Path, fingerprint: str) -> None:
    """Raises if another teacher wrote the stored texts. Files of earlier versions name no teacher, and pass.

    Args:
      folder: of `written`; may be missing. fingerprint: `minimoe.model.model_fingerprint` of the teacher.

    Raises:
      UserError: naming the file and both teachers.
    """
    for path in sorted(folder.glob("*.json")):
        other = _read(path).get("teacher", fingerprint)
        if other != fingerprint:
            raise UserError(
                f"{path} was written by another teacher ({str(other)[:12]}...) than the one given "
                f"({fingerprint[:12]}...); give that teacher again or name another folder"
            )


def _read(path: Path) -> dict[str, Any]:
    """Reads a file that `written` wrote."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values["documents"], list):
            raise TypeError("documents is no list")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is broken ({type(error).__name__}: {error}); delete it to write it again") from error
    return values


def _from(first: int, num: int, of: int, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """A callback for ``num`` texts that begin at number ``first``."""
    return lambda done, total: progress(first + num * done // total, of)


def answered_right(solutions: list[Document], seed: int) -> list[bool]:
    """Which solutions of problems 0, 1, ... of ``seed``, levels in turn, end in the right answer."""
    return [
        check_answer(problem(index, LEVELS[index % len(LEVELS)], seed=seed), solution.text)
        for index, solution in enumerate(solutions)
    ]


def texts_of_solved(texts: list[Document], right: list[bool]) -> list[Document]:
    """Those texts, one for each problem, whose problem the teacher solved.

    Raises:
      UserError: if it solved none.
    """
    if not any(right):
        raise UserError(
            f"the teacher solved none of {len(right)} problems right; train it for longer, or take another teacher"
        )
    return [text for text, fits in zip(texts, right, strict=True) if fits]
