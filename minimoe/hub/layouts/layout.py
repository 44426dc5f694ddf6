"""What a layout is: a family of models in Transformers, as a table of names and two functions of configs.

A row of the table is one array of ours and the tensors that hold it there:

    ours                            theirs
    [D, V] head.kernel         <->  [V, D] lm_head.weight                                     `swapped`
    [D, 2F] ffn.gate_up_proj   <->  [F, D] mlp.gate_proj.weight, [F, D] mlp.up_proj.weight    `side_by_side`
    [E, D, 2F] gate_up_proj    <->  [E, 2F, D] in memory; in files [F, D] gate and up, expert by expert    `experts`

Transformers names some tensors otherwise in files than in memory, and there cuts the stacked experts into single ones. A
row knows both forms, and either is read. Files are written in the form that Transformers itself writes.

Axes: D model width, F hidden width, E experts, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minimoe.config import ModelConfig
from minimoe.hub.layouts.settings import Settings


class Change(NamedTuple):
    """What happens to a tensor between their layout and ours: a linear map of its entries to other places."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]

    def then(self, later: Change) -> Change:
        """On reading first this one, then ``later``; on writing the other way round."""
        return Change(lambda theirs: later.read(self.read(theirs)), lambda ours: self.write(later.write(ours)))


def _swap(array: np.ndarray) -> np.ndarray:
    return np.swapaxes(array, -1, -2)


KEEP = Change(lambda array: array, lambda array: array)
SWAP = Change(_swap, _swap)  # PyTorch multiplies by [out, in], we by [in, out]


def column_order(order: np.ndarray) -> Change:
    """Our column j is their column ``order[j]``; columns are the last axis of ours."""
    back = np.argsort(order)
    return Change(lambda array: array[..., order], lambda array: array[..., back])


@dataclasses.dataclass(frozen=True)
class Row:
    """The tensors that hold one array of ours.

    Attributes:
      names: of the tensors in a running Transformers model; several stand side by side on our last axis, in equal
        parts. None at all: they have no such tensor, and ours is 0.
      change: of each tensor.
      files: their names in files, where these differ. ``{e}`` stands for the number of an expert: such tensors are
        stacked over the experts. Where ``names`` is one and these are several, they are joined along the first axis of
        one expert.
    """

    names: tuple[str, ...] = ()
    change: Change = KEEP
    files: tuple[str, ...] = ()

    def within(self, prefix: str) -> Row:
        """The same row with ``prefix`` before each name."""
        names, files = (tuple(prefix + name for name in some) for some in (self.names, self.files))
        return dataclasses.replace(self, names=names, files=files)

    def from_memory(self, read: Callable[[str], np.ndarray]) -> np.ndarray:
        """Our array; ``read`` gives a tensor by its name in memory, and is called for one after the other."""
        parts = [self.change.read(read(name)) for name in self.names]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def to_memory(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """The inverse of `from_memory`."""
        parts = np.split(array, len(self.names), axis=-1) if self.names else []
        return {name: self.change.write(part) for name, part in zip(self.names, parts, strict=True)}

    def from_files(self, read: Callable[[str], np.ndarray], num_experts: int) -> np.ndarray:
        """Our array; ``read`` gives a tensor by its name in files."""
        if len(self.files) in (0, len(self.names)):  # the same tensors, perhaps by other names
            names = dict(zip(self.names, self.files or self.names, strict=True))
            return self.from_memory(lambda name: _stacked(read, names[name], num_experts))
        parts = [_stacked(read, each, num_experts) for each in self.files]
        return self.change.read(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2))

    def to_files(self, array: np.ndarray, num_experts: int) -> dict[str, np.ndarray]:
        """The inverse of `from_files`."""
        theirs = self.to_memory(array)
        if not self.files:
            return theirs
        parts = [*theirs.values()]
        if len(parts) != len(self.files):
            (whole,) = parts
            parts = np.split(whole, len(self.files), axis=-2)
        found: dict[str, np.ndarray] = {}
        for name, part in zip(self.files, parts, strict=True):
            found |= {name.format(e=e): part[e] for e in range(num_experts)} if "{e}" in name else {name: part}
        return found


def _stacked(read: Callable[[str], np.ndarray], name: str, num_experts: int) -> np.ndarray:
    if "{e}" not in name:
        return read(name)
    return np.stack([read(name.format(e=e)) for e in range(num_experts)])


def same(name: str, file: str = "") -> Row:
    """The tensor as it is; ``file`` is its name in files, if that is another."""
    return Row((name,), KEEP, (file,) if file else ())


def swapped(name: str, file: str = "") -> Row:
    """``[out, in]`` there, ``[in, out]`` here."""
    return Row((name,), SWAP, (file,) if file else ())


def side_by_side(*names: str) -> Row:
    """Several matrices ``[out, in]`` there, one ``[in, out + out]`` here."""
    return Row(names, SWAP)


def experts(name: str, *each: str) -> Row:
    """The experts' matrices, stacked: ``name`` in memory; in files the names ``each`` with the expert's number ``{e}``."""
    return Row((name,), SWAP, each)


ZERO = Row()  # they have no such tensor


def _nothing(name: str, settings: Settings) -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class Layout:
    """One family of models.

    Attributes:
      model_type: as config.json names it.
      read_config: config.json and a dtype -> `ModelConfig`; refuses what our models cannot express, naming value and repair.
      write_config: the inverse; refuses what the family cannot express. None if nothing can be written yet.
      rows: every array of a model of this config, by our name.
      ignored: whether a tensor that no row names may be left out.
    """

    model_type: str
    read_config: Callable[[Settings, str], ModelConfig]
    rows: Callable[[ModelConfig], dict[str, Row]]
    write_config: Callable[[ModelConfig], dict[str, Any]] | None = None
    ignored: Callable[[str, Settings], bool] = _nothing


def layer_number(name: str) -> int | None:
    """The i of ``model.layers.i.``, or None.

    Example:
      >>> layer_number("model.layers.61.embed_tokens.weight"), layer_number("lm_head.weight")
      (61, None)
    """
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return int(found[1]) if found else None
