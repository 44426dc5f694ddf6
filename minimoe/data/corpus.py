"""The text: six domains that travel with the package, or a user's own files, as whole documents.

A document is the unit of everything here: of the split into training and validation, of the end-of-text tokens between
pieces, and of evaluation. ``corpus/PROVENANCE.md`` says where each domain comes from and under which licence.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from importlib import resources
from typing import Any

from minimoe.errors import UserError

DOMAINS = ("shakespeare", "bible_en", "bible_es", "austen", "python", "math")
SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class Document:
    """One whole piece of text: a scene, a chapter, a Python module, a section of theorems.

    Args:
      domain: the kind of text, one of `DOMAINS` for the bundled corpus.
      split: ``"train"`` or ``"val"``; see `split_of`.
      key: its name, unique in its domain. The two Bibles share keys: one chapter, two languages.
      text: with ``\\n`` line ends.
    """

    domain: str
    split: str
    key: str
    text: str

    @property
    def num_bytes(self) -> int:
        """Length of the text in UTF-8, in bytes: the denominator of bits per byte."""
        return len(self.text.encode())


def documents(domain: str | None = None, split: str | None = None) -> list[Document]:
    """The bundled corpus, in source order.

    Args:
      domain: one of `DOMAINS`, or None for all six.
      split: ``"train"``, ``"val"`` or None for both.

    Raises:
      UserError: for an unknown domain or split, listing the known ones.

    Example:
      >>> documents("bible_en", "train")[0].text.splitlines()[0]
      'Genesis 1'
    """
    if domain is not None and domain not in DOMAINS:
        raise UserError(f"domain {domain!r} is not in the corpus; choose one of {', '.join(DOMAINS)}")
    if split is not None and split not in SPLITS:
        raise UserError(f"split {split!r} is not known; choose one of {', '.join(SPLITS)}")
    wanted = DOMAINS if domain is None else (domain,)
    return [document for name in wanted for document in _read_domain(name) if split in (None, document.split)]


def split_of(key: str) -> str:
    """``"val"`` for one key in ten, by hash, else ``"train"``: no list to keep, and no way to choose the easy ones.

    Example:
      >>> split_of("austen/prideprejudice/1")
      'train'
    """
    digest = hashlib.sha256(f"{manifest()['split_salt']}/{key}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") % 100 < 10 else "train"


def verify() -> None:
    """Checks every bundled file against the sha256 in the manifest.

    Raises:
      UserError: naming the first file that is missing or changed.
    """
    for file, expected in _file_hashes().items():
        try:
            found = hashlib.sha256(_read_file(file)).hexdigest()
        except OSError:
            raise UserError(f"corpus file {file} is missing or cannot be read; install minimoe again") from None
        if found != expected:
            message = f"corpus file {file} has sha256 {found[:12]}..., the manifest says {expected[:12]}..."
            raise UserError(f"{message}; it was changed, install minimoe again")


def corpus_hash() -> str:
    """One sha256 that names the whole corpus, to record beside every model trained on it.

    It is taken over the manifest's hashes, so it is instant; `verify` ties the manifest to the text.
    """
    lines = "".join(f"{digest}  {file}\n" for file, digest in _file_hashes().items())
    return hashlib.sha256(lines.encode()).hexdigest()


@functools.cache
def manifest() -> dict[str, Any]:
    """``corpus/manifest.json``: the split rule, and size, hash, source and licence of every domain."""
    return json.loads(_read_file("manifest.json"))


def _file_hashes() -> dict[str, str]:
    entries = [manifest()["domains"][domain][split] for domain in DOMAINS for split in SPLITS]
    return {entry["file"]: entry["sha256"] for entry in entries}


@functools.cache
def _read_domain(domain: str) -> tuple[Document, ...]:
    """All documents of one domain. Offsets in the index are bytes, so the files are cut before they are decoded."""
    raw = {split: _read_file(f"{domain}/{split}.txt") for split in SPLITS}
    found = []
    for line in _read_file(f"{domain}/index.tsv").decode().splitlines()[1:]:
        split, offset, num_bytes, key = line.split("\t")
        start = int(offset)
        found.append(Document(domain, split, key, raw[split][start : start + int(num_bytes)].decode()))
    return tuple(found)


def _read_file(name: str) -> bytes:
    return resources.files("minimoe.data").joinpath(f"corpus/{name}").read_bytes()
