"""`minimoe bench`: measure speed on this machine. Every ratio compares two things timed in turn in one process."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minimoe import console
from minimoe.console import messages, print_json, start
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.config import ModelConfig

app = typer.Typer(
    help="Measure speed on this machine, as ratios within one run.", no_args_is_help=True, rich_markup_mode=None
)

MOE_AXES, ATTENTION_AXES, QUANT_AXES = "T,D,F,E,K", "B,L,N,M,H", "T,I,O"
MOE_SHAPES = ["2048,256,512,16,2", "4096,256,256,32,4", "1024,512,1024,8,2"]
ATTENTION_SHAPES = ["8,256,8,4,32"]
DEFAULT_CONFIG, LARGE_CONFIG = "mixtral-21m", "random-300m"

Rounds = Annotated[int, typer.Option(min=1, help="Timed rounds; each runs every contestant once.")]
Warmup = Annotated[int, typer.Option(min=0, help="Rounds before them that are not timed.")]
Pause = Annotated[float, typer.Option(min=0, help="Seconds of rest before each timed call, the same for all.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Config = Annotated[str, typer.Option(help=f"A preset, or {DEFAULT_CONFIG}, which Transformers has too.")]


@app.command()
def moe(
    shape: Annotated[list[str] | None, typer.Option(help=f"{MOE_AXES}; repeatable.")] = None,
    dispatch: Annotated[list[str] | None, typer.Option(help="loop, dense or dropless; repeatable.")] = None,
    skew: Annotated[float, typer.Option(min=0, max=1, help="0: as routed. 1: the first K experts take all.")] = 0.0,
    rounds: Rounds = 15,
    warmup: Warmup = 3,
    pause: Pause = 0.02,
    as_json: Json = False,
) -> None:
    """One sparse layer, forward and backward, against a dense one and Transformers.

    The dense layer is a SwiGLU of width K*F, which spends the same FLOPs a token; Transformers' block (experts
    implementation grouped_mm) has the same weights and must give the same answers. Time ratios: below 1 is faster.

    Example: minimoe bench moe --shape 2048,256,512,16,2 --skew 0.1
    """
    shapes = [parse_shape(text, MOE_AXES) for text in shape or MOE_SHAPES]
    dispatches = list(dict.fromkeys(dispatch or ["dropless"]))
    for sizes in shapes:
        check_moe(sizes, dispatches)
    start()
    from minimoe.cli import bench_moe

    reports = []
    for sizes in shapes:
        messages.print(f"moe: {_sizes(sizes)}")
        reports.append(bench_moe.measure(sizes, dispatches, skew=skew, rounds=rounds, warmup=warmup, pause=pause))
    settings = {"skew": skew, "rounds": rounds, "warmup": warmup, "pause_seconds": pause}
    columns = {
        "ms": "ms",
        "time / dense_ffn": "time_over_dense_ffn",
        "time / grouped_mm": "time_over_grouped_mm",
        "useful GFLOP/s": "useful_gflops",
    }
    _print("moe", settings, reports, columns, as_json)


@app.command()
def train(
    config: Config = DEFAULT_CONFIG,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a step.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Tokens a sequence.")] = 256,
    learning_rate: Annotated[
        float, typer.Option(min=0, help="Small: the load stays even. 0.001: it collapses.")
    ] = 1e-5,
    rounds: Rounds = 10,
    warmup: Warmup = 2,
    pause: Pause = 0.02,
    as_json: Json = False,
) -> None:
    """Training steps: tokens per second, against Transformers with the same weights.

    Speed ratios: above 1 is faster than Transformers. Equal first losses: both train the same model.

    Example: minimoe bench train --config nano --rounds 5
    """
    model = named_config(config)
    check_fits(model, length, "--length")
    start()
    from minimoe.cli import bench_train

    messages.print(f"train: {config}, {batch} x {length} tokens a step")
    report = bench_train.measure(
        model,
        batch=batch,
        length=length,
        learning_rate=learning_rate,
        rounds=rounds,
        warmup=warmup,
        pause=pause,
    )
    settings = {
        "config": config,
        "learning_rate": learning_rate,
        "rounds": rounds,
        "warmup": warmup,
        "pause_seconds": pause,
    }
    columns = {
        "tokens/s": "tokens_per_second",
        "ms a step": "ms_per_step",
        "speed / transformers": "speed_over_transformers",
        "first step, s": "first_step_seconds",
        "useful GFLOP/s": "useful_gflops",
    }
    _print("train", settings, [report], columns, as_json)


@app.command()
def decode(
    config: Config = DEFAULT_CONFIG,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Prompt tokens.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 128,
    rounds: Rounds = 7,
    warmup: Warmup = 1,
    pause: Pause = 0.02,
    as_json: Json = False,
) -> None:
    """Greedy generation: tokens per second, against Transformers with the same weights.

    Speed ratios: above 1 is faster than Transformers. The tokens of both must be identical.

    Example: minimoe bench decode --batch 4 --new-tokens 64
    """
    model = named_config(config)
    check_fits(model, prompt + new_tokens, "--prompt plus --new-tokens")
    start()
    from minimoe.cli import bench_decode

    messages.print(f"decode: {config}, {batch} x {new_tokens} tokens after {prompt}")
    report = bench_decode.measure(
        model, batch=batch, prompt=prompt, new_tokens=new_tokens, rounds=rounds, warmup=warmup, pause=pause
    )
    settings = {"config": config, "rounds": rounds, "warmup": warmup, "pause_seconds": pause}
    columns = {
        "tokens/s": "tokens_per_second",
        "ms a call": "ms_per_call",
        "speed / transformers": "speed_over_transformers",
    }
    _print("decode", settings, [report], columns, as_json)


@app.command()
def attention(
    shape: Annotated[list[str] | None, typer.Option(help=f"{ATTENTION_AXES}; repeatable.")] = None,
    rounds: Rounds = 15,
    warmup: Warmup = 3,
    pause: Pause = 0.02,
    as_json: Json = False,
) -> None:
    """Causal attention, forward and backward, against jax.nn.dot_product_attention.

    Time ratios: below 1 is faster than the library.

    Example: minimoe bench attention --shape 8,256,8,4,32 --shape 1,1024,8,4,32
    """
    shapes = [parse_shape(text, ATTENTION_AXES) for text in shape or ATTENTION_SHAPES]
    for sizes in shapes:
        check_attention(sizes)
    start()
    from minimoe.cli import bench_attention

    reports = []
    for sizes in shapes:
        messages.print(f"attention: {_sizes(sizes)}")
        reports.append(bench_attention.measure(sizes, rounds=rounds, warmup=warmup, pause=pause))
    settings = {"rounds": rounds, "warmup": warmup, "pause_seconds": pause}
    columns = {"ms": "ms", "time / library": "time_over_library", "useful GFLOP/s": "useful_gflops"}
    _print("attention", settings, reports, columns, as_json)


@app.command()
def quant(
    shape: Annotated[list[str] | None, typer.Option(help=f"{QUANT_AXES} of a matmul; repeatable.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Time generation instead of matmuls.")] = False,
    config: Annotated[
        list[str] | None, typer.Option(help=f"With --decode: a preset, or {LARGE_CONFIG}, 1.3 GB; repeatable.")
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="With --decode: a quantization recipe; repeatable. Default: both int8.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="With --decode: sequences; repeatable.")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="With --decode: prompt tokens.")] = 8,
    new_tokens: Annotated[int, typer.Option(min=1, help="With --decode: tokens to generate.")] = 16,
    rounds: Rounds = 15,
    warmup: Warmup = 3,
    pause: Pause = 0.02,
    as_json: Json = False,
) -> None:
    """Quantized weights against float32: single matmuls, or greedy generation. Weights are random.

    int8-w8a8 multiplies integers; int8 keeps integers in memory and turns them into floats for every matmul. Speed
    ratios: above 1 is faster than float32.

    Example: minimoe bench quant --decode --config small --batch 1 --rounds 5
    """
    configs = {name: named_config(name) for name in dict.fromkeys(config or ["small", LARGE_CONFIG])}
    for model in configs.values():
        check_fits(model, prompt + new_tokens, "--prompt plus --new-tokens")
    shapes = [parse_shape(text, QUANT_AXES) for text in shape or []]
    from minimoe.quant import get_recipe

    recipes = [get_recipe(name).name for name in dict.fromkeys(recipe or ["int8-w8a8", "int8"])]
    start()
    from minimoe.cli import bench_quant

    settings: dict[str, Any] = {"rounds": rounds, "warmup": warmup, "pause_seconds": pause, "weights": "random"}
    reports = []
    if not decode:
        for sizes in shapes or bench_quant.default_shapes():
            messages.print(f"quant: {_sizes(sizes)}")
            reports.append(bench_quant.measure_matmul(sizes, rounds=rounds, warmup=warmup, pause=pause))
        columns = {"ms": "ms", "speed / float32": "speed_over_float32"}
        columns |= {"weight bytes": "weight_bytes", "relative error": "relative_error"}
        _print("quant", settings, reports, columns, as_json)
        return
    settings |= {"configs": list(configs), "recipes": recipes}
    for name, model in configs.items():
        messages.print(f"quant: decode with {name}, random weights")
        sizes_of: dict[str, Any] = {"prompt": prompt, "new_tokens": new_tokens}
        clock: dict[str, Any] = {"rounds": rounds, "warmup": warmup, "pause": pause}
        measured = bench_quant.measure_decode(model, batch or [1, 8], recipes=recipes, **sizes_of, **clock)
        reports += [{"config": name, "weights": "random"} | report for report in measured]
    columns = {"tokens/s": "tokens_per_second", "ms a call": "ms_per_call", "speed / float32": "speed_over_float32"}
    columns |= {"bytes": "bytes", "tokens as float32": "tokens_as_float32"}
    _print("quant", settings, reports, columns, as_json)


def parse_shape(text: str, axes: str) -> dict[str, int]:
    """``"8,4"`` with axes ``"T,D"`` -> ``{"T": 8, "D": 4}``.

    Raises:
      UserError: unless there is one whole number of at least 1 an axis.
    """
    names, parts = axes.split(","), text.split(",")
    if len(parts) != len(names) or not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
        raise UserError(f"--shape {text!r} must be {len(names)} whole numbers of at least 1: {axes}")
    return dict(zip(names, map(int, parts), strict=True))


def check_moe(sizes: dict[str, int], dispatches: Sequence[str]) -> None:
    """Refuses impossible sizes and unknown dispatches before anything runs."""
    from minimoe.config import MoEConfig

    for name in dispatches:
        MoEConfig(sizes["D"], sizes["F"], sizes["E"], sizes["K"], dispatch=name)


def check_attention(sizes: dict[str, int]) -> None:
    if sizes["N"] % sizes["M"]:
        raise UserError(f"--shape: N={sizes['N']} query heads must be a multiple of M={sizes['M']} key/value heads")


def check_fits(config: ModelConfig, tokens: int, what: str) -> None:
    if tokens > config.context_length:
        raise UserError(f"{what} is {tokens} tokens, above context_length={config.context_length}; use fewer")


def named_config(name: str) -> ModelConfig:
    """A preset, or one of the benchmarks' own: the Mixtral shape, the large one."""
    from minimoe.config import PRESETS, ModelConfig

    if name == DEFAULT_CONFIG:
        from minimoe.cli.bench_reference import MIXTRAL_21M

        return MIXTRAL_21M
    if name == LARGE_CONFIG:
        from minimoe.cli.bench_quant import RANDOM_300M

        return RANDOM_300M
    if name not in PRESETS:
        raise UserError(f"--config {name!r} is not known; choose one of {', '.join([DEFAULT_CONFIG, *PRESETS])}")
    return ModelConfig.preset(name)


def _sizes(sizes: dict[str, int]) -> str:
    return " ".join(f"{name}={size}" for name, size in sizes.items())


def _print(
    benchmark: str, settings: dict[str, Any], reports: list[dict[str, Any]], columns: dict[str, str], as_json: bool
) -> None:
    """One JSON object, or one table a report with its remaining facts below."""
    from minimoe.cli.bench_timing import environment

    whole: dict[str, Any] = {
        "benchmark": benchmark,
        "environment": environment(),
        "settings": settings,
        "reports": reports,
    }
    if as_json:
        print_json(whole)
        return
    from rich.table import Table

    for report in reports:
        named = f" {report['config']} with random weights," if "config" in report else ""
        table = Table(title=f"{benchmark}:{named} {_sizes(report['shape'])}")
        for heading in ("", *columns):
            table.add_column(heading, justify="right" if heading else "left", no_wrap=not heading)
        for name, result in report["results"].items():
            table.add_row(name, *(_cell(result[key]) for key in columns.values()))
        console.show(table)
        for line in _facts(report):
            console.show(line)
    shown = {name: value for name, value in whole["environment"].items() if name != "allocator" and value is not None}
    versions = ", ".join(f"{name} {value}" for name, value in shown.items())
    console.show(f"Median [quartiles] of {settings['rounds']} rounds. {versions}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{_number(value['median'])} [{_number(value['p25'])}, {_number(value['p75'])}]"
    return _number(value)


def _number(value: int | float) -> str:
    """Three significant digits, more for what is above 1000."""
    if not math.isfinite(value) or value == 0:
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _facts(report: dict[str, Any]) -> Iterable[str]:
    """What a report says beside its times, one line each."""
    if report.get("reference") not in (None, "measured"):
        yield f"Transformers: {report['reference']}"
    if "differences" in report:
        largest = report["differences"]["largest_value"]
        for name, values in report["differences"]["max_abs_difference"].items():
            parts = (f"{key} {value:.1e} of {largest[key]:.1e}" for key, value in values.items())
            yield f"Largest difference from {name}: {', '.join(parts)}"
    if "max_abs_difference" in report:
        parts = (f"{key} {value:.1e}" for key, value in report["max_abs_difference"].items())
        yield f"Largest difference: {', '.join(parts)}"
    if "first_losses" in report:
        for name, losses in report["first_losses"].items():
            yield f"Losses of the first steps, {name}: {', '.join(f'{loss:.6f}' for loss in losses)}"
    if report.get("tokens_identical") is not None:
        yield f"Tokens identical: {report['tokens_identical']} ({report['tokens_agreeing']:.1%} of the new ones)"
    if "parameters" in report:
        yield f"Parameters: {report['parameters']['total']:,} total, {report['parameters']['active']:,} active"
    if "max_violation" in report:
        yield f"MaxVio of the load: {report['max_violation']}"
