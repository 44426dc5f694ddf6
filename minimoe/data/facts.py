"""Facts to learn by heart: a generated book of names and numbers, the yardstick for how much a model can hold.

An entry is a name of a few letters and a number of a few digits, such as ``kqzv4021``. All are random, so nothing can be
inferred: a model recalls the number of a name or it guesses. A book of N entries with numbers of m digits holds
``N * m * log2(10)`` bits.

References:
  Allen-Zhu and Li, `Physics of Language Models: Part 3.3, Knowledge Capacity Scaling Laws
  <https://arxiv.org/abs/2404.05405>`_; for experts, Jelassi et al., `Mixture of Parrots
  <https://arxiv.org/abs/2410.19034>`_.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from minimoe.checks import whole
from minimoe.data.batches import Batch, TrainingData, _Epoch
from minimoe.data.tokenizer import ByteTokenizer
from minimoe.errors import UserError

DOMAIN = "facts"
LETTERS, DIGITS = b"abcdefghijklmnopqrstuvwxyz", b"0123456789"


class FactBook(TrainingData):
    """N facts, and training batches of them. Axis letters: N entries, W symbols an entry, B batch, L = W - 1.

    A row of a batch is one entry, and every entry is read once an epoch. The tokens are those of `ByteTokenizer`. Only
    the digits are worth predicting: a name is a question. `minimoe.training.RecallFacts` lowers the loss of the digits
    alone, and `minimoe.training.evaluate_facts` measures what a model recalls.

    Args:
      size: N, entries. Two of them never have the same name.
      seed: another seed is another book.
      letters: of a name, enough for N different names. digits: of a number; each holds 3.32 bits.

    Raises:
      UserError: for a size below 1, or names too short for so many entries.

    Example:
      >>> book = FactBook(3, seed=1)
      >>> book.text(0)
      'uupj9093'
    """

    def __init__(self, size: int, seed: int = 0, *, letters: int = 4, digits: int = 4) -> None:
        size, seed = whole("size", size), whole("seed", seed, 0)
        letters, digits = whole("letters", letters, most=13), whole("digits", digits, most=18)  # 64 bits hold no more
        possible = len(LETTERS) ** letters
        if size > possible:
            repair = f"raise letters to {math.ceil(math.log(size, len(LETTERS)))} or lower size"
            raise UserError(
                f"size={size} entries need different names, but {letters} letters make {possible}; {repair}"
            )
        rng = np.random.default_rng([seed, size, letters, digits])
        names = spelled(rng.choice(possible, size, replace=False), LETTERS, letters)
        numbers = spelled(rng.integers(10**digits, size=size), DIGITS, digits)
        self.seed, self.letters, self.digits = seed, letters, digits
        self.entries: Int32[np.ndarray, "N W"] = np.concatenate([names, numbers], axis=1)
        super().__init__((DOMAIN,), (self.entries.reshape(-1),), ByteTokenizer().eot_id)

    @property
    def size(self) -> int:
        """N."""
        return len(self.entries)

    @property
    def length(self) -> int:
        """L, tokens of a row: all but the last of an entry. The context that a model needs."""
        return self.letters + self.digits - 1

    @property
    def bits(self) -> float:
        """What the numbers hold in all: ``N * digits * log2(10)``."""
        return self.size * self.digits * math.log2(10)

    @property
    def asked(self) -> Bool[np.ndarray, "L"]:
        """Positions whose target is a digit."""
        return np.arange(self.length) >= self.letters - 1

    def text(self, index: int) -> str:
        """Entry number ``index`` as text, name first."""
        return bytes(self.entries[index].astype(np.uint8)).decode("ascii")

    def part(self, first: int, last: int) -> FactBook:
        """Entries ``first`` to ``last - 1`` as a book of their own.

        Raises:
          UserError: if that is no entry, or more than there are.
        """
        if not 0 <= first < last <= self.size:
            raise UserError(f"part({first}, {last}) of a book with {self.size} entries; give 0 <= first < last <= size")
        return self._with_entries(self.entries[first:last])

    def with_numbers(self, numbers: Int[np.ndarray, "N digits"]) -> FactBook:
        """The same names with other numbers, say those that a model wrote; tokens of digits."""
        return self._with_entries(np.concatenate([self.entries[:, : self.letters], numbers.astype(np.int32)], axis=1))

    def _with_entries(self, entries: Int32[np.ndarray, "n W"]) -> FactBook:
        book = FactBook.__new__(FactBook)
        book.seed, book.letters, book.digits, book.entries = self.seed, self.letters, self.digits, entries
        TrainingData.__init__(book, (DOMAIN,), (entries.reshape(-1),), self.eot_id)
        return book

    def windows_per_epoch(self, length: int) -> int:
        """N: a window is an entry.

        Raises:
          UserError: for any other length than that of an entry.
        """
        if length != self.length:
            raise UserError(
                f"length={length}, but an entry of this book is {self.length} tokens and its last digit; "
                f"give the model context_length={self.length}"
            )
        return self.size

    def batch(self, seed: int, step: int, batch_size: int, length: int) -> Batch:
        """The batch of one step: entries ``step * B`` to ``step * B + B - 1`` of a shuffled book, counted across epochs.

        Args, Raises: as for `TrainingData.batch`.
        """
        batch_size, seed, step = whole("batch_size", batch_size), whole("seed", seed, 0), whole("step", step, 0)
        per_epoch = self.windows_per_epoch(length)
        place = step * batch_size + np.arange(batch_size)
        rows = np.empty(batch_size, np.int64)
        for epoch in np.unique(place // per_epoch):
            inside = place // per_epoch == epoch
            rows[inside] = self._epoch(seed, int(epoch), length).starts[place[inside] % per_epoch]
        chosen = self.entries[rows]
        where = np.ones((batch_size, length), bool)
        return Batch(chosen[:, :-1].copy(), chosen[:, 1:].copy(), where, np.zeros(batch_size, np.int32))

    def _shuffled_windows(self, seed: int, epoch: int, length: int) -> _Epoch:
        order = np.random.default_rng([seed, epoch]).permutation(self.size)
        return _Epoch(np.zeros(self.size, np.int32), order)


def spelled(values: Int64[np.ndarray, "N"], symbols: bytes, width: int) -> Int32[np.ndarray, "N width"]:
    """Each number written with ``symbols`` as its digits, most significant first."""
    places = len(symbols) ** np.arange(width - 1, -1, -1, dtype=np.int64)
    return np.frombuffer(symbols, np.uint8)[values[:, None] // places % len(symbols)].astype(np.int32)
