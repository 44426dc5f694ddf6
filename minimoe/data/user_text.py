"""A user's own text, a file or a folder, as documents split into training and validation."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from minimoe.data.corpus import SPLITS, Document, split_of
from minimoe.errors import UserError
from minimoe.files import named_path

SUFFIXES = (".txt", ".md", ".py")
MIN_PARTS = 20  # blank-line-separated parts from which a file is cut into several documents
DOCUMENT_BYTES = 4000  # roughly, a chapter of the bundled Bibles


def load_text(path: str | os.PathLike[str], split: str | None = None) -> list[Document]:
    """Reads a file or a folder of plain text.

    A *file* is one domain, named after the file. With at least 20 parts between blank lines it is cut, at blank lines,
    into documents of about 4,000 bytes; joined again they are the file. A *folder* is read with all its subfolders
    (hidden ones left out): every ``.txt``, ``.md`` and ``.py`` file is a document, the first-level subfolder is its
    domain, and files directly inside take the folder's own name. Blank files in a folder are skipped. ``\\r\\n``
    becomes ``\\n`` and a byte-order mark is dropped.

    Args:
      path: of the file or the folder.
      split: None divides by the corpus's rule, 10% by hash of the key, and then moves one document if a split would be
        empty; a lone document is cut in two near 90%. Equal documents go where the first of them goes, so that the
        model is not scored on text that it was trained on; `copies` names them. ``"train"`` or ``"val"`` puts all of
        the text there: text that the model never saw is validation from end to end.

    Returns:
      Documents in the order of the file, or of the sorted paths. In names, bytes that are not UTF-8 are ``\\xe9``.

    Raises:
      UserError: if the path does not exist or cannot be read, or the text is blank, binary (it holds a NUL byte) or not
        UTF-8 (naming the offset of the byte).

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "notes.txt"
      ...     _ = path.write_text("one two three four five six seven eight nine ten")
      ...     [(document.split, document.text) for document in load_text(path)]
      [('train', 'one two three four five six seven eight '), ('val', 'nine ten')]
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"split {split!r} is not known; choose one of {', '.join(SPLITS)}, or None to divide the text")
    path = named_path(path)
    if not os.path.exists(path):  # unlike Path.exists, False for a name that the system cannot hold
        raise UserError(f"{path}: no such file or folder; check the path")
    found = _read_folder(path) if path.is_dir() else _read_single(path)
    if split is not None:
        return [dataclasses.replace(document, split=split) for document in found]
    return _divided(found)


def copies(found: Sequence[Document]) -> list[list[str]]:
    """The keys of equal documents: a list for each text that is there more than once. White space does not count.

    Example:
      >>> copies([Document("a", "train", key, text) for key, text in (("x", "one"), ("y", "two"), ("z", "one\\n"))])
      [['x', 'z']]
    """
    return [[document.key for document in group] for group in _groups(found) if len(group) > 1]


def _groups(found: Sequence[Document]) -> list[list[Document]]:
    """Equal documents together, in order of first appearance."""
    groups: dict[bytes, list[Document]] = {}
    for document in found:
        groups.setdefault(_digest(document), []).append(document)
    return list(groups.values())


def _digest(document: Document) -> bytes:
    return hashlib.sha256(" ".join(document.text.split()).encode()).digest()


def _read_single(path: Path) -> list[Document]:
    text = _read_text(path)
    if not text.strip():
        raise UserError(f"{path}: the file is empty or blank; give a file with text")
    pieces = cut_at_blank_lines(text)
    name = printable(path.name)
    keys = [name] if len(pieces) == 1 else [f"{name}#{i}" for i in range(len(pieces))]
    return [Document(printable(path.stem), split_of(key), key, piece) for key, piece in zip(keys, pieces, strict=True)]


def _read_folder(folder: Path) -> list[Document]:
    found = []
    own_name = printable(folder.resolve().name) or "text"
    for file in _text_files(folder):
        text = _read_text(file)
        if text.strip():
            parts = [printable(part) for part in file.relative_to(folder).parts]
            key = "/".join(parts)
            found.append(Document(parts[0] if len(parts) > 1 else own_name, split_of(key), key, text))
    if not found:
        raise UserError(
            f"{folder}: no text in any {', '.join(SUFFIXES)} file of this folder; give a folder that has some"
        )
    return found


def printable(name: str) -> str:
    """The name of a file as text that can be stored and hashed: bytes that are not UTF-8 become ``\\xe9``.

    Example:
      >>> print(printable(os.fsdecode(b"caf\\xe9.txt")))
      caf\\xe9.txt
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _text_files(folder: Path) -> Iterator[Path]:
    """Sorted, so that the documents come in one order on every file system; links to folders are not followed."""
    for parent, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__pycache__")
        named = (Path(parent, name) for name in sorted(files) if name.lower().endswith(SUFFIXES) and name[0] != ".")
        yield from (path for path in named if path.is_file() or not path.exists())  # of a pipe nobody knows the end


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if (offset := raw.find(b"\0")) >= 0:
        raise UserError(f"{path}: byte {offset} is NUL, so this is a binary file or UTF-16; give plain UTF-8 text")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8"
        raise UserError(f"{path}: {where}; save the file as UTF-8") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def cut_at_blank_lines(text: str) -> list[str]:
    """Cuts a long text into pieces of about `DOCUMENT_BYTES` at blank lines; a short one stays whole.

    Nothing is lost: ``"".join(pieces) == text``, so bytes counted on documents are bytes of the file.

    Example:
      >>> len(cut_at_blank_lines("one paragraph\\n\\nanother"))
      1
      >>> [len(piece) for piece in cut_at_blank_lines("a line of text\\n\\n" * 600)]
      [4000, 5600]
    """
    ends = [match.end() for match in re.finditer(r"\n(?:[ \t]*\n)+", text)]
    parts = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    parts = [part for part in parts if part]
    if len(parts) < MIN_PARTS:
        return [text]
    pieces, current, size = [], [], 0
    for part in parts:
        current.append(part)
        size += len(part.encode())
        if size >= DOCUMENT_BYTES:
            pieces.append("".join(current))
            current, size = [], 0
    if pieces and size < DOCUMENT_BYTES // 2:  # a short rest would make a poor document: it joins the last one
        current, pieces = [pieces[-1], *current], pieces[:-1]
    return [*pieces, "".join(current)]


def _divided(found: list[Document]) -> list[Document]:
    """Puts equal documents on one side; then moves or cuts one text if training or validation would be empty."""
    split = {_digest(group[0]): group[0].split for group in _groups(found)}
    if len(split) == 1:  # cut at one place: copies may differ in their white space
        return [part for one in found for part in _cut_in_two(dataclasses.replace(one, text=found[0].text))]
    if len(set(split.values())) == 1:
        split[_digest(found[-1])] = "val" if "train" in split.values() else "train"
    return [dataclasses.replace(document, split=split[_digest(document)]) for document in found]


def _cut_in_two(document: Document) -> list[Document]:
    """Cuts after the last line, else word, that ends between 50% and 90% of the bytes, else after a character."""
    raw = document.text.encode()
    half, target = len(raw) // 2, len(raw) * 9 // 10
    cut = 1 + raw.rfind(b"\n", half, target) or 1 + raw.rfind(b" ", half, target) or target
    while raw[cut] & 0xC0 == 0x80:  # never inside a UTF-8 character
        cut -= 1
    head, tail = raw[:cut].decode(), raw[cut:].decode()
    if not (head.strip() and tail.strip()):
        return [dataclasses.replace(document, split="train")]
    domain, key = document.domain, document.key
    return [Document(domain, "train", f"{key}#train", head), Document(domain, "val", f"{key}#val", tail)]
