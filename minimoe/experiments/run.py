"""One run of an experiment: what is trained, in which folder, and what the record says of it."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minimoe.console import messages
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.config import ModelConfig
    from minimoe.data import Document, Tokenizer, TrainingData
    from minimoe.model import MoETransformer
    from minimoe.training import Evaluation, Method, RunConfig, TrainResult

# What the record says of a run that does nothing special; `Run.settings` replaces some of it.
PLAIN: dict[str, Any] = {
    "fp8": False,
    "qat": None,
    "quantized": None,
    "start": None,
    "tasks": 0.0,
    "form": "worked",
    "pool": 0,
    "domains": [],
    "text": "corpus",
    "teachers": [],
    "distill": {},
}


class Learning(NamedTuple):
    """What a run learns from.

    Attributes:
      data: training tokens.
      model: whose weights it begins from; None: fresh ones.
      method: what its steps do differently; None: plain language-model training.
    """

    data: TrainingData
    model: MoETransformer | None = None
    method: Method | None = None


def read_corpus(work: Workplace, run: RunConfig) -> Learning:
    """Fresh weights, and all of the corpus."""
    from minimoe.data import training_data

    return Learning(training_data(work.corpus, work.tokenizer))


@dataclasses.dataclass(frozen=True)
class Run:
    """A named run of an experiment.

    Attributes:
      name: of the run in the record, and of its folder.
      preset: of model and recipe. changes: to the recipe. dense: the preset's dense model instead.
      model: the model instead of the preset's; exclusive with ``dense``.
      learn: says what the run learns from. It is called with a `Workplace`, the run's config, and ``settings``.
      settings: keyword arguments of ``learn``, and what the record says of the run. Plain values: the run's folder
        keeps them, and another run cannot continue it.
      scores: further scores of the trained model. Each is called with the `Workplace`, the model and ``settings``, and
        returns what it adds to the record.
    """

    name: str
    preset: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dense: bool = False
    learn: Callable[..., Learning] = read_corpus
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scores: tuple[Callable[[Workplace, MoETransformer, Mapping[str, Any]], dict[str, Any]], ...] = ()
    model: ModelConfig | None = None

    def method(self) -> dict[str, Any]:
        """What the record says of the run beyond its model and recipe, in plain values."""
        return PLAIN | json.loads(json.dumps(dict(self.settings)))

    def tokenizer(self, work: Workplace) -> Tokenizer:
        """Of the run: the bundled one."""
        return work.tokenizer

    def validation(self, work: Workplace) -> list[Document]:
        """What the run is scored on along the way, by the quick protocol."""
        return work.validation

    def config(self, work: Workplace) -> RunConfig:
        """The config of the run's folder. Its ``data`` names all settings that are not empty."""
        from minimoe.data import describe_data
        from minimoe.training.new_run import make_run

        data: dict[str, Any] = dict(describe_data(None, work.corpus))
        data |= {key: value for key, value in self.method().items() if value}
        tokenizer, changes = work.tokenizer, dict(self.changes)
        run = make_run(self.preset, changes, dense=self.dense, dropout=None, tokenizer=tokenizer, data=data)
        if self.model is None:
            return run
        recipe = run.recipe if self.model.moe else dataclasses.replace(run.recipe, router_bias_rate=0.0)
        return dataclasses.replace(run, model=self.model, recipe=recipe)

    def outcome(self, work: Workplace, config: RunConfig, result: TrainResult) -> dict[str, Any]:
        """What the record says of the finished run."""
        found = _outcome(self, config, work, result)
        for score in self.scores:
            found |= score(work, result.model, self.settings)
        return found

    def headline(self, outcome: Mapping[str, Any]) -> str:
        """One line for who waits: the score of the finished run."""
        return f"{self.name}: {outcome['full']['bits_per_byte']:.3f} bits per byte (full)"


def train_run(run: Run, work: Workplace, out: Path) -> dict[str, Any] | None:
    """Trains one run in ``out``, or continues it there, and scores it.

    Returns:
      What the record says of it; None after Ctrl-C.

    Raises:
      UserError: if ``out`` holds another run, or a model that the run needs is not there yet.
    """
    from minimoe.progress import check_resume, draw_curve, train_with_bar
    from minimoe.training.new_run import describe_run

    config = run.config(work)
    first = check_resume(out, config, resume=True)
    messages.print(f"{run.name}: {describe_run(config)}")
    learning = run.learn(work, config, **run.settings)
    result = train_with_bar(
        run.name,
        config,
        learning.data,
        run.validation(work),
        run.tokenizer(work),
        first=first,
        out=out,
        resume=True,
        model=learning.model,
        method=learning.method,
    )
    draw_curve(out, result)
    return None if result.interrupted else run.outcome(work, config, result)


def machine() -> str:
    """What a record says of the machine that it was made on: an accelerator by its name, a CPU by its cores."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return str(device.device_kind)
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def training_curve(result: TrainResult) -> list[dict[str, Any]]:
    """What was logged of the steps of training."""
    return [record for record in result.records if record["kind"] == "train"]


def ran(run: Run, config: RunConfig, result: TrainResult) -> dict[str, Any]:
    """What the record of any run begins with: its config, its sizes and its time."""
    from minimoe.cost import count_params, forward_flops_per_token

    count, curve = count_params(config.model), training_curve(result)
    return {
        "config": config.to_dict(),
        "method": run.method(),
        "machine": machine(),
        "total_params": count.total,
        "active_params": count.active,
        "flops_per_token": forward_flops_per_token(config.model),
        "tokens": result.step * config.recipe.batch_size * config.model.context_length,
        "train_seconds": curve[-1]["seconds"] if curve else None,
    }


def _outcome(run: Run, config: RunConfig, work: Workplace, result: TrainResult) -> dict[str, Any]:
    """What the record says of every run: config, both protocols, time, routing and the whole curve."""
    from minimoe.data import evaluation_documents
    from minimoe.training import evaluate

    full = evaluate(result.model, evaluation_documents(work.validation, "full"), work.tokenizer)
    curve = training_curve(result)
    evaluations = [record for record in result.records if record["kind"] == "eval"]
    return {
        **ran(run, config, result),
        "quick": result.evaluation.to_record() if result.evaluation else None,
        "full": full.to_record(),
        "quantized": None,
        "tasks": {},
        "routing": _routing(full, curve) if config.model.moe else None,
        "curve": curve + evaluations,
    }


def _routing(full: Evaluation, curve: list[dict[str, Any]]) -> dict[str, Any]:
    """Balance and specialisation, one number a layer.

    ``max_violation_batch``: mean over the last tenth of the logged training batches. ``max_violation_global``: of the
    counts of the whole validation text. ``mutual_information``: of expert and domain there, in bits.
    """
    import jax.numpy as jnp
    import numpy as np

    from minimoe.moe import max_violation, mutual_information

    load = jnp.asarray(full.load)  # [domains, layers, E]
    late = [record["max_violation"] for record in curve[-max(1, len(curve) // 10) :]]
    values = {
        "max_violation_batch": np.mean(late, axis=0),
        "max_violation_global": max_violation(load.sum(axis=0)),
        "mutual_information": mutual_information(load.swapaxes(0, 1)),
    }
    return {name: [round(float(v), 4) for v in value] for name, value in values.items()}
