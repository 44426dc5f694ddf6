"""Needles of one token: a name and a number together, stated once, asked for by the name.

    . c7 . . h2 a0 .        ?a 0 . ?c 7 . . ?h 2          ``c7`` is one token, and so is ``?c``; the answer is a digit

`minimoe.data.Needles` spells names and numbers. A model must first learn to join the tokens of a pair, and small models
spend all their training on that. Here nothing has to be joined: what is left is to look back.

A row is cut into blocks. The first half of a block states pairs, the second asks for all of them in any order, so that
a distance says nothing of the answer. Blocks begin with `SHORTEST` tokens and grow: near needles come first.

Axes: B rows, L tokens of a row, P pairs of a block.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Int32

from minimoe.checks import whole
from minimoe.data.batches import Batch, TrainingData
from minimoe.data.needle import _placed, _scattered
from minimoe.data.tokenizer import ByteTokenizer
from minimoe.errors import UserError

NAMES, DIGITS = 20, 10
QUESTION = NAMES * DIGITS  # ids below are pairs: name * 10 + digit. Ids from here on ask for a name.
ANSWER = QUESTION + NAMES  # from here on they are digits
BLANK = ANSWER + DIGITS
SHORTEST = 16
BEFORE = 32  # blanks before the needle of a graded row
WIDTH = 2  # of a pair and the blank after it, and of a question and its answer


class PairNeedles(TrainingData):
    """Endless rows of pairs and questions to train on, and rows that end in one question at a chosen distance.

    Args:
      grow_at: steps at which the blocks become twice as long, until one fills the row.
      shortest: tokens of the first blocks, a power of two. A row has at most `NAMES` blocks.

    Raises:
      UserError: for steps that do not grow.

    Example:
      >>> needles = PairNeedles()
      >>> pair, question, digit = needles.questions(distance=9, rows=1)[0, [32, -2, -1]]
      >>> bool(pair == (question - QUESTION) * DIGITS + digit - ANSWER)
      True
    """

    def __init__(self, grow_at: tuple[int, ...] | list[int] = (), shortest: int = SHORTEST) -> None:
        self.grow_at = tuple(whole("grow_at", step) for step in grow_at)
        if list(self.grow_at) != sorted(set(self.grow_at)):
            raise UserError(f"grow_at={grow_at} must grow; sort the steps")
        self.shortest = whole("shortest", shortest, 2 * WIDTH)
        super().__init__(("pairs",), (np.arange(BLANK + 1, dtype=np.int32),), ByteTokenizer().eot_id)

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """sha256 of the settings: with a seed they decide every row."""
        first = () if self.shortest == SHORTEST else (self.shortest,)
        return hashlib.sha256(repr(("pair needles", NAMES, self.grow_at, *first)).encode()).hexdigest()

    def block(self, step: int, length: int) -> int:
        """Tokens of a block at a step; ``length + 1`` at most."""
        return min(self.shortest * 2 ** sum(step >= at for at in self.grow_at), length + 1)

    def batch(self, seed: int, step: int, batch_size: int, length: int) -> Batch:
        """The rows of one training step; equal arguments give equal arrays. Only answers are True in ``where``.

        Args, Raises: as for `TrainingData.batch`, and if blocks do not fill ``length + 1`` tokens.
        """
        batch_size, length = whole("batch_size", batch_size), whole("length", length)
        rng = np.random.default_rng([whole("seed", seed, 0), whole("step", step, 0)])
        block = self.block(step, length)
        blocks, left = divmod(length + 1, block)
        pairs = min(block // (2 * WIDTH), NAMES // blocks)
        if left or not pairs:
            repair = f"give {self.shortest} times a power of two, less one, and at most {NAMES} blocks"
            raise UserError(f"length={length} cannot hold blocks of {block} tokens with a pair each; {repair}")
        names, digits = (part.reshape(-1, pairs) for part in _pairs(rng, batch_size, blocks * pairs))
        stated = np.stack([names * DIGITS + digits, np.full_like(names, BLANK)], axis=2)
        asked = np.stack([QUESTION + names, ANSWER + digits], axis=2)
        asked = np.take_along_axis(asked, np.argsort(rng.random(names.shape), axis=1)[:, :, None], axis=1)
        words = np.concatenate([stated, asked], axis=1).astype(np.int32)
        starts = _scattered(rng, len(words), block, 2 * pairs, WIDTH)
        rows = _placed(words, starts, block, BLANK).reshape(batch_size, -1)
        where = (rows >= ANSWER) & (rows < BLANK)
        return Batch(rows[:, :-1].copy(), rows[:, 1:].copy(), where[:, 1:].copy(), np.zeros(batch_size, np.int32))

    def questions(self, distance: int, rows: int, seed: int = 0) -> Int32[np.ndarray, "B L"]:
        """Rows of `BEFORE` + ``distance`` + 2 tokens: each ends in a question about the pair that far back, and its answer.

        Other pairs stand between, 19 or as many as fill half the way.
        """
        distance, rows, seed = whole("distance", distance), whole("rows", rows), whole("seed", seed, 0)
        rng = np.random.default_rng([seed, distance])
        count = min(NAMES - 1, (distance - 1) // 2)
        names, digits = _pairs(rng, rows, count + 1)
        found = np.full((rows, BEFORE + distance + WIDTH), BLANK, np.int32)
        places = BEFORE + 1 + np.argsort(rng.random((rows, distance - 1)), axis=1)[:, :count]
        np.put_along_axis(found, places, (names * DIGITS + digits)[:, 1:].astype(np.int32), axis=1)
        found[:, BEFORE] = names[:, 0] * DIGITS + digits[:, 0]
        found[:, -2], found[:, -1] = QUESTION + names[:, 0], ANSWER + digits[:, 0]
        return found


def _pairs(rng: np.random.Generator, rows: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Names that differ within a row, and digits."""
    return np.argsort(rng.random((rows, NAMES)), axis=1)[:, :count], rng.integers(DIGITS, size=(rows, count))
