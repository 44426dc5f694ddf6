"""``minimoe lab``: the long experiments behind the recorded numbers, each one command that resumes.

An experiment is a list of training runs. Each run lives in a folder of its own, is resumed where it stopped, is scored
on the full validation text when done, and then stands in the experiment's record: a JSON file in `minimoe/records`.
"""

from __future__ import annotations

import dataclasses
import json as json_module
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from minimoe.cli.console import describe_data, messages, print_json, start
from minimoe.errors import UserError

app = typer.Typer(help="Long experiments behind the recorded numbers; each resumes.", no_args_is_help=True)
RECORDS = Path(__file__).parent.parent / "records"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training run of an experiment. ``changes`` go to its recipe, ``experts`` to its `minimoe.MoEConfig`."""

    name: str
    preset: str
    dense: bool = False
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    experts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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


EXPERIMENTS: dict[str, Callable[[Mapping[str, Any]], list[Trial]]] = {
    "small-hour": small_hour,
    "sparse-vs-dense": sparse_vs_dense,
    "balance-methods": balance_methods,
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
    for name, make in EXPERIMENTS.items():
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
    if name not in EXPERIMENTS:
        raise UserError(f"experiment {name!r} is not known; choose one of {', '.join(EXPERIMENTS)}")
    path = record or RECORDS / f"{name}.json"
    values: dict[str, Any] = {"experiment": name, "command": f"minimoe lab run {name}", "runs": {}}
    if path.is_file():
        values = json_module.loads(path.read_text(encoding="utf-8"))
    start(f"experiment {name}")
    began = time.monotonic()
    while (trial := _next(name, values["runs"])) is not None:
        if time.monotonic() - began > 60 * minutes:
            messages.print("time is up; the same command continues", markup=False)
            break
        outcome = _run_trial(trial, work / name / trial.name)
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


def _run_trial(trial: Trial, out: Path) -> dict[str, Any] | None:
    """Trains (or continues) one run and scores it; None after Ctrl-C."""
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
    result = train_with_bar(trial.name, run, data, validation, tokenizer, first=first, out=out, resume=True)
    draw(out, result)
    return None if result.interrupted else _outcome(run, result, validation, tokenizer)


def _outcome(run: Any, result: Any, validation: list[Any], tokenizer: Any) -> dict[str, Any]:
    """What goes into the record: config, both protocols, time, and the curve thinned to about 200 points."""
    import os
    import platform

    from minimoe.cost import count_params, forward_flops_per_token
    from minimoe.data import evaluation_documents
    from minimoe.training import evaluate

    full = evaluate(result.model, evaluation_documents(validation, "full"), tokenizer)
    count = count_params(run.model)
    curve = [record for record in result.records if record["kind"] == "train"]
    evals = [record for record in result.records if record["kind"] == "eval"]
    return {
        "config": run.to_dict(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "total_params": count.total,
        "active_params": count.active,
        "flops_per_token": forward_flops_per_token(run.model),
        "tokens": result.step * run.recipe.batch_size * run.model.context_length,
        "train_seconds": curve[-1]["seconds"],
        "quick": result.evaluation.to_record() if result.evaluation else None,
        "full": full.to_record(),
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
