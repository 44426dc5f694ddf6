"""Needles: questions stand at the distance that was asked for, their answers stand once, and seeds decide all."""

from __future__ import annotations

import numpy as np
import pytest

from minimoe.data import Needles
from minimoe.data.needle import BEFORE, BLANK, NEAREST, QUESTION
from minimoe.errors import UserError


def found_in(row: np.ndarray, needles: Needles) -> tuple[dict[bytes, list[int]], dict[bytes, list[int]]]:
    """Where each name is stated and where it is asked for, read from the text alone."""
    text, letters = bytes(row.astype(np.uint8)), needles.letters
    stated: dict[bytes, list[int]] = {}
    asked: dict[bytes, list[int]] = {}
    for at in range(len(text) - letters):
        name, mark = text[at + 1 : at + 1 + letters], text[at]
        if name.isalpha() and mark in (BLANK, QUESTION):
            (asked if mark == QUESTION else stated).setdefault(name, []).append(at)
    return stated, asked


@pytest.mark.parametrize("length", [25, 60, 255])
@pytest.mark.parametrize("sizes", [{}, {"letters": 3, "digits": 1}, {"letters": 1, "pairs": 5}])
def test_training_rows_ask_for_what_was_stated_once_and_far_enough(length, sizes):
    needles = Needles(**sizes)
    batch = needles.batch(1, 2, 12, length)
    rows = np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)
    questions = 0
    for row, where in zip(rows, batch.where, strict=True):
        stated, asked = found_in(row, needles)
        assert all(len(places) == 1 for places in (*stated.values(), *asked.values()))
        assert len(stated) <= needles.pairs
        answers = np.zeros(len(row), bool)
        for name, (at,) in asked.items():
            (before,) = stated[name]
            assert at - before >= NEAREST
            number = slice(1 + needles.letters, needles.width)
            assert (row[at:][number] == row[before:][number]).all()
            answers[at:][number] = True
        assert (where == answers[1:]).all()  # where is that of the targets
        questions += len(asked)
    assert questions >= 12 if length > 25 else questions > 0


def test_distances_of_training_are_mixed():
    needles, distances = Needles(), []
    for row in needles.batch(0, 0, 64, 511).tokens:
        stated, asked = found_in(row, needles)
        distances += [at - stated[name][0] for name, (at,) in asked.items()]
    shares = np.histogram(distances, [16, 32, 64, 128, 256, 512])[0] / len(distances)
    assert (shares > 0.05).all()


@pytest.mark.parametrize("distance", [5, 16, 23, 64, 1024, 4096])
def test_a_graded_row_asks_once_at_its_distance(distance):
    needles = Needles()
    rows = needles.questions(distance, rows=8, seed=3)
    assert rows.shape == (8, BEFORE + distance + needles.width)
    for row in rows:
        stated, asked = found_in(row, needles)
        ((name, (at,)),) = asked.items()
        assert at == BEFORE + distance == len(row) - needles.width
        assert stated[name] == [at - distance]
        assert (row[at + 3 :] == row[at - distance + 3 : at - distance + 5]).all()
        assert all(len(places) == 1 for places in stated.values())
        assert min(5, (distance - 5) // 20) <= len(stated) <= needles.pairs


def test_far_rows_state_no_more_pairs_than_near_ones():
    """Beyond some distance it is the distance alone that grows."""
    needles = Needles(pairs=16)
    counts = [len(found_in(needles.questions(d, 1)[0], needles)[0]) for d in (256, 1024, 4096)]
    assert counts == [16, 16, 16]


def test_rows_are_functions_of_seed_and_step():
    needles = Needles()
    one = needles.batch(3, 5, 4, 99)
    assert (one.tokens == Needles().batch(3, 5, 4, 99).tokens).all()
    assert (one.tokens != needles.batch(3, 6, 4, 99).tokens).any()
    assert (one.tokens != needles.batch(4, 5, 4, 99).tokens).any()
    assert (needles.questions(64, 4, 1) == needles.questions(64, 4, 1)).all()
    assert (needles.questions(64, 4, 1) != needles.questions(64, 4, 2)).any()
    assert needles.fingerprint == Needles().fingerprint != Needles(pairs=63).fingerprint


def test_no_answer_can_be_guessed_from_its_name():
    """Over many rows a name goes with all numbers: what one row says does not help in another."""
    needles = Needles(letters=1, digits=1, pairs=26)
    rows = needles.questions(200, 4000)
    names, digits = rows[:, -2], rows[:, -1]
    best = sum(np.bincount(digits[names == name]).max() for name in np.unique(names))
    assert best / len(rows) < 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Needles(letters=1, pairs=27), "letters make 26 names; raise letters"),
        (lambda: Needles().batch(0, 0, 2, 19), "give at least 20"),
        (lambda: Needles().questions(4, 2), "distance"),
        (lambda: Needles().questions(16, 0), "rows"),
        (lambda: Needles().batch(-1, 0, 2, 99), "seed"),
    ],
)
def test_impossible_wishes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
