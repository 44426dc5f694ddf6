"""Run by test_hub_swap.py in a process of its own: saves that are killed, and saves beside reads. Prints one JSON object.

Children are forked, which JAX's threads do not survive: so the arrays are made before, and children only write files.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from minimoe import GroupedQueryConfig, ModelConfig, MoETransformer, UserError, hub
from minimoe.hub import folder as folders
from minimoe.hub.names import named_arrays

jax.config.update("jax_platforms", "cpu")
TINY = ModelConfig(vocab_size=8, d_model=4, num_layers=1, attention=GroupedQueryConfig(1, 1, 4), moe=None, d_ff=4)
MODELS = {name: MoETransformer(TINY, rngs=nnx.Rngs(seed)) for name, seed in (("old", 0), ("new", 1))}
ARRAYS = {id(m): {k: np.array(v) for k, v in named_arrays(m).items()} for m in MODELS.values()}
folders.named_arrays = lambda model: ARRAYS[id(model)]
folders.abstract_model = functools.cache(folders.abstract_model)
WATCHED = ("replace", "fsync", "unlink", "rmdir", "chmod")  # each a step that reaches the disk


def save(name: str, folder: Path) -> None:
    hub.save(MODELS[name], folder, provenance={"name": name})


def read(folder: Path) -> str:
    """Which model is there; raises if it is a mixture."""
    model, _, _ = hub.load(folder)
    found = [n for n, m in MODELS.items() if np.array_equal(model.embed.embedding[...], m.embed.embedding[...])]
    same = [n for n, m in MODELS.items() if np.array_equal(model.norm.scale[...], m.norm.scale[...])]
    assert found[0] in same
    return found[0]


def fork(function) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        function()
        code = 0
    finally:
        os._exit(code)


def die_at(step: int) -> None:
    """SIGKILL before the given one of the watched calls."""
    count = 0

    def watched(original):
        def call(*arguments, **named):
            nonlocal count
            count += 1
            if count > step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        return call

    for name in WATCHED:
        setattr(os, name, watched(getattr(os, name)))


def kills(place: Path, fresh: bool) -> list[str]:
    """What a reader finds after a kill before each step, then after none; and that the next save clears up."""
    seen = []
    for step in range(1000):
        folder = place / str(step)
        if not fresh:
            save("old", folder)

        def child(step=step, folder=folder):
            die_at(step)
            save("new", folder)

        _, status = os.waitpid(fork(child), 0)
        seen.append(read(folder) if (folder / "config.json").exists() else "nothing")
        save("old", folder)
        assert read(folder) == "old"
        assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"], os.listdir(folder)
        shutil.rmtree(folder)
        if status == 0:
            return seen
        assert os.WIFSIGNALED(status)
    raise AssertionError("it never ended")


def beside(folder: Path, writers: list[list[str]], seconds: float) -> dict[str, int]:
    """Reads while other processes save, each its models in turn; refused saves are counted by exit code."""
    save("old", folder)
    end = time.monotonic() + seconds

    def write(names):
        while time.monotonic() < end:
            for name in names:
                try:
                    save(name, folder)
                except UserError as error:
                    if "is being written by another process" not in str(error):
                        raise

    children = [fork(functools.partial(write, names)) for names in writers]
    seen = {"old": 0, "new": 0}
    while time.monotonic() < end:
        seen[read(folder)] += 1
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"], os.listdir(folder)
    read(folder)
    return seen


if __name__ == "__main__":
    place = Path(sys.argv[1])
    values = {
        "overwriting": kills(place / "overwriting", fresh=False),
        "fresh": kills(place / "fresh", fresh=True),
        "one writer": beside(place / "one", [["new", "old"]], 1.5),
        "two writers": beside(place / "two", [["new"], ["old"]], 1.5),
    }
    print(json.dumps(values))
