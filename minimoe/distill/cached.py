"""Stores a teacher's answers on disk, its k best words at every position, so that it runs once for many students.

Axes: S steps in a shard, B batch, L sequence, V vocabulary, k words kept.

    folder/header.json          settings, teacher and data; written first, compared whenever the folder is opened
           00000.safetensors    steps 0..S-1: ids uint16, values float16, tail float16
           00001.safetensors    steps S..2S-1 and so on; the last may be shorter

Batch n of training depends on (seed, n) only, so (seed, n) identifies a batch of answers.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float, Integer

from minimoe.checks import number_fields, whole_fields
from minimoe.config import from_fields
from minimoe.errors import UserError
from minimoe.files import clear_unfinished, named_path, only_writer, prepare_folder, write_atomically

HEADER_FILE = "header.json"
FORMAT = "minimoe-teacher-cache-1"
_TYPES = {"ids": np.dtype(np.uint16), "values": np.dtype(np.float16), "tail": np.dtype(np.float16)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK:
    """The teacher's k best words at each position, as `minimoe.distill.topk_kl` takes them.

    Attributes:
      values: log-probabilities of the k best words, best first.
      ids: the words. tail: log of the mass on all others, ``-inf`` if there is none.
    """

    values: Float[Array | np.ndarray, "*batch k"]
    ids: Integer[Array | np.ndarray, "*batch k"]
    tail: Float[Array | np.ndarray, "*batch"]


def top_k_targets(logits: Float[Array, "*batch V"], k: int, temperature: int | float = 1.0) -> TopK:
    """The k best words of ``softmax(logits / temperature)`` and the mass that they leave.

    They are log-probabilities and not logits: likely words have values close to 0, where float16 is most exact.

    Args:
      logits: of the teacher, any float dtype.
      k: 1..V.
      temperature: give the student's loss the same one; a tail cannot be moved to another temperature afterwards.

    Raises:
      UserError: if k is not in 1..V or the temperature not above 0.

    Example:
      >>> top = top_k_targets(jnp.log(jnp.array([0.1, 0.6, 0.3])), k=2)
      >>> top.ids.tolist(), [f"{jnp.exp(value):.2f}" for value in (*top.values, top.tail)]
      ([1, 2], ['0.60', '0.30', '0.10'])
    """
    if not 1 <= k <= logits.shape[-1]:
        raise UserError(f"k={k} must be in 1..{logits.shape[-1]}, the vocabulary; 32 is a fair start")
    if not temperature > 0:
        raise UserError(f"temperature={temperature} must be above 0; 1 leaves the logits as they are")
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    values, ids = jax.lax.top_k(log_p, k)
    others = jnp.put_along_axis(log_p, ids, -jnp.inf, axis=-1, inplace=False)
    return TopK(values, ids, jax.nn.logsumexp(others, axis=-1))


@dataclasses.dataclass(frozen=True)
class CacheHeader:
    """The settings, the teacher and the data of a cache. On one machine, equal headers mean equal numbers.

    Args:
      teacher: `minimoe.model.model_fingerprint`. tokenizer: its `fingerprint`. data: names the text, such as a corpus hash.
      vocab_size: V, at most 65,536: ids are stored in 16 bits. k: words kept, 1..V.
      seed, batch_size, length: of the training batches, whose step number is the key.
      temperature: at which the values were made.
      steps_per_shard: S. A kill loses at most this many steps of work.

    Raises:
      UserError: for an impossible value.

    Example:
      >>> CacheHeader("t", "bpe", "corpus", vocab_size=2048, k=32, seed=0, batch_size=8, length=256).bytes_per_token
      130
    """

    teacher: str
    tokenizer: str
    data: str
    vocab_size: int
    k: int
    seed: int
    batch_size: int
    length: int
    temperature: int | float = 1.0
    steps_per_shard: int = 16

    def __post_init__(self) -> None:
        whole_fields(self, "vocab_size", "k", "batch_size", "length", "steps_per_shard")
        whole_fields(self, "seed", least=0)
        number_fields(self, "temperature", low=0, high=math.inf, ends="()", hint="1 leaves the logits alone")
        if self.vocab_size > 1 << 16:
            raise UserError(f"CacheHeader: vocab_size={self.vocab_size} is above 65536, and ids are stored in 16 bits")
        if self.k > self.vocab_size:
            raise UserError(f"CacheHeader: k={self.k} is above vocab_size={self.vocab_size}; lower k")

    @property
    def bytes_per_token(self) -> int:
        """Bytes stored for each position: 4 for each word and 2 for the tail. All V logits in float32 take 4 V."""
        return sum(self.k * _TYPES[name].itemsize for name in ("ids", "values")) + _TYPES["tail"].itemsize

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one step's array."""
        rows = (self.batch_size, self.length)
        return rows if name == "tail" else (*rows, self.k)


class TeacherCache:
    """A cache on disk; `load_cache` opens one.

    Attributes:
      folder, header: where and what. steps: batches that are complete, 0..steps-1.
    """

    def __init__(self, folder: Path, header: CacheHeader) -> None:
        self.folder, self.header = folder, header
        self.steps = self._count()
        self._shard = functools.lru_cache(maxsize=2)(self._read)  # steps come in order

    @property
    def num_bytes(self) -> int:
        """Bytes of all answers. The headers are not counted."""
        return self.steps * self.header.batch_size * self.header.length * self.header.bytes_per_token

    def batch(self, step: int) -> TopK:
        """The answers for the batch at ``step``: NumPy, float16 and uint16, ``[B, L, k]`` and ``[B, L]``.

        Raises:
          UserError: if the step is not in the cache, or its file is damaged.
        """
        if not 0 <= step < self.steps:
            raise UserError(f"step {step} is not in {self.folder}, which holds {self.steps} steps; cache more of them")
        shard, row = divmod(step, self.header.steps_per_shard)
        arrays = self._shard(shard)
        if row >= len(arrays["ids"]):
            raise UserError(f"{self.path(shard)} is cut short; delete it and write the cache again")
        return TopK(arrays["values"][row], arrays["ids"][row], arrays["tail"][row])

    def batches(self, first: int = 0) -> Iterator[tuple[int, TopK]]:
        """``(step, answers)`` from step ``first`` to the end."""
        for step in range(first, self.steps):
            yield step, self.batch(step)

    def path(self, shard: int) -> Path:
        """The file of one shard."""
        return self.folder / f"{shard:05d}.safetensors"

    def _count(self) -> int:
        shards = 0
        while self.path(shards).is_file():
            shards += 1
        # A shard is begun only once the one before it is full, so only the last can be short.
        return (shards - 1) * self.header.steps_per_shard + len(self._read(shards - 1)["ids"]) if shards else 0

    def _read(self, shard: int) -> dict[str, np.ndarray]:
        path = self.path(shard)
        try:
            arrays = safetensors.numpy.load_file(path)
        except Exception as error:  # safetensors and the system each have their own
            raise UserError(f"{path} cannot be read ({error}); delete it and write the cache again") from None
        count = len(arrays["ids"]) if "ids" in arrays else 0
        for name, dtype in _TYPES.items():
            found = arrays.get(name)
            fits = found is not None and found.dtype == dtype and found.shape == (count, *self.header.shape(name))
            if not fits or not 1 <= count <= self.header.steps_per_shard:
                raise UserError(f"{path}: {name} is not what {HEADER_FILE} says; delete the file and write it again")
        return arrays


def write_cache(folder: str | Path, header: CacheHeader, teacher: Callable[[int], TopK], steps: int) -> TeacherCache:
    """Asks the teacher for steps 0..steps-1 and stores its answers; steps that are on disk are not asked again.

    Each shard is written whole or not at all, and an interruption keeps every step that was finished. Run it again to
    continue, with more ``steps`` if wanted.

    Args:
      folder: new, empty, or a cache with the same header.
      header: what the answers are of.
      teacher: from a step to the answers for the training batch at that step.
      steps: in all.

    Raises:
      UserError: if the folder holds something else or is being written by another process, or an answer has another shape,
        an id outside the vocabulary, or a NaN.

    Example:
      >>> import tempfile
      >>> header = CacheHeader("t", "byte", "zeros", vocab_size=4, k=2, seed=0, batch_size=1, length=3)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     cache = write_cache(folder, header, lambda step: top_k_targets(jnp.zeros((1, 3, 4)), 2), steps=5)
      ...     print(cache.steps, cache.num_bytes, cache.batch(4).ids[0, 0])
      5 150 [0 1]
    """
    folder = named_path(folder)
    if holds_cache(folder):
        cache = load_cache(folder, **dataclasses.asdict(header))
        if cache.steps >= steps:
            return cache
    prepare_folder(folder, holds_cache, "a teacher cache")
    with only_writer(folder) as locked:
        if locked:
            clear_unfinished(folder)
        if not holds_cache(folder):
            values = {"format": FORMAT, **dataclasses.asdict(header)}
            write_atomically(folder / HEADER_FILE, json.dumps(values, indent=1) + "\n")
        _ask(load_cache(folder, **dataclasses.asdict(header)), teacher, steps)
    return TeacherCache(folder, header)


def holds_cache(folder: Path) -> bool:
    """Whether a cache was begun there."""
    return (folder / HEADER_FILE).is_file()


def _ask(cache: TeacherCache, teacher: Callable[[int], TopK], steps: int) -> None:
    """Stores the answers for the steps that are missing."""
    header = cache.header
    shard, begun = divmod(cache.steps, header.steps_per_shard)
    pending = [{name: array[row] for name, array in cache._read(shard).items()} for row in range(begun)]
    try:
        for step in range(cache.steps, steps):
            pending.append(_stored(teacher(step), header, step))
            if len(pending) == header.steps_per_shard:
                _write_shard(cache.path(shard), pending)
                shard, pending = shard + 1, []
    finally:
        if len(pending) != begun or shard != cache.steps // header.steps_per_shard:
            _write_shard(cache.path(shard), pending)


def load_cache(folder: str | Path, **expected: Any) -> TeacherCache:
    """Opens a cache, and compares its header with the settings of the caller.

    Args:
      folder: written by `write_cache`.
      expected: any fields of `CacheHeader`, such as ``tokenizer=tokenizer.fingerprint, seed=recipe.seed``.

    Raises:
      UserError: if there is no cache, its header is broken, or any field differs; all that differ are named.
    """
    path = Path(folder) / HEADER_FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no teacher cache (no {HEADER_FILE}); write one first")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise UserError(f"the format is not {FORMAT!r}")
        header = from_fields(CacheHeader, values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is broken ({error}); delete the folder and write the cache again") from None
    known = dataclasses.asdict(header)
    differ = [
        f"{name} is {known.get(name)!r}, not {want!r}" for name, want in expected.items() if known.get(name) != want
    ]
    if differ:
        raise UserError(f"{folder} is a cache of something else: {'; '.join(differ)}; use another folder")
    return TeacherCache(Path(folder), header)


def _stored(top: TopK, header: CacheHeader, step: int) -> dict[str, np.ndarray]:
    """One step's arrays in the types of the file."""
    arrays = {name: np.asarray(getattr(top, name)) for name in _TYPES}
    for name, array in arrays.items():
        if array.shape != header.shape(name):
            raise UserError(f"step {step}: the teacher's {name} have shape {array.shape}, not {header.shape(name)}")
    if arrays["ids"].min() < 0 or arrays["ids"].max() >= header.vocab_size:
        raise UserError(f"step {step}: the teacher names words outside 0..{header.vocab_size - 1}")
    if any(np.isnan(arrays[name]).any() or (arrays[name] == np.inf).any() for name in ("values", "tail")):
        raise UserError(f"step {step}: the teacher's answers are not finite; check its weights")
    with np.errstate(over="ignore"):  # below -65504 is a probability of 0, and -inf says so
        return {name: arrays[name].astype(dtype) for name, dtype in _TYPES.items()}


def _write_shard(path: Path, rows: list[dict[str, np.ndarray]]) -> None:
    if rows:
        write_atomically(path, safetensors.numpy.save({name: np.stack([row[name] for row in rows]) for name in _TYPES}))
