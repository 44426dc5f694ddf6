"""A needle to find again: pairs of names and numbers, and questions that ask for a pair a chosen distance ago.

    ` zk07  qa52    mm18 pb90 ?qa52`
            |                 |
            stated            asked, 18 tokens later: the answer is 52

A statement is a blank, a name of a few letters and a number of a few digits. A question is ``?`` and the name of an
earlier statement; the number of that statement must follow. Names and numbers are random in every row, so nothing can be
learned by heart: a model that answers has looked back. Blanks fill the rest. The tokens are those of `ByteTokenizer`.

Axes: B rows, L tokens of a row, S statements and questions of a row, W = 1 + letters + digits tokens of each.

References:
  Arora et al., `Zoology: Measuring and Improving Recall in Efficient Language Models
  <https://arxiv.org/abs/2312.04927>`_, for recall of many pairs.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Int, Int32

from minimoe.checks import whole
from minimoe.data.batches import Batch, TrainingData
from minimoe.data.facts import DIGITS, LETTERS, spelled
from minimoe.data.tokenizer import ByteTokenizer
from minimoe.errors import UserError

DOMAIN = "needles"
BLANK, QUESTION = ord(" "), ord("?")
NEAREST = 16  # tokens from a statement to its question, at least
_STATES, _NOTHING = -1, -2
BEFORE = 32  # tokens before the needle of a graded row


class Needles(TrainingData):
    """Endless rows of statements and questions to train on, and rows that end in one question at a chosen distance.

    Each pair is stated once and asked for at most once. A distance is counted from the blank of the statement to the
    question mark. In training rows it is drawn anew for each question, as often near as far on a logarithmic scale.

    Args:
      letters: of a name. digits: of a number; guessing is right once in ``10**digits``.
      pairs: most pairs that a row states. Longer rows have more blanks: the distance grows, and nothing else.

    Raises:
      UserError: for more pairs than there are names.

    Example:
      >>> row = Needles().questions(distance=20, rows=1)[0]
      >>> bytes(row[32:].astype("uint8")).decode()
      ' xr51   hu48        ?xr51'
    """

    def __init__(self, *, letters: int = 2, digits: int = 2, pairs: int = 64) -> None:
        self.letters, self.digits = whole("letters", letters, most=6), whole("digits", digits, most=9)
        self.pairs, self.names = whole("pairs", pairs), len(LETTERS) ** self.letters
        if self.pairs > self.names:
            raise UserError(f"pairs={pairs}, but {letters} letters make {self.names} names; raise letters")
        alphabet = np.frombuffer(LETTERS + DIGITS, np.uint8).astype(np.int32)
        super().__init__((DOMAIN,), (alphabet,), ByteTokenizer().eot_id)

    @property
    def width(self) -> int:
        """W, tokens of a statement, and of a question with its answer."""
        return 1 + self.letters + self.digits

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """sha256 of the settings: with a seed they decide every row."""
        return hashlib.sha256(repr((DOMAIN, self.letters, self.digits, self.pairs)).encode()).hexdigest()

    def batch(self, seed: int, step: int, batch_size: int, length: int) -> Batch:
        """The rows of one training step; equal arguments give equal arrays. Only answers are True in ``where``.

        Args, Raises: as for `TrainingData.batch`, and if no question fits in ``length`` tokens.
        """
        batch_size, length = whole("batch_size", batch_size), whole("length", length)
        rng = np.random.default_rng([whole("seed", seed, 0), whole("step", step, 0)])
        least = NEAREST + self.width
        if length + 1 < least:
            raise UserError(f"length={length} has no room for a statement and its question; give at least {least - 1}")
        starts = _scattered(rng, batch_size, length + 1, self._count(length + 1), self.width)
        about = self._asked(rng, starts)
        words = self._words(rng, batch_size, starts.shape[1])
        question = about >= 0
        original = np.take_along_axis(words, np.maximum(about, 0)[:, :, None], axis=1)
        words = np.where(question[:, :, None], original, words)
        words[:, :, 0] = np.where(question, QUESTION, BLANK)
        words[about == _NOTHING] = BLANK
        answer = question[:, :, None] & (np.arange(self.width) > self.letters)
        rows, where = _placed(words, starts, length + 1, BLANK), _placed(answer, starts, length + 1, False)
        return Batch(rows[:, :-1].copy(), rows[:, 1:].copy(), where[:, 1:].copy(), np.zeros(batch_size, np.int32))

    def questions(self, distance: int, rows: int, seed: int = 0) -> Int32[np.ndarray, "B L"]:
        """Rows of `BEFORE` + ``distance`` + W tokens: each ends in a question about the pair that far back, and its answer.

        Raises:
          UserError: for a distance below W, at which the question would stand in the statement.
        """
        distance, rows, seed = whole("distance", distance, self.width), whole("rows", rows), whole("seed", seed, 0)
        rng = np.random.default_rng([seed, distance])
        room = distance - self.width
        count = min(self._count(room) // 2, self.pairs - 1)
        starts = BEFORE + self.width + _scattered(rng, rows, room, count, self.width)
        fixed = np.broadcast_to(np.array([BEFORE, BEFORE + distance]), (rows, 2))
        starts = np.concatenate([fixed, starts], axis=1)
        words = self._words(rng, rows, count + 1)
        asked = words[:, :1].copy()
        asked[:, :, 0] = QUESTION
        words = np.concatenate([words[:, :1], asked, words[:, 1:]], axis=1)
        return _placed(words, starts, BEFORE + distance + self.width, BLANK)

    def _count(self, room: int) -> int:
        """Statements and questions of so many tokens: nine tenths full, and at most ``pairs`` of each."""
        return min(2 * self.pairs, max(room // self.width - room // (10 * self.width), 0))

    def _words(self, rng: np.random.Generator, rows: int, count: int) -> Int32[np.ndarray, "B S W"]:
        """Statements whose names differ within a row."""
        names = np.argsort(rng.random((rows, self.names)), axis=1)[:, :count]
        numbers = rng.integers(10**self.digits, size=(rows, count))
        parts = [np.full((rows * count, 1), BLANK, np.int32), spelled(names.reshape(-1), LETTERS, self.letters)]
        parts.append(spelled(numbers.reshape(-1), DIGITS, self.digits))
        return np.concatenate(parts, axis=1).reshape(rows, count, self.width)

    def _asked(self, rng: np.random.Generator, starts: Int[np.ndarray, "B S"]) -> Int[np.ndarray, "B S"]:
        """For each place the index of the statement that it asks about; `_STATES` or `_NOTHING` if it asks nothing."""
        rows, count = starts.shape
        about = np.full((rows, count), _STATES)
        open_ = np.zeros((rows, count), bool)  # stated and not asked yet
        eager = rng.uniform(0.1, 0.5, rows)  # a row that asks late asks from afar
        for place in range(count):
            distance = starts[:, place : place + 1] - starts
            allowed = open_ & (distance >= NEAREST)
            far = np.log(np.maximum(starts[:, place] - starts[:, 0], NEAREST) / NEAREST)
            wanted = NEAREST * np.exp(rng.random(rows) * far)
            cost = np.where(allowed, np.abs(np.log(np.maximum(distance, 1) / wanted[:, None])), np.inf)
            chosen = cost.argmin(axis=1)
            stated = (about[:, :place] == _STATES).sum(axis=1)
            full = stated >= self.pairs
            late = count - place <= open_.sum(axis=1)
            asks = allowed.any(axis=1) & ((rng.random(rows) < eager) | full | late)
            about[:, place] = np.where(asks, chosen, np.where(full, _NOTHING, _STATES))
            open_[np.flatnonzero(asks), chosen[asks]] = False
            open_[:, place] = about[:, place] == _STATES
        return about


def _scattered(rng: np.random.Generator, rows: int, room: int, count: int, width: int) -> Int[np.ndarray, "B S"]:
    """Starts of ``count`` words in ``room`` tokens, in order, without overlap, anywhere."""
    free = room - count * (width - 1)
    places = np.sort(np.argsort(rng.random((rows, free)), axis=1)[:, :count], axis=1)
    return places + np.arange(count) * (width - 1)


def _placed(words: np.ndarray, starts: Int[np.ndarray, "B S"], length: int, blank: int | bool) -> np.ndarray:
    """Rows with each word at its start, ``blank`` elsewhere."""
    rows = np.full((len(words), length), blank, words.dtype)
    at = starts[:, :, None] + np.arange(words.shape[2])
    np.put_along_axis(rows, at.reshape(len(words), -1), words.reshape(len(words), -1), axis=1)
    return rows
