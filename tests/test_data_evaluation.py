"""Evaluation scores every byte once, with context, and chooses text without looking at a tokenizer."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe.data import ByteTokenizer, Document, Tokenizer, documents, evaluation_documents, load_tokenizer, windows
from minimoe.data.evaluation import QUICK_BYTES
from minimoe.errors import UserError

TOKENIZERS = [load_tokenizer("bpe2048"), ByteTokenizer()]
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: tokenizer.name)


@st.composite
def texts(draw: st.DrawFn) -> list[Document]:
    found = draw(st.lists(st.tuples(st.sampled_from("abc"), st.text(alphabet="theé \n1", max_size=80)), max_size=5))
    found.append(("c", "always some text"))
    return [Document(domain, "val", str(i), text) for i, (domain, text) in enumerate(found)]


@each_tokenizer
@given(text=texts(), length=st.integers(1, 40), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_byte_is_scored_once(
    tokenizer: Tokenizer, text: list[Document], length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.none() | st.integers(1, length))
    cut = windows(text, tokenizer, length, stride)
    for index, name in enumerate(cut.domain_names):
        scored = tokenizer.byte_lengths[cut.targets[cut.domains == index][cut.where[cut.domains == index]]].sum()
        expected = sum(document.num_bytes for document in text if document.domain == name)
        assert scored == expected == cut.domain_bytes[index]
    assert tokenizer.eot_id not in cut.targets[cut.where]
    assert cut.domain_bytes.sum() == sum(document.num_bytes for document in text)


@each_tokenizer
@given(text=st.text(alphabet="theé \n1", min_size=1, max_size=200), length=st.integers(1, 40), data=st.data())
@settings(max_examples=60, deadline=None)
def test_windows_against_a_loop(tokenizer: Tokenizer, text: str, length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, length))
    cut = windows([Document("a", "val", "1", text)], tokenizer, length, stride)
    sequence = [tokenizer.eot_id, *tokenizer.encode(text)]
    scored: list[int] = []  # positions in the sequence, in the order of the windows
    for w, (tokens, targets, where) in enumerate(zip(cut.tokens, cut.targets, cut.where, strict=True)):
        start = w * stride
        read = sequence[start : start + length]
        following = sequence[start + 1 : start + length + 1]
        real = len(following)
        assert tokens[:real].tolist() == read[:real]
        assert targets[:real].tolist() == following
        assert set(tokens[real:].tolist()) | set(targets[real:].tolist()) <= {tokenizer.eot_id}
        for position in np.flatnonzero(where):
            scored.append(start + int(position) + 1)
            assert w == 0 or position >= length - stride  # so many tokens stand before the one just read
    assert scored == list(range(1, len(sequence)))


def test_a_document_of_exactly_one_window() -> None:
    byte = ByteTokenizer()
    for size, expected in [(7, 1), (8, 1), (9, 2), (12, 2), (13, 3)]:
        cut = windows([Document("a", "val", "1", "x" * size)], byte, length=8)
        assert len(cut.tokens) == expected
        assert cut.where.sum() == size
    assert len(windows([Document("a", "val", "1", "xyz")], byte, length=1).tokens) == 3


@each_tokenizer
@pytest.mark.parametrize(("length", "stride"), [(256, None), (128, 37)])
def test_quick_protocol_counts_the_bytes_of_the_corpus(tokenizer: Tokenizer, length: int, stride: int | None) -> None:
    chosen = evaluation_documents(documents(), "quick")
    cut = windows(chosen, tokenizer, length, stride)
    scored = tokenizer.byte_lengths[cut.targets] * cut.where
    by_domain = np.bincount(cut.domains, weights=scored.sum(1))
    assert by_domain.tolist() == cut.domain_bytes.tolist()
    assert cut.domain_names == tuple(dict.fromkeys(document.domain for document in documents()))
    assert all(QUICK_BYTES - 3000 < n <= QUICK_BYTES for n in cut.domain_bytes)


def test_a_uniform_model_scores_its_tokenizer() -> None:
    """nll = ln V everywhere gives bits per byte = log2(V) / (bytes per token): 8.006 for bytes."""
    byte = ByteTokenizer()
    cut = windows(evaluation_documents(documents("math")), byte, 64)
    nll = np.full(cut.targets.shape, math.log(byte.vocab_size))
    assert nll[cut.where].sum() / math.log(2) / cut.domain_bytes[0] == pytest.approx(math.log2(257))


def test_full_protocol_is_the_validation_split() -> None:
    assert evaluation_documents(documents(), "full") == documents(split="val")
    assert evaluation_documents(documents(split="val"), "full") == documents(split="val")


def test_quick_protocol_takes_whole_documents_in_hash_order_and_cuts_one_at_a_line() -> None:
    for domain in ("python", "bible_es"):
        ordered = sorted(documents(domain, "val"), key=lambda d: hashlib.sha256(d.key.encode()).digest())
        chosen = evaluation_documents(documents(domain), "quick")
        assert [d.key for d in chosen] == [d.key for d in ordered[: len(chosen)]]
        assert chosen[:-1] == ordered[: len(chosen) - 1]
        last, whole = chosen[-1].text, ordered[len(chosen) - 1].text
        assert whole.startswith(last)
        assert last == whole or last.endswith("\n")
        assert evaluation_documents(documents(domain)[::-1], "quick") == chosen


@given(st.lists(st.text(alphabet="aé日\n", max_size=50), min_size=1, max_size=6), st.integers(1, 700))
@settings(deadline=None)
def test_quick_protocol_keeps_to_its_budget(lines: list[str], repeat: int) -> None:
    text = [Document("a", "val", str(i), line * repeat) for i, line in enumerate(lines)]
    chosen = evaluation_documents(text, "quick")
    total = sum(document.num_bytes for document in text)
    assert sum(document.num_bytes for document in chosen) <= min(total, QUICK_BYTES)
    if total <= QUICK_BYTES:
        assert {d.key: d.text for d in chosen} == {d.key: d.text for d in text}


def test_one_long_line_is_cut_at_a_character() -> None:
    (only,) = evaluation_documents([Document("a", "val", "1", "x" + "日" * 9000)], "quick")
    assert only.text == "x" + "日" * ((QUICK_BYTES - 1) // 3)


def test_impossible_requests_are_named() -> None:
    text, byte = [Document("a", "val", "1", "abc")], ByteTokenizer()
    with pytest.raises(UserError, match="protocol 'fast' is not known; choose one of full, quick"):
        evaluation_documents(text, "fast")
    with pytest.raises(UserError, match="none of the 1 documents is in the split 'val'"):
        evaluation_documents([Document("a", "train", "1", "abc")])
    with pytest.raises(UserError, match="length=0 must be at least 1"):
        windows(text, byte, 0)
    for stride in (0, 5):
        with pytest.raises(UserError, match=rf"stride={stride} must be in 1..length=4"):
            windows(text, byte, 4, stride)
    with pytest.raises(UserError, match="none of the 0 documents holds text"):
        windows([], byte, 4)
