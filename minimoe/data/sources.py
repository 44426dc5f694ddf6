"""Which text a run reads, the bundled corpus or the user's own, and the few words about it that are kept with the run."""

from __future__ import annotations

import hashlib
from pathlib import Path

from minimoe.data.corpus import Document, corpus_hash, documents
from minimoe.data.user_text import load_text, printable


def choose_documents(text: Path | None) -> list[Document]:
    """Reads the text that a command was given.

    Args:
      text: the user's own file or folder; None for the bundled corpus.

    Returns:
      Documents of both splits.

    Raises:
      UserError: if ``text`` cannot be read; see `load_text`.
    """
    return documents() if text is None else load_text(text)


def describe_data(text: Path | None, chosen: list[Document]) -> dict[str, str]:
    """Name and SHA-256 of the text, to be stored with a run.

    Args:
      text: as given to `choose_documents`; the bundled corpus (None) has a hash of its own, `corpus_hash`.
      chosen: its documents.

    Returns:
      ``{"name": ..., "sha256": ...}``. The name is that of the file or folder, without where it lies.

    Example:
      >>> from minimoe.data import Document
      >>> describe_data(Path("notes.txt"), [Document("notes", "train", "notes.txt", "one")])["sha256"][:8]
      '0f67b09d'
    """
    if text is None:
        return {"name": "minimoe-corpus", "sha256": corpus_hash()}
    digest = hashlib.sha256()
    for document in chosen:
        digest.update(f"{document.domain}\0{document.split}\0{document.key}\0{document.text}\0".encode())
    return {"name": printable(text.name), "sha256": digest.hexdigest()}
