"""The byte n-gram bar: against a dictionary loop, and laws."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest

from minimoe.data import ByteNgram, Document, ngram_bits_per_byte
from minimoe.errors import UserError


def oracle_bits(train: list[str], text: str, order: int) -> float:
    """Witten-Bell with dictionaries, one byte at a time."""
    counts: dict[bytes, Counter[int]] = defaultdict(Counter)
    for document in train:
        raw = b"\n" * (order - 1) + document.encode()
        for i in range(order - 1, len(raw)):
            for n in range(order):
                counts[raw[i - n : i]][raw[i]] += 1
    raw = b"\n" * (order - 1) + text.encode()
    bits = 0.0
    for i in range(order - 1, len(raw)):
        p = 1 / 256
        for n in range(order):
            seen = counts.get(raw[i - n : i])
            if seen:
                kinds, total = len(seen), sum(seen.values())
                p = (seen[raw[i]] + kinds * p) / (total + kinds)
        bits -= math.log2(p)
    return bits


@pytest.mark.parametrize("order", [1, 2, 3, 6, 7])
def test_matches_the_dictionary_loop(order):
    train = ["abracadabra, abracadabra", "señor", "the cat sat on the mat\nthe end", ""]
    documents = [Document("d", "train", str(i), text) for i, text in enumerate(train)]
    model = ByteNgram(documents, order)
    for text in ("abracadabra", "the señor sat", "zzz", "\n"):
        assert model.bits(text) == pytest.approx(oracle_bits(train, text, order), rel=1e-12)
    assert model.bits("") == 0.0


def test_domains_are_scored_apart_and_more_context_helps_on_repetition():
    train = [Document("a", "train", "1", "abcabd" * 40)]
    scored = [Document("a", "val", "2", "abcabd" * 5), Document("b", "val", "3", "qqqq")]
    short, long = (ngram_bits_per_byte(train, scored, order) for order in (1, 4))
    assert set(short) == {"a", "b"}
    assert long["a"] < short["a"] < 8 < short["b"]  # a byte that was never seen costs more than a uniform guess


def test_errors_name_the_value():
    with pytest.raises(UserError, match=r"order=9 must be in 1\.\.7"):
        ByteNgram([Document("a", "train", "1", "x")], 9)
    with pytest.raises(UserError, match="no text to count"):
        ByteNgram([], 2)
