"""``minimoe lab``: the long experiments behind the recorded numbers, each one command that resumes.

An experiment is a list of training runs. Each run lives in a folder of its own, is resumed where it stopped, is scored
on the full validation text when done, and then stands in the experiment's record: a JSON file in `minimoe/records`. A
few experiments train nothing and measure a model that another one left (`MEASUREMENTS`).
"""

from __future__ import annotations

import dataclasses
import json as json_module
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from minimoe.cli import lab_quant, lab_ship
from minimoe.cli.console import describe_data, messages, print_json, start
from minimoe.errors import UserError

app = typer.Typer(help="Long experiments behind the recorded numbers; each resumes.", no_args_is_help=True)
app.command("ship")(lab_ship.ship)
RECORDS = Path(__file__).parent.parent / "records"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training run of an experiment.

    Attributes:
      changes: to its recipe. experts: to its `minimoe.MoEConfig`.
      fp8: train with 8-bit products (`minimoe.quant.fp8_training`), and score so too.
      qat: quantization recipe whose rounded weights the forward pass uses after step ``qat_from``.
      quantized: quantization recipe applied after training; the outcome then is scored as well.
      start: finished run of another experiment, as ``experiment/run``, whose weights this one continues from.
    """

    name: str
    preset: str
    dense: bool = False
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    experts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fp8: bool = False
    qat: str | None = None
    qat_from: int = 0
    quantized: str | None = None
    start: str | None = None

    def method(self) -> dict[str, Any]:
        """What a run's config does not say, for the record."""
        return {name: getattr(self, name) for name in ("fp8", "qat", "qat_from", "quantized", "start")}


def small_hour(done: Mapping[str, Any]) -> list[Trial]:
    """``small`` for about an hour on two cores: the curve, and bits per byte on the whole validation text."""
    return [Trial("small", "small")]


def sparse_vs_dense(done: Mapping[str, Any]) -> list[Trial]:
    """``nano`` against the dense model of equal active FLOPs, three seeds: at equal tokens, then at equal time.

    The step count for equal time follows from the speeds measured in the first two runs.
    """
    steps = 600
    trials = []
    for seed in (0, 1, 2):
        trials.append(Trial(f"sparse-{seed}", "nano", changes={"steps": steps, "seed": seed}))
        trials.append(Trial(f"dense-{seed}", "nano", dense=True, changes={"steps": steps, "seed": seed}))
    if {"sparse-0", "dense-0"} <= set(done):
        ratio = done["sparse-0"]["train_seconds"] / done["dense-0"]["train_seconds"]
        longer = 10 * round(steps * ratio / 10)
        for seed in (0, 1, 2):
            changes = {"steps": longer, "seed": seed}
            trials.append(Trial(f"dense-equal-time-{seed}", "nano", dense=True, changes=changes))
    return trials


def balance_methods(done: Mapping[str, Any]) -> list[Trial]:
    """``nano`` under five ways of balancing, equal steps, three seeds: quality, balance, specialisation."""
    from minimoe.training import BALANCE_METHODS

    return [
        Trial(f"{method}-{seed}", "nano", changes={"steps": 300, "seed": seed} | changes)
        for seed in (0, 1, 2)
        for method, changes in BALANCE_METHODS.items()
    ]


def fp8_training(done: Mapping[str, Any]) -> list[Trial]:
    """``nano`` with float32 and with emulated 8-bit products, the same three seeds: how far the losses part."""
    return [
        Trial(f"{name}-{seed}", "nano", changes={"steps": 300, "seed": seed}, fp8=name == "fp8")
        for seed in (0, 1, 2)
        for name in ("float32", "fp8")
    ]


def qat_mxfp4(done: Mapping[str, Any]) -> list[Trial]:
    """``small`` with experts in MXFP4: 200 more steps of training with and without the rounding, equal but for that.

    Needs `small-hour`, whose weights it starts from, as DeepSeek-V4 does this after its main training. ``full`` scores
    the float32 weights, ``quantized`` the rounded ones: for ``plain`` runs that is post-training quantization.
    """
    changes = {"steps": 200, "learning_rate": 3e-4, "warmup_steps": 20}
    return [
        Trial(
            f"{name}-{seed}",
            "small",
            changes=changes | {"seed": seed},
            start="small-hour/small",
            quantized="mxfp4",
            qat="mxfp4" if name == "qat" else None,
        )
        for seed in (0, 1, 2)
        for name in ("plain", "qat")
    ]


EXPERIMENTS: dict[str, Callable[[Mapping[str, Any]], list[Trial]]] = {
    "small-hour": small_hour,
    "sparse-vs-dense": sparse_vs_dense,
    "balance-methods": balance_methods,
    "fp8-training": fp8_training,
    "qat-mxfp4": qat_mxfp4,
}


# Experiments that train nothing: from the folder of runs, into the record, saving it as they go.
MEASUREMENTS: dict[str, Callable[[Path, dict[str, Any], Callable[[], None]], None]] = {
    "quant-recipes": lab_quant.recipes,
}


def read_record(name: str) -> dict[str, Any]:
    """The record of an experiment, as shipped with the package.

    Raises:
      UserError: if there is none of that name.
    """
    path = RECORDS / f"{name}.json"
    if not path.is_file():
        raise UserError(f"no record of {name!r}; make it with `minimoe lab run {name}`")
    return json_module.loads(path.read_text(encoding="utf-8"))


@app.command("list")
def list_experiments() -> None:
    """Name the experiments and say which are recorded.

    Example: minimoe lab list
    """
    for name, make in {**EXPERIMENTS, **MEASUREMENTS}.items():
        recorded = "recorded" if (RECORDS / f"{name}.json").is_file() else "not recorded"
        typer.echo(f"{name} ({recorded}): {(make.__doc__ or '').splitlines()[0].replace('``', '')}")


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="An experiment.")]) -> None:
    """Print the record of an experiment as JSON.

    Example: minimoe lab show sparse-vs-dense
    """
    print_json(read_record(name))


@app.command("run")
def run(
    name: Annotated[str, typer.Argument(help="An experiment; see `minimoe lab list`.")],
    work: Annotated[Path, typer.Option(help="Folder for the runs' checkpoints.")] = Path("runs/lab"),
    record: Annotated[Path | None, typer.Option(help="Record to write; default: the one in the package.")] = None,
    minutes: Annotated[float, typer.Option(help="Start no further run after this long.")] = 1e9,
) -> int:
    """Run an experiment, or what is left of it; Ctrl-C loses nothing.

    Example: minimoe lab run sparse-vs-dense --work runs/lab
    """
    if name not in {**EXPERIMENTS, **MEASUREMENTS}:
        raise UserError(f"experiment {name!r} is not known; choose one of {', '.join({**EXPERIMENTS, **MEASUREMENTS})}")
    path = record or RECORDS / f"{name}.json"
    values: dict[str, Any] = {"experiment": name, "command": f"minimoe lab run {name}"}
    if path.is_file():
        values = json_module.loads(path.read_text(encoding="utf-8"))
    start(f"experiment {name}")
    if name in MEASUREMENTS:
        MEASUREMENTS[name](work, values, lambda: _write(path, values))
        return 0
    values.setdefault("runs", {})
    began = time.monotonic()
    while (trial := _next(name, values["runs"])) is not None:
        if time.monotonic() - began > 60 * minutes:
            messages.print("time is up; the same command continues", markup=False)
            break
        outcome = _run_trial(trial, work / name / trial.name, None if trial.start is None else work / trial.start)
        if outcome is None:
            return 130
        values["runs"][trial.name] = outcome
        _write(path, values)
        messages.print(f"{trial.name}: {outcome['full']['bits_per_byte']:.3f} bits per byte (full)", markup=False)
    return 0


def _next(name: str, done: Mapping[str, Any]) -> Trial | None:
    return next((trial for trial in EXPERIMENTS[name](done) if trial.name not in done), None)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    from minimoe.files import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json_module.dumps(values, indent=1) + "\n")


def _run_trial(trial: Trial, out: Path, start_from: Path | None) -> dict[str, Any] | None:
    """Trains (or continues) one run, from the weights in ``start_from`` if given, and scores it; None after Ctrl-C."""
    from minimoe.cli.train import check_resume, describe, draw, make_run, train_with_bar
    from minimoe.data import documents, load_tokenizer, training_data
    from minimoe.training.checkpoint import prepare_folder, write_run_config

    tokenizer, corpus = load_tokenizer(), documents()
    source = describe_data(None, corpus)
    run = make_run(trial.preset, dict(trial.changes), dense=trial.dense, dropout=None, tokenizer=tokenizer, data=source)
    if trial.experts:
        run = dataclasses.replace(run, model=run.model.replace_moe(**trial.experts))
    prepare_folder(out)
    first = check_resume(out, run, resume=True)
    if not first:
        write_run_config(out, run, tokenizer)
    messages.print(f"{trial.name}: {describe(run)}", markup=False)
    validation = [document for document in corpus if document.split == "val"]
    data = training_data(corpus, tokenizer)
    hooks = _hooks(trial, run.model, start_from)
    result = train_with_bar(trial.name, run, data, validation, tokenizer, first=first, out=out, resume=True, **hooks)
    draw(out, result)
    return None if result.interrupted else _outcome(trial, run, result, validation, tokenizer)


def _hooks(trial: Trial, config: Any, start_from: Path | None) -> dict[str, Any]:
    """What this trial changes in training, as arguments of `minimoe.training.train`.

    Raises:
      UserError: if it continues a run that is not there.
    """
    hooks: dict[str, Any] = {}
    if start_from is not None:
        from minimoe.training import load_checkpoint

        if not (start_from / "config.json").is_file():
            raise UserError(
                f"{start_from} holds no trained model; run `minimoe lab run {start_from.parent.name} "
                f"--work {start_from.parent.parent}` first"
            )
        hooks["prepare"] = lambda fresh: load_checkpoint(start_from)[0]
    if trial.fp8:
        from minimoe.quant.fp8_training import with_fp8_training

        hooks["prepare"] = with_fp8_training
    if trial.qat is not None:
        from flax import nnx

        from minimoe import MoETransformer
        from minimoe.quant.qat import qat_transform

        shapes = nnx.eval_shape(lambda: MoETransformer(config, rngs=nnx.Rngs(0)))
        hooks |= {"transform_params": qat_transform(shapes, trial.qat), "transform_from": trial.qat_from}
    return hooks


def _outcome(trial: Trial, run: Any, result: Any, validation: list[Any], tokenizer: Any) -> dict[str, Any]:
    """What goes into the record: config, both protocols, time, and the curve thinned to about 200 points."""
    import os
    import platform

    from minimoe.cost import count_params, forward_flops_per_token
    from minimoe.data import evaluation_documents
    from minimoe.training import evaluate

    documents = evaluation_documents(validation, "full")
    full = evaluate(result.model, documents, tokenizer)
    quantized = None
    if trial.quantized is not None:
        from minimoe.quant.rules import quantize_model

        quantized = evaluate(quantize_model(result.model, trial.quantized), documents, tokenizer).to_record()
    count = count_params(run.model)
    curve = [record for record in result.records if record["kind"] == "train"]
    evals = [record for record in result.records if record["kind"] == "eval"]
    return {
        "config": run.to_dict(),
        "method": trial.method(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "total_params": count.total,
        "active_params": count.active,
        "flops_per_token": forward_flops_per_token(run.model),
        "tokens": result.step * run.recipe.batch_size * run.model.context_length,
        "train_seconds": curve[-1]["seconds"],
        "quick": result.evaluation.to_record() if result.evaluation else None,
        "full": full.to_record(),
        "quantized": quantized,
        "routing": _routing(full, curve) if run.model.moe else None,
        "curve": curve[:: max(1, len(curve) // 200)] + evals,
    }


def _routing(full: Any, curve: list[dict[str, Any]]) -> dict[str, Any]:
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
