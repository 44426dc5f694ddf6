"""Runs an experiment, or what is left of it, and keeps its record up to date."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimoe.console import messages
from minimoe.errors import UserError
from minimoe.experiments import (
    attention_kinds,
    balance_methods,
    distillation,
    distillation_ways,
    fp8_training,
    knowledge,
    knowledge_balance,
    knowledge_distilled,
    knowledge_formats,
    longer_problems,
    longer_text,
    mtp,
    nano,
    qat_mxfp4,
    quant_recipes,
    reasoning,
    reasoning_formats,
    recall,
    small_hour,
    sparse_vs_dense,
    specialists,
    step_times,
    teacher,
    v4_nano,
    v4_parts,
    v4_small,
)
from minimoe.experiments.records import RECORDS, read_record_file, write_record
from minimoe.experiments.run import Run, train_run
from minimoe.experiments.workplace import Workplace
from minimoe.files import check_file

if TYPE_CHECKING:
    from minimoe.training import RunConfig, TrainResult

# From the runs that are recorded already to all runs of the experiment.
EXPERIMENTS: dict[str, Callable[[Mapping[str, Any]], list[Run]]] = {
    "small-hour": small_hour.runs,
    "sparse-vs-dense": sparse_vs_dense.runs,
    "longer-text": longer_text.runs,
    "longer-problems": longer_problems.runs,
    "knowledge": knowledge.runs,
    "knowledge-balance": knowledge_balance.runs,
    "knowledge-formats": knowledge_formats.runs,
    "knowledge-distilled": knowledge_distilled.runs,
    "balance-methods": balance_methods.runs,
    "fp8-training": fp8_training.runs,
    "qat-mxfp4": qat_mxfp4.runs,
    "nano": nano.runs,
    "teacher": teacher.runs,
    "distillation": distillation.runs,
    "distillation-ways": distillation_ways.runs,
    "reasoning": reasoning.runs,
    "specialists": specialists.runs,
    "v4-nano": v4_nano.runs,
    "v4-parts": v4_parts.runs,
    "v4-small": v4_small.runs,
    "mtp": mtp.runs,
    "attention-kinds": attention_kinds.runs,
    "recall": recall.runs,
}
# These train nothing. From the folder of runs into the record, which they save as they go.
MEASUREMENTS: dict[str, Callable[[Path, dict[str, Any], Callable[[], None]], None]] = {
    "quant-recipes": quant_recipes.measure,
    "reasoning-formats": reasoning_formats.measure,
    "step-times": step_times.measure,
}


def missing_runs(name: str, done: Mapping[str, Any]) -> list[Run]:
    """The runs of an experiment that are not in ``done``, its recorded runs; none of a measurement."""
    return [run for run in EXPERIMENTS[name](done) if run.name not in done] if name in EXPERIMENTS else []


def run_experiment(
    name: str, folder: Path, record: Path | None = None, *, minutes: float = float("inf"), only: str = "*"
) -> bool:
    """Runs an experiment, or what is left of it.

    Args:
      name: in `EXPERIMENTS` or `MEASUREMENTS`.
      folder: of the runs of all experiments; see `Workplace`.
      record: file to write, whose runs count as done; None is the one in the package.
      minutes: no further run is started after this long.
      only: pattern of the names of the runs to do. Two processes may share a record.

    Returns:
      False after Ctrl-C. The same call continues.

    Raises:
      UserError: if the name is not known, the record cannot be written or is broken, or a model that a run needs is not
        there yet.
    """
    if name not in {**EXPERIMENTS, **MEASUREMENTS}:
        raise UserError(f"experiment {name!r} is not known; choose one of {', '.join({**EXPERIMENTS, **MEASUREMENTS})}")
    path = record or RECORDS / f"{name}.json"
    check_file(path)
    values: dict[str, Any] = {"experiment": name, "command": f"minimoe experiments run {name}"}
    if path.is_file():
        values = read_record_file(path)
    messages.print(f"experiment {name}")
    if name in MEASUREMENTS:
        MEASUREMENTS[name](folder, values, lambda: write_record(path, values))
        return True
    values.setdefault("runs", {})
    work, began = Workplace(folder), time.monotonic()
    while (run := _next(name, values["runs"], only)) is not None:
        if time.monotonic() - began > 60 * minutes:
            messages.print("time is up; the same command continues")
            break
        outcome = train_run(run, work, folder / name / run.name)
        if outcome is None:
            return False
        if path.is_file():  # another process may have added runs of its own
            values["runs"] |= read_record_file(path)["runs"]
        values["runs"][run.name] = outcome
        write_record(path, values)
        messages.print(run.headline(outcome))
    return True


def run_together(name: str, folder: Path, record: Path | None = None, *, only: str = "*") -> None:
    """Runs what is left of an experiment on an accelerator: all seeds of a run at once, in memory.

    The trained models are saved in the folder of runs, for runs that begin from them.

    Args:
      name, record, only: as for `run_experiment`. folder: of earlier experiments, whose models some runs begin from.

    Raises:
      UserError: for runs whose method looks at every batch, such as those of a teacher.
    """
    if name not in EXPERIMENTS:
        raise UserError(f"{name!r} is no experiment of training runs; choose one of {', '.join(EXPERIMENTS)}")
    path, work = record or RECORDS / f"{name}.json", Workplace(folder)
    values: dict[str, Any] = {"experiment": name, "command": f"minimoe experiments run {name} --together"}
    values = read_record_file(path) if path.is_file() else values
    done = values.setdefault("runs", {})
    groups: dict[str, list[Run]] = {}
    for run in missing_runs(name, done):
        if fnmatch.fnmatchcase(run.name, only):
            groups.setdefault(run.name.rpartition("-")[0], []).append(run)
    for title, runs in groups.items():
        configs = [run.config(work) for run in runs]
        for run, config, result in zip(runs, configs, _trained(title, runs, configs, work, name), strict=True):
            done[run.name] = run.outcome(work, config, result)
            write_record(path, values)
            messages.print(run.headline(done[run.name]))


def _trained(
    title: str, runs: list[Run], configs: list[RunConfig], work: Workplace, name: str
) -> Iterable[TrainResult]:
    """Trains runs together and saves them; if all are saved already, and a kill came while they were scored, reads them."""
    from minimoe.experiments.together import is_kept, keep, kept, train_together

    folders = [work.together(f"{name}/{run.name}") for run in runs]
    shared = runs[0].validation(work), runs[0].tokenizer(work)
    places = list(zip(folders, configs, strict=True))
    if all(is_kept(*place) for place in places):
        return [kept(*place, *shared) for place in places]
    learnings = [run.learn(work, config, **run.settings) for run, config in zip(runs, configs, strict=True)]
    results = train_together(title, configs, learnings, *shared)
    for folder, result in zip(folders, results, strict=True):
        keep(folder, result, shared[1])
    return results


def _next(name: str, done: Mapping[str, Any], only: str) -> Run | None:
    return next((run for run in missing_runs(name, done) if fnmatch.fnmatchcase(run.name, only)), None)
