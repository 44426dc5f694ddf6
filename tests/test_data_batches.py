"""Batches are a pure function of (seed, step), and an epoch shows every token about once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe.data import Batch, ByteTokenizer, Document, TrainingData, documents, load_tokenizer, training_data
from minimoe.errors import UserError

EOT = 0


def numbered(*sizes: int) -> TrainingData:
    """One stream a size, starting with end of text; every other token is its own: 1000 * domain + position."""
    streams = tuple(1000 * d + np.arange(size, dtype=np.int32) for d, size in enumerate(sizes))
    streams = tuple(np.concatenate([[np.int32(EOT)], stream[1:]]).astype(np.int32) for stream in streams)
    return TrainingData(tuple(f"d{d}" for d in range(len(sizes))), streams, EOT)


def equal(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "targets", "where", "domains"))


def epoch_rows(data: TrainingData, seed: int, epoch: int, length: int) -> list[tuple[int, ...]]:
    """All windows of one epoch, read one a step: (domain, counted targets...)."""
    count = data.windows_per_epoch(length)
    batches = [data.batch(seed, epoch * count + i, 1, length) for i in range(count)]
    return [(int(b.domains[0]), *b.targets[b.where].tolist()) for b in batches]


sizes = st.lists(st.integers(1, 60), min_size=1, max_size=4)


@given(sizes=sizes, length=st.integers(1, 20), seed=st.integers(0, 5), epoch=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_shows_every_token_at_most_once_and_leaves_out_less_than_a_window(
    sizes: list[int], length: int, seed: int, epoch: int
) -> None:
    data = numbered(*sizes)
    seen: dict[int, Counter[int]] = {d: Counter() for d in range(len(sizes))}
    for domain, *targets in epoch_rows(data, seed, epoch, length):
        seen[domain].update(targets)
    for domain, size in enumerate(sizes):
        assert max(seen[domain].values()) == 1
        assert set(seen[domain]) <= set(data.streams[domain].tolist())
        assert size - seen[domain].total() < (length if size >= length else 1)


@given(sizes=sizes, length=st.integers(1, 20), step=st.integers(0, 40), rows=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_targets_follow_their_tokens_in_the_stream(sizes: list[int], length: int, step: int, rows: int) -> None:
    data = numbered(*sizes)
    batch = data.batch(3, step, rows, length)
    assert batch.tokens.shape == batch.targets.shape == batch.where.shape == (rows, length)
    assert batch.tokens.dtype == batch.targets.dtype == batch.domains.dtype == np.int32
    assert np.array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert (batch.targets[~batch.where] == EOT).all()
    for row in range(rows):
        ring = data.streams[batch.domains[row]]
        following = dict(zip(ring.tolist(), np.roll(ring, -1).tolist(), strict=True))
        read = batch.tokens[row][batch.where[row]].tolist()
        assert [following[token] for token in read] == batch.targets[row][batch.where[row]].tolist()
        assert batch.where[row].all() or (ring.size < length and read == ring.tolist())


def test_batches_are_pure_and_need_no_replay() -> None:
    first, second = numbered(50, 40, 3), numbered(50, 40, 3)
    in_order = [first.batch(1, step, 4, 7) for step in range(30)]
    for step in (29, 0, 17, 5):  # another object, another order
        assert equal(second.batch(1, step, 4, 7), in_order[step])


def test_batch_size_only_regroups_the_rows() -> None:
    data = numbered(50, 40, 3)
    wide = [row.tolist() for step in range(5) for row in data.batch(1, step, 6, 7).tokens]
    narrow = [row.tolist() for step in range(15) for row in data.batch(1, step, 2, 7).tokens]
    assert wide == narrow


def test_seeds_and_epochs_differ_in_order_and_cut() -> None:
    data = numbered(300, 200)
    a, b, c = epoch_rows(data, 0, 0, 8), epoch_rows(data, 0, 1, 8), epoch_rows(data, 1, 0, 8)
    assert a != b != c != a
    assert set(a) != set(b)  # other windows, not the same ones in another order
    assert a != sorted(a)


def test_a_large_batch_spans_epochs() -> None:
    data = numbered(10)
    per_epoch = data.windows_per_epoch(4)
    batch = data.batch(0, 0, 3 * per_epoch, 4)
    rows = [(0, *row) for row in batch.targets.tolist()]
    assert rows == [row for epoch in range(3) for row in epoch_rows(data, 0, epoch, 4)]


def test_every_token_is_left_out_equally_often() -> None:
    data = numbered(13)  # windows of 5: two, and 3 tokens left over
    seen = Counter(t for epoch in range(600) for row in epoch_rows(data, 0, epoch, 5) for t in row[1:])
    expected = 600 * 10 / 13
    assert all(abs(seen[token] - expected) < 60 for token in range(13))  # five standard deviations


def test_streams_hold_training_documents_alone() -> None:
    tokenizer = ByteTokenizer()
    text = [
        Document("b", "train", "1", "hi"),
        Document("a", "val", "2", "never"),
        Document("a", "train", "3", "é"),
        Document("b", "train", "4", "<|endoftext|>"),
    ]
    data = training_data(text, tokenizer)
    eot = tokenizer.eot_id
    assert data.domains == ("b", "a")
    assert data.streams[0].tolist() == [eot, *b"hi", eot, *b"<|endoftext|>"]
    assert data.streams[1].tolist() == [eot, *"é".encode()]
    assert data.num_tokens == 1 + 2 + 1 + 13 + 1 + 2


def test_the_corpus_comes_back_from_its_tokens() -> None:
    tokenizer = load_tokenizer()
    chosen = documents("math", "train")[:40]
    data = training_data(chosen, tokenizer)
    assert tokenizer.decode(data.streams[0]) == "".join(document.text for document in chosen)
    assert int((data.streams[0] == tokenizer.eot_id).sum()) == len(chosen)
    assert tokenizer.byte_lengths[data.streams[0]].sum() == sum(document.num_bytes for document in chosen)


def test_impossible_arguments_are_named() -> None:
    data = numbered(20)
    for arguments, message in [
        ({"seed": -1}, "seed=-1 must be a whole number of at least 0"),
        ({"step": -2}, "step=-2"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ({"length": 0}, "length=0"),
    ]:
        with pytest.raises(UserError, match=message):
            data.batch(**{"seed": 0, "step": 0, "batch_size": 1, "length": 4, **arguments})
    with pytest.raises(UserError, match="length=-3"):
        data.windows_per_epoch(-3)
    with pytest.raises(UserError, match="leave out empty domains"):
        TrainingData(("a",), (np.zeros(0, np.int32),), EOT)
    with pytest.raises(UserError, match="none of the 1 documents is in the split 'train'"):
        training_data([Document("a", "val", "1", "x")], ByteTokenizer())
