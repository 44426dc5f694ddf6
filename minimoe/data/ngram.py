"""A byte n-gram model: the bar that a neural model should clear on the same text. Plain counting, no training.

Interpolated Witten-Bell smoothing: with ``T(h)`` the number of different bytes seen after context ``h``,

    p_n(c | h) = (count(h, c) + T(h) * p_{n-1}(c | h without its first byte)) / (count(h) + T(h))

down to a uniform distribution over 256 bytes (Witten and Bell 1991; method C of Bell, Cleary and Witten's PPM).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt

from minimoe.data.corpus import Document
from minimoe.errors import UserError

MAX_ORDER = 7  # contexts and next byte are packed in 64 bits


@dataclasses.dataclass(frozen=True)
class _Counts:
    """Counts of one order: sorted packed keys of (context, byte) and of contexts."""

    grams: UInt[np.ndarray, " g"]
    gram_counts: Float[np.ndarray, " g"]
    contexts: UInt[np.ndarray, " c"]
    context_counts: Float[np.ndarray, " c"]
    continuations: Float[np.ndarray, " c"]


class ByteNgram:
    """Counts of all orders 1..``order`` over the documents' bytes.

    Args:
      documents: training text; each begins after ``order - 1`` line feeds.
      order: n; the context is n - 1 bytes. 1 to `MAX_ORDER`.

    Raises:
      UserError: for an order outside that range, or no text.
    """

    def __init__(self, documents: Sequence[Document], order: int = 6):
        if not 1 <= order <= MAX_ORDER:
            raise UserError(f"order={order} must be in 1..{MAX_ORDER}; 6 is usual")
        if not any(document.text for document in documents):
            raise UserError("there is no text to count; give at least one document that is not empty")
        self.order = order
        keys = np.concatenate([_packed(document.text, order) for document in documents])
        self._counts = [_count(keys, n) for n in range(1, order + 1)]

    def bits(self, text: str) -> float:
        """Bits that the model needs for ``text``, taken as a document of its own."""
        keys = _packed(text, self.order)
        probability = np.full(len(keys), 1 / 256)
        for n, counts in enumerate(self._counts, start=1):
            gram = _low_bytes(keys, n)
            seen = _look_up(counts.grams, counts.gram_counts, gram)
            total = _look_up(counts.contexts, counts.context_counts, gram >> np.uint64(8))
            kinds = _look_up(counts.contexts, counts.continuations, gram >> np.uint64(8))
            known = total > 0
            mixed = (seen + kinds * probability) / np.where(known, total + kinds, 1.0)
            probability = np.where(known, mixed, probability)
        return float(-np.log2(probability).sum())


def ngram_bits_per_byte(train: Sequence[Document], scored: Sequence[Document], order: int = 6) -> dict[str, float]:
    """Bits per byte of each domain of ``scored`` under one model of all of ``train``.

    Example:
      >>> text = [Document("d", "train", "k", "abab" * 50)]
      >>> ngram_bits_per_byte(text, text)["d"] < 0.5
      True
    """
    model = ByteNgram(train, order)
    bits: dict[str, float] = {}
    size: dict[str, int] = {}
    for document in scored:
        bits[document.domain] = bits.get(document.domain, 0.0) + model.bits(document.text)
        size[document.domain] = size.get(document.domain, 0) + document.num_bytes
    return {domain: bits[domain] / size[domain] for domain in bits if size[domain]}


def _packed(text: str, order: int) -> UInt[np.ndarray, " n"]:
    """For each byte: itself in the low 8 bits and the ``order - 1`` bytes before it above."""
    raw = np.frombuffer(b"\n" * (order - 1) + text.encode("utf-8"), np.uint8).astype(np.uint64)
    length = len(raw) - (order - 1)
    packed = np.zeros(length, np.uint64)
    for back in range(order):
        packed |= raw[order - 1 - back : order - 1 - back + length] << np.uint64(8 * back)
    return packed


def _low_bytes(keys: UInt[np.ndarray, " n"], count: int) -> UInt[np.ndarray, " n"]:
    return keys & np.uint64(2 ** (8 * count) - 1)


def _count(keys: UInt[np.ndarray, " n"], order: int) -> _Counts:
    grams, gram_counts = np.unique(_low_bytes(keys, order), return_counts=True)
    contexts, first, continuations = np.unique(grams >> np.uint64(8), return_index=True, return_counts=True)
    totals = np.add.reduceat(gram_counts, first)
    return _Counts(
        grams,
        gram_counts.astype(np.float64),
        contexts,
        totals.astype(np.float64),
        continuations.astype(np.float64),
    )


def _look_up(
    keys: UInt[np.ndarray, " k"], values: Float[np.ndarray, " k"], wanted: UInt[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0.0)
