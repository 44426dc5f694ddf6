"""Needles of one token: every question has one answer, distances are those asked for, and seeds decide all."""

from __future__ import annotations

import numpy as np
import pytest

from minimoe.data import PairNeedles
from minimoe.data.pair_needles import ANSWER, BEFORE, BLANK, DIGITS, QUESTION
from minimoe.errors import UserError


@pytest.mark.parametrize(("step", "block"), [(0, 16), (4, 32), (9, 64)])
def test_a_block_states_its_pairs_then_asks_for_each_once(step, block):
    needles = PairNeedles(grow_at=(4, 9))
    batch = needles.batch(1, step, 3, 127)
    rows = np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)
    assert needles.block(step, 127) == block
    for part in rows.reshape(-1, block):
        stated = {int(token) // DIGITS: (at, int(token) % DIGITS) for at, token in enumerate(part) if token < QUESTION}
        asked = [at for at, token in enumerate(part) if QUESTION <= token < ANSWER]
        assert len(asked) == len(stated) == (part < QUESTION).sum()
        assert {int(part[at]) - QUESTION for at in asked} == set(stated)
        for at in asked:
            before, digit = stated[int(part[at]) - QUESTION]
            assert before < at
            assert part[at + 1] == ANSWER + digit
    np.testing.assert_array_equal(batch.where, (batch.targets >= ANSWER) & (batch.targets < BLANK))


@pytest.mark.parametrize("distance", [1, 8, 200])
def test_a_graded_row_asks_for_the_pair_so_far_back(distance):
    rows = PairNeedles().questions(distance, 5, seed=2)
    assert rows.shape == (5, BEFORE + distance + 2)
    pair, question, answer = rows[:, BEFORE], rows[:, BEFORE + distance], rows[:, -1]
    np.testing.assert_array_equal(pair, (question - QUESTION) * DIGITS + answer - ANSWER)
    same_name = (rows < QUESTION) & (rows // DIGITS == (pair // DIGITS)[:, None])
    np.testing.assert_array_equal(same_name.sum(axis=1), 1)


def test_seeds_decide_and_settings_are_told_apart():
    one, same = (PairNeedles(grow_at=(4,)) for _ in range(2))
    assert one.fingerprint == same.fingerprint != PairNeedles().fingerprint
    np.testing.assert_array_equal(one.batch(0, 1, 2, 63).tokens, same.batch(0, 1, 2, 63).tokens)
    assert (one.batch(0, 1, 2, 63).tokens != one.batch(1, 1, 2, 63).tokens).any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="length=100 cannot hold blocks of 16"):
        PairNeedles().batch(0, 0, 1, 100)
    with pytest.raises(UserError, match="sort the steps"):
        PairNeedles(grow_at=(5, 2))


def test_rows_of_thousands_of_tokens_begin_with_longer_blocks():
    needles = PairNeedles(grow_at=(2, 3), shortest=64)
    assert [needles.block(step, 1023) for step in (0, 2, 3, 9)] == [64, 128, 256, 256]
    batch = needles.batch(0, 0, 2, 1023)
    assert batch.where.sum() == 2 * (1024 // 64)  # 20 names for 16 blocks: one pair a block
    with pytest.raises(UserError, match="at most 20 blocks"):
        PairNeedles().batch(0, 0, 2, 1023)
    assert needles.fingerprint != PairNeedles(grow_at=(2, 3)).fingerprint
