"""Reading the records of a training run, the lines of its metrics file, into arrays.

A line of kind ``train`` holds ``step``, ``tokens`` (so far), ``seconds`` (so far), ``loss`` (nats a token) and, in a
sparse model, lists with one value a layer (``max_violation`` and others). A line of kind ``eval`` holds ``step``,
``tokens``, ``seconds``, ``protocol`` ("quick" or "full"), ``bits_per_byte`` (mean over domains) and ``per_domain``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

Record: TypeAlias = Mapping[str, Any]


def of_kind(records: Sequence[Record], kind: str, protocol: str | None = None) -> list[Record]:
    """The records of one kind ("train" or "eval"), and of one protocol if it is given."""
    chosen = [record for record in records if record.get("kind") == kind]
    return [record for record in chosen if protocol is None or record.get("protocol") == protocol]


def column(records: Sequence[Record], name: str) -> Float[np.ndarray, " n"]:
    """One number of every record; NaN where a record has none."""
    values = [record.get(name) for record in records]
    return np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)


def per_layer(records: Sequence[Record], name: str) -> Float[np.ndarray, "n layers"]:
    """One list of every record, one value a layer; no columns if no record has it, NaN where one lacks it."""
    rows = [list(record.get(name) or []) for record in records]
    layers = max((len(row) for row in rows), default=0)
    table = np.full((len(rows), layers), np.nan)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table


def smooth(values: Float[np.ndarray, " n"], half_width: int | None = None) -> Float[np.ndarray, " n"]:
    """Moving average around each point, which unlike a trailing one does not lag behind a falling curve.

    Args:
      values: [n]; those that are not finite are left out of the averages.
      half_width: points on either side, fewer at the ends; a hundredth of ``n`` if not given.

    Returns:
      [n], NaN where a window holds no finite value.
    """
    half = len(values) // 100 if half_width is None else half_width
    good = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(good, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(good)])
    at = np.arange(len(values))
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    total, count = sums[last] - sums[first], counts[last] - counts[first]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
