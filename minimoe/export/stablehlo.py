"""The programs of a model in StableHLO, lowered for several back ends at once, beside the weights.

out/forward.jax          one program as `jax.export` serialises it, and the same for decode_step and train_step
    forward.stablehlo    the program alone, in the portable bytecode that other compilers of StableHLO read
    weights.safetensors  the arrays that the programs take first, by name (and what an optimiser begins with, if not 0)
    config.json          platforms, names, shapes and dtypes of everything that goes in and comes out, checksums
    tokenizer.json, README.md

Lowered is not run. What a back end's own compiler makes of the program shows only where that back end is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minimoe import checks
from minimoe.data import Tokenizer, check_vocabulary
from minimoe.data.evaluation import window_length
from minimoe.errors import UserError
from minimoe.export.folder import FolderWriter, needs, read_folder
from minimoe.export.programs import Arrays, Program, decode_program, forward_program, train_program
from minimoe.files import named_path
from minimoe.hub.tensorfile import TensorFile
from minimoe.model import MoETransformer
from minimoe.quant import dequantize_model
from minimoe.training.recipe import Recipe

FORMAT = "minimoe-stablehlo-1"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
WEIGHTS_FILE = "weights.safetensors"
FACTS = ("batch", "length", "platforms", "programs")  # of config.json, which a folder cannot do without

README = """# {name} as StableHLO

Lowered for {platforms}. `config.json` names what each program takes and gives; `weights.safetensors` holds the arrays.

| program | batch | length | run by minimoe's tests on | lowered only for |
|---|---|---|---|---|
{rows}

In JAX, without minimoe:

    import jax, jax.numpy as jnp, safetensors.numpy
    weights = {{k: v for k, v in safetensors.numpy.load_file("{weights}").items() if not k.startswith("optimizer.")}}
    program = jax.export.deserialize(bytearray(open("forward.jax", "rb").read()))
    logits = program.call(weights, jnp.zeros(({batch}, {length}), jnp.int32))

`forward.stablehlo` is portable StableHLO bytecode, for compilers that are not JAX. Shapes are fixed: pad a shorter text
on the right, which changes nothing before the padding.
"""


def export_stablehlo(
    model: MoETransformer,
    directory: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    batch: int = 1,
    length: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
    recipe: Recipe | None = None,
) -> Path:
    """Writes the programs of a model, lowered for other back ends; all or nothing, like `minimoe.hub.save`.

    Args:
      model: of any configuration. A quantized model is written with the values that its codes stand for.
      directory: new, empty, or holding an earlier export of this format.
      tokenizer: goes along.
      batch: B of all programs. length: L of forward and training, and room in the cache; the context length by default, up
        to 4,096.
      platforms: names that `jax.export` knows.
      recipe: of training; with None there is no training step.

    Returns:
      The folder.

    Raises:
      UserError: for an unknown platform, a length above the context, or a folder that holds something else; if the
        package ``flatbuffers`` is missing.

    References:
      OpenXLA, `StableHLO <https://openxla.org/stablehlo>`_; `jax.export`.
    """
    needs("flatbuffers")
    check_vocabulary(tokenizer, model.config.vocab_size)
    limit = model.config.context_length
    batch = checks.whole("batch", batch)
    length = checks.whole("length", window_length(limit) if length is None else length, 1, limit)
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise UserError(f"platforms {list(platforms)} must be some of {', '.join(PLATFORMS)}")
    model = dequantize_model(model)
    programs = [forward_program(model, batch, length), decode_program(model, batch, length)]
    programs += [] if recipe is None else [train_program(model, recipe, batch, length)]
    facts: dict[str, Any] = {"model": model.config.to_dict(), "batch": batch, "length": length}
    facts |= {"platforms": list(platforms), "programs": {program.name: signature(program) for program in programs}}
    facts |= {"jax": jax.__version__}
    with FolderWriter(named_path(directory), FORMAT, "exported StableHLO programs") as out:
        for program in programs:
            lowered = jax.export.export(jax.jit(program.function), platforms=list(platforms))(*program.arguments)
            out.add(f"{program.name}.jax", bytes(lowered.serialize()))
            out.add(f"{program.name}.stablehlo", lowered.mlir_module_serialized)
        out.add_tensors(WEIGHTS_FILE, _arrays(programs))
        out.add_tokenizer(tokenizer)
        out.add("README.md", _readme(Path(directory).name, programs, batch, length, platforms).encode())
        out.publish(facts)
    return Path(directory)


def signature(program: Program) -> dict[str, Any]:
    """What a program takes and gives: for each argument and result its name in the tree, shape and dtype."""

    def listed(tree: Any) -> list[list[Any]]:
        leaves = jax.tree.leaves_with_path(tree)
        return [[jax.tree_util.keystr(path), list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves]

    results = jax.eval_shape(program.function, *program.arguments)
    return {"arguments": listed(program.arguments), "results": listed(results)}


class StableHLOModel:
    """Programs from `export_stablehlo`, run where JAX runs.

    Args:
      directory: the folder.

    Raises:
      UserError: if it is no such folder, was damaged, or was not lowered for the back end that JAX has here.

    Example:
      model = StableHLOModel("runs/nano-stablehlo"); model.generate([1, 2, 3], 20)
    """

    def __init__(self, directory: str | os.PathLike[str]):
        needs("flatbuffers")
        directory = named_path(directory)
        self.config, self.tokenizer, files, values = read_folder(directory, FORMAT, FACTS)
        self.batch, self.length, self.platforms = values["batch"], values["length"], values["platforms"]
        here = jax.default_backend().replace("gpu", "cuda")
        if here not in self.platforms:
            raise UserError(
                f"{directory} was lowered for {', '.join(self.platforms)}, and this is {here}; export for it too"
            )
        self.programs = {
            name: jax.export.deserialize(bytearray(files[f"{name}.jax"].read_bytes())) for name in values["programs"]
        }
        with TensorFile(files[WEIGHTS_FILE]) as file:
            arrays = {name: jnp.asarray(file.read(name)) for name in file.header}
        self.weights: Arrays = {name: a for name, a in arrays.items() if not name.startswith("optimizer.")}
        self._optimizer = {name: a for name, a in arrays.items() if name.startswith("optimizer.")}
        self._signatures = values["programs"]

    def logits(self, tokens: Any) -> jax.Array:
        """``[B, L, V]`` for ids ``[B, L']`` with L' at most L: they are padded, and the padding's are cut off."""
        tokens = np.asarray(tokens, np.int32)
        if tokens.ndim != 2 or tokens.shape[0] != self.batch or tokens.shape[1] > self.length:
            raise UserError(
                f"tokens has shape {list(tokens.shape)}, but the program takes {self.batch} rows of at most {self.length} ids"
            )
        padded = np.pad(tokens, ((0, 0), (0, self.length - tokens.shape[1])))
        return self.programs["forward"].call(self.weights, padded)[:, : tokens.shape[1]]

    def empty_cache(self) -> list[jax.Array]:
        """The cache of no token."""
        found = [row for row in self._signatures["decode_step"]["arguments"] if row[0].startswith("[2]")]
        return [jnp.zeros(shape, dtype) for _, shape, dtype in found]

    def step(self, tokens: Any, cache: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        """``(logits [B, V], cache)`` after one id a row more, ``tokens [B, 1]``."""
        return self.programs["decode_step"].call(self.weights, jnp.asarray(tokens, jnp.int32), cache)

    def generate(self, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        """Prompt and greedy continuation, the same in every row of the batch; one call of ``decode_step`` a token."""
        if not prompt or len(prompt) + max_new_tokens > self.length:
            raise UserError(f"prompt and new tokens are {len(prompt) + max_new_tokens}, outside 1..{self.length}")
        ids, cache = list(prompt), self.empty_cache()
        for place in range(len(prompt) + max_new_tokens - 1):
            logits, cache = self.step(np.full((self.batch, 1), ids[place]), cache)
            if place + 1 == len(ids):
                ids.append(int(jnp.argmax(logits[0])))
        return ids

    def initial_state(self) -> Arrays:
        """What ``train_step`` begins with: the weights, and the optimiser before its first step."""
        if "train_step" not in self._signatures:
            raise UserError("this export has no training step; give export_stablehlo a recipe")
        state = {f"model.{name}": array for name, array in self.weights.items()} | self._optimizer
        for path, shape, dtype in self._signatures["train_step"]["arguments"]:
            if path.startswith("[0]["):
                name = path[len("[0]['") : -len("']")]
                state.setdefault(name, jnp.zeros(shape, dtype))
        return state


def _arrays(programs: list[Program]) -> Arrays:
    """The weights, and what an optimiser begins with where that is not 0."""
    arrays = dict(programs[0].arguments[0])
    if len(programs) > 2:
        first = programs[2].arguments[0].items()
        arrays |= {name: a for name, a in first if name.startswith("optimizer.") and bool(jnp.any(a != 0))}
    return arrays


def _readme(name: str, programs: list[Program], batch: int, length: int, platforms: Sequence[str]) -> str:
    others = ", ".join(p for p in platforms if p != "cpu") or "none"
    ran = "cpu" if "cpu" in platforms else "none"
    rows = "\n".join(
        f"| {program.name} | {batch} | {1 if program.name == 'decode_step' else length} | {ran} | {others} |"
        for program in programs
    )
    facts = {"platforms": ", ".join(platforms), "weights": WEIGHTS_FILE, "batch": batch, "length": length}
    return README.format(name=name, rows=rows, **facts)
