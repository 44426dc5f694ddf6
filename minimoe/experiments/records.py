"""The records of experiments: JSON files in ``minimoe/records``, small enough to come with the package.

A run is recorded with its config, its scores and its curve. In the file a curve has at most `POINTS` training steps, and
one list of numbers for each quantity; the config of the first run stands there once, and the other runs have what
differs from it. In memory, as `read_record` gives it, every run has its whole config, and a curve is a list of records
as in ``metrics.jsonl``. Earlier files, whose runs are whole, still read. To make such a file small::

    write_record(path, read_record_file(path))
"""

from __future__ import annotations

import copy
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minimoe.errors import UserError
from minimoe.files import write_atomically

RECORDS = Path(__file__).parent.parent / "records"
POINTS = 32  # of a curve: enough for a figure
DIGITS = 6
# What figures draw. The other lines of metrics.jsonl stay in the run's folder.
DRAWN = ("step", "tokens", "seconds", "loss", "max_violation")
# What is kept of an evaluation on the way; the last one is kept whole.
SCORED = ("kind", "step", "tokens", "seconds", "protocol", "bits_per_byte")
Record = dict[str, Any]


def read_record(name: str) -> Record:
    """The record of an experiment, as shipped with the package.

    Args:
      name: of the experiment, such as ``"sparse-vs-dense"``.

    Raises:
      UserError: if there is none of that name.

    Example:
      >>> sorted(read_record("small-hour")["runs"])
      ['small']
    """
    path = RECORDS / f"{name}.json"
    if not path.is_file():
        raise UserError(f"no record of {name!r}; make it with `minimoe experiments run {name}`")
    return read_record_file(path)


def read_record_file(path: Path) -> Record:
    """A record from a file; every curve as a list of records, whichever form it has there.

    Raises:
      UserError: if it cannot be read, or is something else.
    """
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        shared = record.pop("config", None)
        for name, run in record.get("runs", {}).items():
            if "changes" in run:
                whole = changed(shared, run["changes"])
                pairs = (("config", whole) if key == "changes" else (key, value) for key, value in run.items())
                record["runs"][name] = run = dict(pairs)
            if isinstance(run["curve"], Mapping):
                run["curve"] = _rows(run["curve"]["train"]) + run["curve"]["eval"]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name another record") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is no record of an experiment ({what}); delete it or name another file") from error
    return record


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record with thin curves, whole or not at all; ``record`` stays as it is."""
    runs = {name: _packed(run) for name, run in record.get("runs", {}).items()}
    values = dict(record) | ({"runs": runs} if "runs" in record else {})
    if shared := next((run["config"] for run in runs.values() if "config" in run), None):
        values = {"config": shared, **values, "runs": {name: _changes_only(run, shared) for name, run in runs.items()}}
    write_atomically(path, _short_lines(json.dumps(values, indent=1)) + "\n")


def changes(shared: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says otherwise than the shared one: the new value by dotted path.

    A part that has other fields than the shared one is one value.

    Example:
      >>> changes({"seed": 0, "model": {"d_ff": 4, "vocab": 9}}, {"seed": 1, "model": {"d_ff": 8, "vocab": 9}})
      {'seed': 1, 'model.d_ff': 8}
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        other = shared[name]
        if isinstance(value, Mapping) and isinstance(other, Mapping) and value.keys() == other.keys():
            found |= {f"{name}.{inner}": new for inner, new in changes(other, value).items()}
        elif value != other or type(value) is not type(other):
            found[name] = value
    return found


def changed(shared: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `changes`: a copy of the shared config with the values at these paths.

    Example:
      >>> changed({"seed": 0, "model": {"d_ff": 4, "vocab": 9}}, {"model.d_ff": 8})
      {'seed': 0, 'model': {'d_ff': 8, 'vocab': 9}}
    """
    config = copy.deepcopy(dict(shared))
    for path, value in paths.items():
        *outer, last = path.split(".")
        part = config
        for name in outer:
            part = part[name]
        part[last] = value
    return config


def _changes_only(run: Record, shared: Mapping[str, Any]) -> Record:
    """A run with ``changes`` in the place of its config; as it is where its config has other fields, or names with dots."""
    config = run.get("config")
    if config is None or config.keys() != shared.keys():
        return run
    found = changes(shared, config)
    if changed(shared, found) != config:
        return run
    return {("changes" if name == "config" else name): found if name == "config" else run[name] for name in run}


def training_speed(run: Mapping[str, Any]) -> float:
    """Tokens a second of a recorded run: the median over its curve, which a pause or an evaluation does not move.

    Example:
      >>> training_speed({"curve": [{"kind": "train", "tokens_per_second": speed} for speed in (1.0, 9.0, 8.0)]})
      8.0
    """
    if "tokens_per_second" in run:  # found when the curve was still whole
        return run["tokens_per_second"]
    return statistics.median(record["tokens_per_second"] for record in run["curve"] if record["kind"] == "train")


def thin_curve(curve: Sequence[Record], points: int = POINTS) -> list[Record]:
    """The curve with at most ``points`` training records, evenly spaced: the first, the last, and all evaluations stay.

    Example:
      >>> curve = [{"kind": "train", "step": step, "loss": 1 / step} for step in range(1, 8)]
      >>> [record["step"] for record in thin_curve(curve, points=4)]
      [1, 3, 5, 7]
    """
    train = [record for record in curve if record["kind"] == "train"]
    evaluations = [record for record in curve if record["kind"] == "eval"]
    stride = max(1, math.ceil((len(train) - 1) / max(points - 1, 1)))
    kept = [index for index in range(len(train)) if index % stride == 0 or index == len(train) - 1]
    if len(kept) > points:  # the last one is beside the even grid and one too many
        del kept[-2]
    return [train[index] for index in kept] + evaluations


def _packed(run: Mapping[str, Any]) -> Record:
    """A run as it is written: with its speed, and its thin curve as columns."""
    curve = thin_curve(run["curve"])
    train = [record for record in curve if record["kind"] == "train"]
    columns = {name: [_rounded(record[name]) for record in train] for name in DRAWN if train and name in train[0]}
    evaluations = [record for record in curve if record["kind"] == "eval"]
    on_the_way = [_rounded({name: one[name] for name in SCORED if name in one}) for one in evaluations[:-1]]
    evaluations = on_the_way + evaluations[-1:]
    if "tokens" in columns and len(per_step := {one["tokens"] / one["step"] for one in train}) == 1:
        columns["tokens"] = per_step.pop()  # of a step: the column is this times ``step``
    speed = training_speed(run) if train else None
    return {**run, "tokens_per_second": speed, "curve": {"train": columns, "eval": evaluations}}


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[Record]:
    """The inverse of the columns of `_packed`."""
    if not isinstance(columns.get("tokens", []), list):
        columns = {**columns, "tokens": [round(columns["tokens"] * step) for step in columns["step"]]}
    rows = zip(*columns.values(), strict=True)
    return [{"kind": "train", **dict(zip(columns, row, strict=True))} for row in rows]


def _rounded(value: Any) -> Any:
    """Floats with `DIGITS` significant digits."""
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _short_lines(text: str) -> str:
    """JSON with every list and every object of plain values in one line: easy to read, and two thirds of the size."""
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda found: re.sub(r"\n\s*", "", found.group()), text)
