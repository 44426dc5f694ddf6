"""Trains runs that differ in nothing but their seed at once, many steps in one compiled program: for accelerators.

On an accelerator a step of a small model takes as long as its launch. Here a launch is for many steps and all seeds. The
steps are those of `minimoe.training.train_step`, mapped over the seeds and scanned over the batches. Experts are computed
by ``dispatch="dense"``, which gives the same numbers up to rounding and has no loops.
"""

from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimoe.console import Bar
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer
    from minimoe.experiments.run import Learning
    from minimoe.training import Evaluation, RunConfig, TrainResult

CHUNK = 100  # steps in one program, at most


def train_together(
    title: str,
    runs: Sequence[RunConfig],
    learnings: Sequence[Learning],
    validation: list[Document],
    tokenizer: Tokenizer,
) -> list[TrainResult]:
    """Trains one model a seed, all at once, in memory.

    Args:
      runs: equal but for the seeds. learnings: what each learns from; all by one method.
      validation: as for `minimoe.training.train`, scored every ``eval_every`` steps and at the end.

    Returns:
      As `minimoe.training.train` would, one result a run. Their seconds are those of all runs, shared evenly.

    Raises:
      UserError: for a method that needs a look at every batch, such as a teacher's.
    """
    import jax
    import jax.numpy as jnp

    from minimoe.data import evaluation_documents
    from minimoe.training.loop import TrainResult

    recipe = runs[0].recipe
    graphdef, state, advance = _program(runs, learnings, tokenizer)
    documents = evaluation_documents(validation, "quick") if validation else []
    chunk = math.gcd(math.gcd(CHUNK, recipe.steps), recipe.eval_every or recipe.steps)
    keys = jnp.stack([jax.random.key(run.recipe.seed) for run in runs])
    logs = [_Log(run, documents, tokenizer) for run in runs]
    seconds = 0.0
    with Bar(title, recipe.steps) as bar:
        for first in range(0, recipe.steps, chunk):
            batches, began = _batches(runs, learnings, first, chunk), time.monotonic()
            state, metrics = jax.block_until_ready(advance(state, batches, keys, jnp.arange(first, first + chunk)))
            seconds += (time.monotonic() - began) / len(runs)
            due = documents and (first + chunk == recipe.steps or _due(first + chunk, recipe.eval_every))
            models = _models(runs, graphdef, state) if due else [None] * len(runs)
            for index, (log, model) in enumerate(zip(logs, models, strict=True)):
                log.steps(first, jax.tree.map(lambda array, at=index: array[:, at], metrics), chunk, seconds)
                if model is not None:
                    log.evaluate(first + chunk, model, seconds)
            bar.update(first + chunk)
    models = _models(runs, graphdef, state)
    return [
        TrainResult(model, log.records, recipe.steps, log.evaluation, False, run)
        for run, model, log in zip(runs, models, logs, strict=True)
    ]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _Log:
    """The lines of one run, as `minimoe.training.train` keeps them."""

    def __init__(self, run: RunConfig, documents: list[Document], tokenizer: Tokenizer):
        self.recipe, self.documents, self.tokenizer = run.recipe, documents, tokenizer
        self.per_step = run.recipe.batch_size * run.model.context_length
        self.records: list[dict[str, Any]] = []
        self.evaluation: Evaluation | None = None

    def steps(self, first: int, metrics: Any, count: int, seconds: float) -> None:
        """Notes some of ``count`` steps after ``first``; ``metrics`` has one row a step."""
        import jax

        from minimoe.training import StepMetrics
        from minimoe.training.loop import step_record

        speed = (first + count) * self.per_step / seconds
        for index in range(count):
            step = first + index + 1
            if step % self.recipe.log_every == 0 or step == self.recipe.steps:
                one = StepMetrics(**jax.tree.map(lambda array, at=index: array[at], metrics))
                self.records.append(step_record(one, self.recipe, step, step * self.per_step, seconds, speed))

    def evaluate(self, step: int, model: Any, seconds: float) -> None:
        """Scores the model by the quick protocol."""
        from minimoe.training import evaluate

        self.evaluation = evaluate(model, self.documents, self.tokenizer)
        line = {"kind": "eval", "step": step, "tokens": step * self.per_step, "seconds": round(seconds, 3)}
        self.records.append(line | {"protocol": "quick"} | self.evaluation.to_record())


def _program(
    runs: Sequence[RunConfig], learnings: Sequence[Learning], tokenizer: Tokenizer
) -> tuple[Any, Any, Callable]:
    """The structure of a model with its optimiser, the states of all seeds, and what advances them by some steps."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    from flax import nnx

    from minimoe.training import Method, train_step
    from minimoe.training.loop import init_training

    run, method = runs[0], learnings[0].method or Method()
    pairs = [
        init_training(dataclasses.replace(each, model=_plain(each.model)), _plain_model(learning.model), method)
        for each, learning in zip(runs, learnings, strict=True)
    ]
    changes = method.changes(run, pairs[0][0], learnings[0].data, tokenizer)
    if changes.batch_for or changes.extra_for:
        raise UserError(f"{method.name} looks at every batch; train its runs one by one")
    graphdef = nnx.graphdef(pairs[0])
    state = jax.tree.map(lambda *arrays: jnp.stack(arrays), *(nnx.state(pair) for pair in pairs))

    def one_step(state, batch, key):
        model, optimizer = nnx.merge(graphdef, state)
        metrics = inspect.unwrap(train_step)(
            model,
            optimizer,
            *batch,
            key,
            recipe=run.recipe,
            objective=changes.objective,
            transform_params=changes.transform_params,
        )
        return nnx.state((model, optimizer)), vars(metrics)  # a dict: the record's own arrays have no axis of seeds

    @jax.jit
    def advance(state, batches, keys, steps):
        def body(state, inputs):
            batch, step = inputs
            step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
            return jax.vmap(one_step)(state, batch, step_keys)

        return jax.lax.scan(body, state, (batches, steps))

    return graphdef, state, advance


def _batches(runs: Sequence[RunConfig], learnings: Sequence[Learning], first: int, count: int) -> tuple[Any, ...]:
    """Tokens, targets and mask, each ``[steps, seeds, B, L]``."""
    import numpy as np

    found = []
    for run, learning in zip(runs, learnings, strict=True):
        recipe, length = run.recipe, run.model.context_length
        steps = range(first, first + count)
        batches = [learning.data.batch(recipe.seed, step, recipe.batch_size, length) for step in steps]
        found.append([np.stack([getattr(b, name) for b in batches]) for name in ("tokens", "targets", "where")])
    return tuple(np.stack(arrays, axis=1) for arrays in zip(*found, strict=True))


def _plain(model: Any) -> Any:
    return model.replace_moe(dispatch="dense") if model.moe else model


def _plain_model(model: Any) -> Any:
    """The same weights under the config that `_plain` gives; None stays None."""
    from minimoe.model import with_config

    return None if model is None else with_config(model, _plain(model.config))


def _models(runs: Sequence[RunConfig], graphdef: Any, state: Any) -> list[Any]:
    """One model a seed, of the config that its run says."""
    import jax
    from flax import nnx

    from minimoe.model import with_config

    found = []
    for index, run in enumerate(runs):
        trained, _ = nnx.merge(graphdef, jax.tree.map(lambda array, at=index: array[at], state))
        found.append(with_config(trained, run.model))
    return found


def keep(folder: Path, result: TrainResult, tokenizer: Tokenizer) -> None:
    """Saves a trained model and what was logged on the way, before anything is scored."""
    from minimoe.files import write_atomically
    from minimoe.hub import save

    save(result.model, folder, tokenizer)
    log = {"run": result.run.to_dict(), "records": result.records}
    write_atomically(_log_of(folder), json.dumps(log))


def is_kept(folder: Path, run: RunConfig) -> bool:
    """Whether `keep` saved this very run there."""
    from minimoe.hub import is_saved_folder

    log = _log_of(folder)
    if not (log.is_file() and is_saved_folder(folder)):
        return False
    return json.loads(log.read_text())["run"] == json.loads(json.dumps(run.to_dict()))


def kept(folder: Path, run: RunConfig, validation: list[Document], tokenizer: Tokenizer) -> TrainResult:
    """What `keep` saved of this run, and its last evaluation once more."""
    from minimoe.data import evaluation_documents
    from minimoe.hub import load
    from minimoe.training import evaluate
    from minimoe.training.loop import TrainResult

    model, records = load(folder)[0], json.loads(_log_of(folder).read_text())["records"]
    score = evaluate(model, evaluation_documents(validation, "quick"), tokenizer) if validation else None
    return TrainResult(model, records, run.recipe.steps, score, False, run)


def _log_of(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.json"
