"""What a teacher writes below prompts, in files: written once, and continued where it stopped."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minimoe.console import Bar, counter
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer
    from minimoe.model import MoETransformer

PER_FILE = 1024  # texts; a kill loses at most these
# At 1 a teacher's text has its own distribution. Problems are solved at the temperature at which DeepSeek-R1 was sampled.
TEMPERATURES = {"text": 1.0, "reasoning": 0.6}


class Written(NamedTuple):
    """What a teacher wrote, and the seconds that it took when it did."""

    documents: list[Document]
    seconds: float


def written(
    folder: Path,
    teacher: Callable[[], MoETransformer],
    name: str,
    prompts: list[Document],
    tokenizer: Tokenizer,
    max_new_tokens: int,
) -> Written:
    """The texts in ``folder``, and those that are missing, written now.

    Args:
      teacher: gives the model, if there is something to write.
      name: ``"text"`` or ``"reasoning"``; decides the temperature.
    """
    from minimoe.data import Document
    from minimoe.distill import sample_documents
    from minimoe.files import write_atomically

    temperature = TEMPERATURES[name]
    folder.mkdir(parents=True, exist_ok=True)
    model = None
    found, seconds = [], 0.0
    for first in range(0, len(prompts), PER_FILE):
        wanted = prompts[first : first + PER_FILE]
        path = folder / f"{name}-t{temperature:g}-n{max_new_tokens}-{first:06d}.json"
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"documents": []}
        if len(values["documents"]) < len(wanted):  # a shorter list of prompts left a shorter file
            model = teacher() if model is None else model
            began = time.monotonic()
            with Bar(f"teacher writes {name}, {first}/{len(prompts)}", 1) as bar:
                texts = sample_documents(
                    model,
                    tokenizer,
                    wanted,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    seed=first,
                    progress=counter(bar),
                )
            values = {"seconds": time.monotonic() - began, "documents": [dataclasses.asdict(text) for text in texts]}
            write_atomically(path, json.dumps(values))
        seconds += values["seconds"]
        found += [Document(**document) for document in values["documents"][: len(wanted)]]
    return Written(found, seconds)


def answered_right(solutions: list[Document], seed: int) -> list[bool]:
    """Which solutions of problems 0, 1, ... of ``seed``, levels in turn, end in the right answer."""
    from minimoe.data import LEVELS, check_answer, problem

    return [
        check_answer(problem(index, LEVELS[index % len(LEVELS)], seed=seed), solution.text)
        for index, solution in enumerate(solutions)
    ]


def of_the_solved(texts: list[Document], right: list[bool]) -> list[Document]:
    """Those texts, one for each problem, whose problem the teacher solved.

    Raises:
      UserError: if it solved none.
    """
    if not any(right):
        raise UserError(
            f"the teacher solved none of {len(right)} problems right; train it for longer, or take another teacher"
        )
    return [text for text, fits in zip(texts, right, strict=True) if fits]
