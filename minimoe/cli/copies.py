"""What ``minimoe train`` and ``minimoe distill`` say about files that are equal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minimoe.console import messages

if TYPE_CHECKING:
    from minimoe.data import Document

NAMED = 3  # copies of the first text that are named


def tell_copies(text: Path | None, documents: Sequence[Document]) -> None:
    """One line on stderr if a text of the user's is there more than once."""
    from minimoe.data.user_text import copies

    groups = copies(documents) if text is not None else []
    if not groups:
        return
    first = ", ".join(groups[0][:NAMED]) + (", ..." if len(groups[0]) > NAMED else "")
    what = "1 text is" if len(groups) == 1 else f"{len(groups)} texts are"
    messages.print(
        f"{text}: {what} there more than once (such as {first}); all copies of a text are either in training or in "
        "validation"
    )
