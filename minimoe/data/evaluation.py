"""Which text a model's quality is measured on, and what it sees of it. Axis letters: W windows, L sequence.

The model turns `Windows` into the negative log-likelihood of every target. Quality is then, for each domain,

    bits_per_byte = sum of nll over ``where`` / ln 2 / bytes of the domain

and its mean over domains. Bytes, not tokens, so models with different tokenizers compare.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32, Int64

from minimoe.data.corpus import Document
from minimoe.data.tokenizer import Tokenizer
from minimoe.errors import UserError

PROTOCOLS = ("full", "quick")
LONGEST_WINDOW = 4096  # attention to all of a longer one takes gigabytes
QUICK_BYTES = 18_000  # a domain; about 40,000 tokens in all with the bundled tokenizer


@dataclasses.dataclass(frozen=True)
class Windows:
    """Text cut for a model with L positions.

    Args:
      tokens: what the model reads, padded with end of text.
      targets: the next token at each position.
      where: True where the target is scored. Every token of the text is scored in exactly one window.
      domains: of each window, an index into ``domain_names``.
      domain_names: in order of first appearance.
      domain_bytes: bytes of text that the scored targets stand for, by domain.
    """

    tokens: Int32[np.ndarray, "W L"]
    targets: Int32[np.ndarray, "W L"]
    where: Bool[np.ndarray, "W L"]
    domains: Int32[np.ndarray, "W"]
    domain_names: tuple[str, ...]
    domain_bytes: Int64[np.ndarray, "num_domains"]


def evaluation_documents(documents: Sequence[Document], protocol: str = "quick") -> list[Document]:
    """The text that a protocol scores, the same for every tokenizer and model.

    ``full`` is every validation document, whole. ``quick`` takes the validation documents of each domain in the order
    of the sha256 of their keys until 18,000 bytes are full; the document that does not fit is cut after the last line
    that does (after the last character that does if it is the first document and has no such line).

    Args:
      documents: of both splits or of one.
      protocol: ``"full"`` or ``"quick"``.

    Returns:
      Documents with a text, grouped by domain in order of first appearance.

    Raises:
      UserError: for an unknown protocol, or if no document is in the validation split.

    Example:
      >>> from minimoe.data.corpus import documents
      >>> len(evaluation_documents(documents(), "full")), len(evaluation_documents(documents(), "quick"))
      (155, 30)
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r} is not known; choose one of {', '.join(PROTOCOLS)}")
    by_domain: dict[str, list[Document]] = {}
    for document in documents:
        if document.split == "val":
            by_domain.setdefault(document.domain, []).append(document)
    if not by_domain:
        raise UserError(f"none of the {len(documents)} documents is in the split 'val'; give validation text")
    if protocol == "full":
        return [document for group in by_domain.values() for document in group]
    return [document for group in by_domain.values() for document in _first_bytes(group, QUICK_BYTES)]


def _first_bytes(documents: Sequence[Document], budget: int) -> list[Document]:
    """The first ``budget`` bytes, or a little less, of documents in hash order."""
    chosen: list[Document] = []
    for document in sorted(documents, key=lambda d: (hashlib.sha256(d.key.encode()).digest(), d.key)):
        raw = document.text.encode()
        if len(raw) > budget:
            cut = raw.rfind(b"\n", 0, budget) + 1
            if cut == 0 and not chosen:
                cut = budget
                while raw[cut] & 0xC0 == 0x80:  # the first byte left out must begin a character
                    cut -= 1
            if cut > 0:
                chosen.append(dataclasses.replace(document, text=raw[:cut].decode()))
            break
        chosen.append(document)
        budget -= len(raw)
    return chosen


def window_length(context_length: int) -> int:
    """L of the windows in which a model is scored: its context length, and no more than `LONGEST_WINDOW`.

    Example:
      >>> window_length(256), window_length(131_072)
      (256, 4096)
    """
    return min(context_length, LONGEST_WINDOW)


def windows(documents: Sequence[Document], tokenizer: Tokenizer, length: int, stride: int | None = None) -> Windows:
    """Cuts documents so that every byte is scored once, and with context.

    The protocol, exactly. Each document is read alone, as ``[EOT] + tokens``: its first token is predicted from the end
    of text, and the end of the document is not scored. The first window holds its first L positions and scores all
    their targets. Every later window starts ``stride`` positions further and scores only targets that no window before
    it scored, so each of them has at least ``L - stride`` tokens of its document before it (or all there are). The last
    window is padded. Documents in every split are cut alike: choose them with `evaluation_documents`.

    Args:
      documents: to score.
      tokenizer: the model's.
      length: L, at most the model's context length.
      stride: 1..L; None is ``max(1, L // 2)``. Smaller gives more context and costs more windows.

    Raises:
      UserError: if a size is impossible, or there is no text.

    Example:
      >>> from minimoe.data.tokenizer import ByteTokenizer
      >>> cut = windows([Document("a", "val", "1", "abcdef")], ByteTokenizer(), length=4)
      >>> [bytes(row[counted].tolist()) for row, counted in zip(cut.targets, cut.where)]
      [b'abcd', b'ef']
      >>> cut.tokens.tolist()
      [[256, 97, 98, 99], [98, 99, 100, 101]]
    """
    if length < 1:
        raise UserError(f"length={length} must be at least 1; use the model's context length")
    stride = max(1, length // 2) if stride is None else stride
    if not 1 <= stride <= length:
        raise UserError(f"stride={stride} must be in 1..length={length}; half the length is usual")
    chosen = [document for document in documents if document.text]
    if not chosen:
        raise UserError(f"none of the {len(documents)} documents holds text; give text to evaluate")
    names = tuple(dict.fromkeys(document.domain for document in chosen))
    domain_bytes = np.zeros(len(names), np.int64)
    tokens, targets, where, domains = [], [], [], []
    encoded = tokenizer.encode_documents([document.text for document in chosen])
    for document, ids in zip(chosen, encoded, strict=True):
        domain = names.index(document.domain)
        domain_bytes[domain] += document.num_bytes
        inputs, nexts, counted = _cut(np.array([tokenizer.eot_id, *ids], np.int32), length, stride, tokenizer.eot_id)
        tokens.append(inputs)
        targets.append(nexts)
        where.append(counted)
        domains.append(np.full(len(inputs), domain, np.int32))
    return Windows(
        tokens=np.concatenate(tokens),
        targets=np.concatenate(targets),
        where=np.concatenate(where),
        domains=np.concatenate(domains),
        domain_names=names,
        domain_bytes=domain_bytes,
    )


def _cut(
    sequence: Int32[np.ndarray, "_"], length: int, stride: int, eot_id: int
) -> tuple[Int32[np.ndarray, "W L"], Int32[np.ndarray, "W L"], Bool[np.ndarray, "W L"]]:
    """Tokens, targets and where of one document that starts with end of text."""
    num_targets = sequence.size - 1
    num_windows = 1 + max(0, -((length - num_targets) // stride))  # 1 + ceil((targets - L) / stride)
    position = stride * np.arange(num_windows)[:, None] + np.arange(length)  # [W, L], of the token read
    exists = position < num_targets
    new = np.arange(length) >= length - stride  # the overlap was scored by the window before
    new = new | (np.arange(num_windows)[:, None] == 0)
    padded = np.append(sequence, np.int32(eot_id))
    tokens = padded[np.where(exists, position, num_targets + 1)]
    targets = padded[np.where(exists, position + 1, num_targets + 1)]
    return tokens, targets, exists & new
