"""`minimoe bench dispatch` and `minimoe bench device`: what this device is good for, and whether its answers are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from minimoe.bench.sizes import MOE_AXES, MOE_SHAPES, check_dispatch, named_config, parse_shape
from minimoe.cli.bench_options import Json, Out, Pause, Rounds, Warmup
from minimoe.cli.bench_table import in_words, print_reports, whole_report
from minimoe.console import messages, start
from minimoe.errors import UserError
from minimoe.files import check_file, write_atomically


def dispatch(
    shape: Annotated[list[str] | None, typer.Option(help=f"{MOE_AXES} of a layer, or none; repeatable.")] = None,
    config: Annotated[list[str] | None, typer.Option(help="A preset to train and decode, or none; repeatable.")] = None,
    dispatch: Annotated[list[str] | None, typer.Option(help="dense, dropless, ragged or capacity; repeatable.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16; repeatable.")] = None,
    sequences: Annotated[int, typer.Option(min=1, help="Of a training step, each a whole context.")] = 8,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Sequences decoded at once; repeatable.")] = None,
    rounds: Rounds = 10,
    warmup: Warmup = 2,
    pause: Pause = 0.0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Every dispatch in float32 and bfloat16 on this device: layers, then whole models.

    Time ratios: below 1 is faster than what the package does by default, dropless in float32.

    Example: minimoe bench dispatch --shape 2048,256,512,16,2 --config nano --dtype float32
    """
    shapes = [parse_shape(text, MOE_AXES) for text in shape or MOE_SHAPES if text != "none"]
    configs = {name: named_config(name) for name in dict.fromkeys(config or ["nano", "small"]) if name != "none"}
    dispatches = list(dict.fromkeys(dispatch or ["dropless", "ragged", "dense", "capacity"]))
    dtypes, batches = list(dict.fromkeys(dtype or ["float32", "bfloat16"])), list(dict.fromkeys(batch or [1, 32]))
    check_dispatch(shapes, configs, dispatches, dtypes)
    if out is not None:
        check_file(out)
    start()
    from minimoe.bench import dispatch as benchmark

    clock: dict[str, Any] = {"rounds": rounds, "warmup": warmup, "pause": pause}
    settings, reports = clock | {"batches": batches, "load": "0.25"}, []
    for sizes in shapes:
        messages.print(f"dispatch: {in_words(sizes)}")
        reports.append(benchmark.measure_layer(sizes, dispatches, dtypes, **clock))
        _keep(out, "dispatch", settings, reports)
    for name, model in configs.items():
        messages.print(f"dispatch: {name}")
        timed = benchmark.measure_model(model, dispatches, dtypes, sequences=sequences, batches=batches, **clock)
        reports.append({"config": name} | timed)
        _keep(out, "dispatch", settings, reports)
    columns = {
        "ms": "ms",
        "time / default": "time_over_default",
        "useful GFLOP/s": "useful_gflops",
        "tokens/s": "tokens_per_second",
    }
    print_reports("dispatch", settings, reports, columns, as_json)


def _keep(out: Path | None, benchmark: str, settings: dict[str, Any], reports: list[dict[str, Any]]) -> None:
    """Writes what there is so far."""
    if out is not None:
        write_atomically(out, json.dumps(whole_report(benchmark, settings, reports), indent=1))


def device(
    model: Annotated[list[str] | None, typer.Option(help="A model that ships; repeatable. Default: all.")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The shipped models and exported programs on this device, against the same on a CPU.

    Differences of logits are over their spread: with all bits of float32, and as JAX multiplies unasked.

    Example: minimoe bench device --model nano
    """
    from minimoe.hub import shipped

    known = shipped()
    for name in model or ():
        if name not in known:
            raise UserError(f"--model {name!r} does not ship; choose from {', '.join(known)}")
    if out is not None:
        check_file(out)
    start()
    from minimoe.bench import device as benchmark

    def so_far(report: dict[str, Any]) -> None:
        _keep(out, "device", {}, [report])

    report = benchmark.measure(list(dict.fromkeys(model or known)), progress=so_far)
    columns = {
        "load, s": "load_seconds",
        "difference": "difference",
        "unasked": "difference_unasked",
        "likeliest equal": "likeliest_equal",
        "greedy equal": "greedy_equal",
    }
    print_reports("device", {"rounds": 1}, [report | {"shape": {}, "situation": report["device"]}], columns, as_json)
