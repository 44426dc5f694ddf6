"""Training batches as a pure function of (seed, step). Axis letters: B batch, L sequence.

Nothing remembers where training was: batch 1000 is computed without batches 0..999, so a resumed run reads what an
unbroken run would have read. Every token is a target about once an epoch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32, Int64

from minimoe.checks import whole
from minimoe.data.corpus import Document
from minimoe.data.tokenizer import Tokenizer
from minimoe.errors import UserError


@dataclasses.dataclass(frozen=True)
class Batch:
    """B windows of L tokens.

    Args:
      tokens: what the model reads.
      targets: the next token at each position.
      where: True where the target counts; False on padding, which only streams shorter than one window need.
      domains: of each row, an index into `TrainingData.domains`. For measurements: no model is told.
    """

    tokens: Int32[np.ndarray, "B L"]
    targets: Int32[np.ndarray, "B L"]
    where: Bool[np.ndarray, "B L"]
    domains: Int32[np.ndarray, "B"]


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """The windows of one epoch in the order they are served: W of them."""

    domains: Int32[np.ndarray, "W"]
    starts: Int64[np.ndarray, "W"]


class TrainingData:
    """Token streams, one a domain, and the batches drawn from them.

    A stream is a ring ``[EOT doc EOT doc ...]``: its last document is followed by the first. In each epoch every ring
    is cut, from a new random start, into windows of L targets; what is left over (fewer than L tokens of each ring, a
    different stretch every epoch) waits for the next epoch. The windows of all domains are shuffled together, and row
    ``r`` of step ``n`` is window ``n * B + r``, counted across epochs. Windows run over document boundaries.

    Args:
      domains: names; rows of a batch refer to them by index.
      streams: for each domain, ``[EOT doc EOT doc ...]`` as int32.
      eot_id: the end-of-text token, used for padding too.

    Raises:
      UserError: if there is no stream, or an empty one.

    Example:
      >>> data = TrainingData(("count",), (np.arange(5, dtype=np.int32),), eot_id=0)
      >>> batch = data.batch(seed=0, step=0, batch_size=2, length=2)
      >>> bool(((batch.targets - batch.tokens) % 5 == 1).all())
      True
    """

    def __init__(self, domains: tuple[str, ...], streams: tuple[Int32[np.ndarray, "_"], ...], eot_id: int) -> None:
        if not domains or len(domains) != len(streams) or any(stream.size == 0 for stream in streams):
            raise UserError(
                f"domains {domains}: each needs one stream with at least one token; leave out empty domains"
            )
        self.domains = domains
        self.streams = streams
        self.eot_id = eot_id
        # A step usually lies in one epoch, at most a few; more would only hold memory.
        self._epoch = functools.lru_cache(maxsize=4)(self._shuffled_windows)

    @property
    def num_tokens(self) -> int:
        """Tokens in all streams, one end of text a document included."""
        return sum(stream.size for stream in self.streams)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the domains' names and of every token: which data a run, or a teacher's cache, was made of."""
        digest = hashlib.sha256(repr(self.domains).encode())
        for stream in self.streams:
            digest.update(hashlib.sha256(stream.tobytes()).digest())
        return digest.hexdigest()

    def windows_per_epoch(self, length: int) -> int:
        """Windows in one epoch: the whole ones of each stream, and one padded window for a stream shorter than that."""
        length = whole("length", length)
        return int(sum(self._window_counts(length)))

    def batch(self, seed: int, step: int, batch_size: int, length: int) -> Batch:
        """The batch of one training step; equal arguments give equal arrays.

        Args:
          seed: names the order of all epochs, 0 or more.
          step: from 0.
          batch_size: B, rows.
          length: L, tokens a row.

        Raises:
          UserError: for a negative seed or step, or a size below 1.
        """
        batch_size, length = whole("batch_size", batch_size), whole("length", length)
        seed, step = whole("seed", seed, 0), whole("step", step, 0)
        per_epoch = self.windows_per_epoch(length)
        domains = np.empty(batch_size, np.int32)
        rows = np.full((batch_size, length + 1), self.eot_id, np.int32)
        where = np.zeros((batch_size, length), bool)
        for row in range(batch_size):
            epoch_number, position = divmod(step * batch_size + row, per_epoch)
            epoch = self._epoch(seed, epoch_number, length)
            domain, start = int(epoch.domains[position]), int(epoch.starts[position])
            ring = self.streams[domain]
            count = min(length, ring.size)  # targets; below L only for a ring shorter than one window
            rows[row, : count + 1] = ring[(start + np.arange(count + 1)) % ring.size]
            where[row, :count] = True
            domains[row] = domain
        return Batch(tokens=rows[:, :-1].copy(), targets=rows[:, 1:].copy(), where=where, domains=domains)

    def _window_counts(self, length: int) -> list[int]:
        return [max(1, stream.size // length) for stream in self.streams]

    def _shuffled_windows(self, seed: int, epoch: int, length: int) -> _Epoch:
        rng = np.random.default_rng([seed, epoch])
        counts = self._window_counts(length)
        starts = []
        for stream, count in zip(self.streams, counts, strict=True):
            # From anywhere on the ring, so that every token is as likely as any other to be in the part left over.
            # A ring shorter than a window starts at its first token: it is read as it was written.
            first = int(rng.integers(stream.size)) if stream.size >= length else 0
            starts.append((first + length * np.arange(count, dtype=np.int64)) % stream.size)
        order = rng.permutation(sum(counts))
        domains = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return _Epoch(domains[order], np.concatenate(starts)[order])


def training_data(documents: Sequence[Document], tokenizer: Tokenizer) -> TrainingData:
    """Encodes the training documents; validation documents are left out, whoever passes them.

    Domains come in the order in which they first appear. The bundled corpus takes about two seconds on two cores.

    Raises:
      UserError: if no document is in the training split.

    Example:
      >>> from minimoe.data.tokenizer import ByteTokenizer
      >>> data = training_data([Document("a", "train", "1", "hi"), Document("a", "val", "2", "ho")], ByteTokenizer())
      >>> data.streams[0].tolist()
      [256, 104, 105]
    """
    chosen = [document for document in documents if document.split == "train"]
    if not chosen:
        raise UserError(f"none of the {len(documents)} documents is in the split 'train'; give training text")
    pieces: dict[str, list[np.ndarray]] = {}
    encoded = tokenizer.encode_documents([document.text for document in chosen])
    for document, tokens in zip(chosen, encoded, strict=True):
        pieces.setdefault(document.domain, []).append(np.array([tokenizer.eot_id, *tokens], np.int32))
    streams = tuple(np.concatenate(parts) for parts in pieces.values())
    return TrainingData(tuple(pieces), streams, tokenizer.eot_id)
