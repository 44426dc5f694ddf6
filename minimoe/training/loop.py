"""The training loop: batch, step, log, evaluate, save; again.

The state after step n is a function of the run's config alone: the batch and the dropout key at a step are computed
from (seed, step), so a resumed run repeats an unbroken one bit for bit on the same machine.

``metrics.jsonl`` has lines of two kinds. ``train``: step, tokens, seconds (cumulative), loss (nats per token, or what
the method lowers), learning_rate, grad_norm, tokens_per_second, balance_loss, z_loss and, one number a layer,
max_violation, load_cv, load_entropy, dead_experts, drop_rate; mtp_loss where the model has that head, index_loss where it
teaches an indexer.
``eval``: step, tokens, seconds, protocol, bits_per_byte, pooled_bits_per_byte, per_domain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from minimoe import files
from minimoe.config import ModelConfig
from minimoe.data import Document, Tokenizer, TrainingData, check_vocabulary, evaluation_documents
from minimoe.errors import UserError
from minimoe.files import write_atomically, writing
from minimoe.model import MoETransformer, copy_model, model_fingerprint
from minimoe.moe import dead_experts, load_cv, load_entropy, max_violation
from minimoe.parallel.placement import Placement, placement
from minimoe.training.checkpoint import CheckpointFolder
from minimoe.training.evaluate import Evaluation, evaluate
from minimoe.training.method import Method, StepChanges
from minimoe.training.optim import learning_rate, optimizer_for
from minimoe.training.recipe import Recipe
from minimoe.training.run_folder import (
    CONFIG_FILE,
    METRICS_FILE,
    PARTS,
    RunConfig,
    check_folder,
    prepare_folder,
    read_run_config,
    write_run_config,
)
from minimoe.training.step import StepMetrics, train_step

Record = dict[str, Any]
Callback = Callable[[Record], None]


@dataclasses.dataclass
class TrainResult:
    """What `train` leaves behind.

    Attributes:
      model: after the last step done. records: the lines of metrics.jsonl. step: steps done.
      evaluation: of the last step by the quick protocol; None if interrupted before it.
      interrupted: whether Ctrl-C stopped the run; it can be resumed.
      run: the run's config with its method and fingerprints, as it stands in config.json.
    """

    model: MoETransformer
    records: list[Record]
    step: int
    evaluation: Evaluation | None
    interrupted: bool
    run: RunConfig


def init_training(
    run: RunConfig, model: MoETransformer | None = None, method: Method | None = None
) -> tuple[MoETransformer, nnx.Optimizer]:
    """The model before its first step, and its optimiser.

    Args:
      run: its seed decides fresh weights. model: whose weights to begin from instead; it is copied.
      method: may put other modules into the model.

    Raises:
      UserError: if ``model`` has another config than the run.
    """
    if model is not None and model.config != run.model:
        ours, theirs = run.model.to_dict(), model.config.to_dict()
        name = next(name for name in ours if ours[name] != theirs[name])
        raise UserError(
            f"the run has {name}={ours[name]!r}, the model to begin from {name}={theirs[name]!r}; "
            "give the run the config of that model"
        )
    model = init_model(run.model, run.recipe.seed) if model is None else copy_model(model)  # a step deletes its arrays
    model = (method or Method()).prepare_model(model)
    return model, optimizer_for(model, run.recipe)


@nnx.jit(static_argnames=("config", "seed"))
def init_model(config: ModelConfig, seed: int) -> MoETransformer:
    """`MoETransformer` with fresh weights, made in one compiled program: quicker than op by op, and cached."""
    return MoETransformer(config, rngs=nnx.Rngs(seed))


def step_record(metrics: StepMetrics, recipe: Recipe, step: int, tokens: int, seconds: float, speed: float) -> Record:
    """One ``train`` line: what happened in step number ``step`` (counted from 1)."""
    record: Record = {
        "kind": "train",
        "step": step,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "loss": float(metrics.loss),
        "learning_rate": float(learning_rate(recipe)(step - 1)),
        "grad_norm": float(metrics.grad_norm),
        "tokens_per_second": round(speed, 1),
    }
    if metrics.mtp is not None:
        record["mtp_loss"] = float(metrics.mtp)
    if metrics.index is not None:
        record["index_loss"] = float(metrics.index)
    if metrics.load.size:
        load = metrics.load
        record |= {"balance_loss": float(metrics.balance), "z_loss": float(metrics.z)}
        measures = {"max_violation": max_violation, "load_cv": load_cv, "load_entropy": load_entropy}
        record |= {name: _by_layer(measure, load) for name, measure in measures.items()}
        record |= {"dead_experts": _by_layer(dead_experts, load), "drop_rate": _rounded(metrics.dropped)}
    return record


def _by_layer(measure: Callable[[jax.Array], jax.Array], load: jax.Array) -> list[float]:
    """One number a layer, of the experts that it has: `stack_loads` writes NaN for those it lacks."""
    rows = np.asarray(load)
    return [round(float(measure(jnp.asarray(row[~np.isnan(row)]))), 4) for row in rows]


def _rounded(values: jax.Array) -> list[float]:
    return [round(float(v), 4) for v in values]


def train(
    run: RunConfig,
    data: TrainingData,
    validation: list[Document],
    tokenizer: Tokenizer,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    model: MoETransformer | None = None,
    method: Method | None = None,
    mesh: Mesh | str | None = None,
    on_record: Callback = lambda record: None,
    on_step: Callable[[int, StepMetrics], None] = lambda step, metrics: None,
) -> TrainResult:
    """Trains, and stops cleanly at a Ctrl-C.

    Args:
      run: model, recipe and where the data came from.
      data: training tokens. validation: documents of the quick protocol are picked from these; none: nothing is scored.
      tokenizer: must not have more ids than the model.
      out: a folder that is new or empty, or holds this run. It gets all that `load_checkpoint` and a resumed run need.
        None keeps everything in memory.
      resume: continue from the last checkpoint in ``out``, if there is one.
      model: to train on from, of the config ``run.model``; it is left as it is. None: fresh weights from the seed.
      method: what the steps do differently from plain language-model training, see `minimoe.training.Method`.
        Evaluations stay the same.
      mesh: devices to train on, such as ``"data=2,expert=4"``, see `minimoe.parallel`; None is one. Losses are the same
        to rounding, and a run may be resumed on another mesh. With several processes all call `train` alike, and the
        first writes. Evaluations run on one device.
      on_record: called with each metrics line. on_step: called after every step, with what it measured.

    Raises:
      UserError: if ``out`` holds something else, or a run that differs from this one in model, recipe, data, method or
        initial weights; if a loss is not finite (the last good state is saved first); if model, method or tokenizer do
        not fit.

    Example:
      >>> from minimoe.data import ByteTokenizer, training_data
      >>> config = ModelConfig.preset("nano").dense_equivalent().replace(vocab_size=257, num_layers=1, context_length=8)
      >>> run = RunConfig(config, Recipe(steps=1, batch_size=2), {"name": "an example"}, "byte")
      >>> texts = [Document("a", split, split, "to be or not to be") for split in ("train", "val")]
      >>> train(run, training_data(texts, ByteTokenizer()), texts, ByteTokenizer()).step
      1
    """
    check_vocabulary(tokenizer, run.model.vocab_size, f"raise vocab_size to {tokenizer.vocab_size}")
    method = method or Method()
    place = placement(mesh, run.model, run.recipe.batch_size)
    out = None if out is None or not place.writes else files.named_path(out)
    if out is not None:
        check_folder(out, run, resume=resume)
    run = _described(run, method, data, tokenizer, model)
    if model is None and resume and out is not None and CheckpointFolder(out).steps():
        # The weights come from the checkpoint, so those that the run began from need not be given again.
        run = dataclasses.replace(run, fingerprints=_started_from(out) | dict(run.fingerprints))
    trained, optimizer = init_training(run, model, method)
    changes = method.changes(run, trained, data, tokenizer)
    if mesh is not None and (changes.batch_for or changes.extra_for):
        raise UserError(
            f"the method {method.name!r} needs a teacher at each step, which a mesh does not have; train without"
        )
    with _open_session(run, tokenizer, out, resume, on_record) as session, _stop_flag() as stop:
        first = place.lay_out(trained, optimizer, session.restore(trained, optimizer) if resume else 0)
        return _run(session, place, trained, optimizer, data, validation, first, stop, on_step, changes)


def _described(
    run: RunConfig, method: Method, data: TrainingData, tokenizer: Tokenizer, model: MoETransformer | None
) -> RunConfig:
    """The run with its method, and with fingerprints of all that a config does not hold."""
    fingerprints = {"data": data.fingerprint, "tokenizer": tokenizer.fingerprint}
    fingerprints |= {} if model is None else {"start": model_fingerprint(model)}
    return dataclasses.replace(run, method=method.to_dict(), fingerprints=fingerprints)


def _started_from(out: Path) -> dict[str, str]:
    known = read_run_config(out).fingerprints
    return {"start": known["start"]} if "start" in known else {}


def _run(
    session, place: Placement, model, optimizer, data, validation, first, stop, on_step, changes: StepChanges
) -> TrainResult:
    run, recipe = session.run, session.run.recipe
    length = run.model.context_length
    per_step = recipe.batch_size * length
    key = jax.random.key(recipe.seed)
    documents = evaluation_documents(validation, "quick") if validation else []
    static = {"recipe": recipe, "objective": changes.objective, "transform_params": changes.transform_params}
    evaluation = None
    step, window_start, window_step = first, time.monotonic(), first
    while step < recipe.steps and not place.any(stop.is_set()):
        batch = data.batch(recipe.seed, step, recipe.batch_size, length)
        batch = batch if changes.batch_for is None else changes.batch_for(step, batch, model)
        tokens, targets, where = (place.batch(array) for array in (batch.tokens, batch.targets, batch.where))
        extra = None if changes.extra_for is None else changes.extra_for(step, batch)
        dropout_key = jax.random.fold_in(key, step)
        metrics = train_step(model, optimizer, tokens, targets, where, dropout_key, **static, extra=extra)
        metrics = place.whole(metrics)
        if not bool(metrics.ok):
            session.save(step, place.whole(model), place.whole(optimizer))
            raise UserError(_not_finite(step, metrics, session.out))
        step += 1
        on_step(step, metrics)
        if step % recipe.log_every == 0 or step == recipe.steps:
            now = time.monotonic()
            speed = (step - window_step) * per_step / max(now - window_start, 1e-9)
            session.log(step_record(metrics, recipe, step, step * per_step, session.seconds(), speed))
            window_start, window_step = now, step
        if _due(step, recipe.eval_every, recipe.steps):
            evaluation = session.evaluate(step, per_step, place.whole(model), documents)
            window_start, window_step = time.monotonic(), step
        if _due(step, recipe.checkpoint_every, recipe.steps):
            session.save(step, place.whole(model), place.whole(optimizer))
            window_start, window_step = time.monotonic(), step
    if first >= recipe.steps:  # a finished run, resumed: its result again, but no second line for it
        evaluation = session.evaluate(step, per_step, place.whole(model), documents, known=True)
    interrupted = step < recipe.steps
    if interrupted:
        session.save(step, place.whole(model), place.whole(optimizer))
    return TrainResult(place.whole(model), session.records, step, evaluation, interrupted, run)


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _not_finite(step: int, metrics: StepMetrics, out: Path | None) -> str:
    kept = f"the state after step {step} is kept in {out}" if out else "nothing after it was learned"
    values = f"loss={float(metrics.loss)}, gradient norm={float(metrics.grad_norm)}"
    return f"training stopped: step {step + 1} is not finite ({values}); {kept}. Lower --learning-rate and train again"


@contextlib.contextmanager
def _open_session(
    run: RunConfig, tokenizer: Tokenizer, out: Path | None, resume: bool, on_record: Callback
) -> Iterator[_Session]:
    """The run's files, ready to be written by this process alone."""
    if out is None:
        yield _Session(run, tokenizer, None, on_record)
        return
    prepare_folder(out)
    with files.only_writer(out):
        check_folder(out, run, resume=resume, parts=PARTS)
        write_run_config(out, run, tokenizer)
        session = _Session(run, tokenizer, out, on_record)
        try:
            yield session
        finally:
            session.close()


class _Session:
    """A run's files and clock; everything is in memory when there is no folder."""

    def __init__(self, run: RunConfig, tokenizer: Tokenizer, out: Path | None, on_record: Callback):
        self.run, self.tokenizer, self.out, self.on_record = run, tokenizer, out, on_record
        self.records: list[Record] = []
        self.checkpoints = CheckpointFolder(out) if out else None
        self._started, self._before = time.monotonic(), 0.0

    def seconds(self) -> float:
        """Training time so far, earlier parts of a resumed run included."""
        return self._before + time.monotonic() - self._started

    def restore(self, model: MoETransformer, optimizer: nnx.Optimizer) -> int:
        """Fills model and optimiser from the last checkpoint and cuts the metrics back to it; returns its step."""
        steps = self.checkpoints.steps() if self.checkpoints else []
        if self.checkpoints and steps:
            self.checkpoints.restore(steps[-1], model, optimizer)
        step = steps[-1] if steps else 0
        if self.out and (self.out / METRICS_FILE).is_file():
            self.records = [r for r in read_metrics(self.out) if r["step"] <= step]
            write_atomically(self.out / METRICS_FILE, "".join(json.dumps(r) + "\n" for r in self.records))
        self._before = self.records[-1]["seconds"] if self.records else 0.0
        return step

    def log(self, record: Record) -> None:
        self.records.append(record)
        if self.out:
            path = self.out / METRICS_FILE
            with writing(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.on_record(record)

    def evaluate(
        self, step: int, per_step: int, model: MoETransformer, documents: list[Document], *, known: bool = False
    ) -> Evaluation | None:
        if not documents:
            return None
        seconds = self.seconds()
        result = evaluate(model, documents, self.tokenizer)
        self._started += self.seconds() - seconds  # the clock of the curve is training time
        if known and any(r["kind"] == "eval" and r["step"] == step for r in self.records):
            return result
        record = {"kind": "eval", "step": step, "tokens": step * per_step, "seconds": round(seconds, 3)}
        self.log(record | {"protocol": "quick"} | result.to_record())
        return result

    def save(self, step: int, model: MoETransformer, optimizer: nnx.Optimizer) -> None:
        if self.checkpoints and self.out:
            with writing(self.out):  # a checkpoint without its config would be of no use: the folder was deleted
                (self.out / CONFIG_FILE).stat()
            self.checkpoints.save(step, model, optimizer)

    def close(self) -> None:
        if self.checkpoints:
            self.checkpoints.close()


def read_metrics(folder: Path) -> list[Record]:
    """The records of a training folder; a last line cut short by a kill is left out."""
    if not (folder / METRICS_FILE).is_file():
        raise UserError(f"{folder} holds no {METRICS_FILE}; name a training folder")
    records = []
    for line in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


@contextlib.contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and SIGHUP (a closed terminal) set, so that a run stops between two steps and saves.

    A second Ctrl-C is immediate.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield stop
        return

    def request(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # nohup: it shall outlive its terminal
        numbers.append(hangup)
    earlier = {number: signal.signal(number, request) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
