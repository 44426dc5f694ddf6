"""`minimoe bench`: measure speed on this machine. Every ratio compares two things timed in turn in one process."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from minimoe.bench.sizes import (
    ATTENTION_AXES,
    ATTENTION_SHAPES,
    CONTEXTS,
    DEFAULT_CONFIG,
    LARGE_CONFIG,
    MOE_AXES,
    MOE_SHAPES,
    QUANT_AXES,
    check_attention,
    check_fits,
    check_moe,
    named_config,
    parse_shape,
)
from minimoe.cli.bench_device import device, dispatch
from minimoe.cli.bench_options import Config, Json, Pause, Rounds, Warmup
from minimoe.cli.bench_predict import predict
from minimoe.cli.bench_table import in_words, print_reports
from minimoe.console import messages, start
from minimoe.errors import UserError

app = typer.Typer(
    help="Measure speed on this machine, as ratios within one run.", no_args_is_help=True, rich_markup_mode=None
)

app.command()(predict)
app.command()(dispatch)
app.command()(device)


@app.command()
def moe(
    shape: Annotated[list[str] | None, typer.Option(help=f"{MOE_AXES}; repeatable.")] = None,
    dispatch: Annotated[list[str] | None, typer.Option(help="loop, dense or dropless; repeatable.")] = None,
    load: Annotated[
        list[str] | None, typer.Option(help="MaxVio from 0 to 1, or all: K experts take all. Repeatable.")
    ] = None,
    memory: Annotated[str, typer.Option(help="kept, returned to the system (as Python does), or both.")] = "both",
    rounds: Rounds = 15,
    warmup: Warmup = 3,
    pause: Pause = 0.02,
    as_json: Json = False,
) -> None:
    """One sparse layer, forward and backward, against a dense one and Transformers.

    The dense layer is a SwiGLU of width K*F, which spends the same FLOPs a token; Transformers' block (experts
    implementation grouped_mm) has the same weights and must give the same answers. The matmuls are the layer's own, at
    an even load, without what stands around them. Time ratios: below 1 is faster.

    Example: minimoe bench moe --shape 2048,256,512,16,2 --load 0.5 --memory kept
    """
    shapes = [parse_shape(text, MOE_AXES) for text in shape or MOE_SHAPES]
    dispatches = list(dict.fromkeys(dispatch or ["dropless"]))
    loads = list(dict.fromkeys(load or ["0", "0.25", "0.5", "1", "all"]))
    for sizes in shapes:
        check_moe(sizes, dispatches, loads, memory)
    start()
    from minimoe.bench import moe as benchmark

    situations = {"kept": benchmark.measure, "returned": benchmark.measure_returning_memory}
    reports = []
    for sizes in shapes:
        for name in situations if memory == "both" else [memory]:
            messages.print(f"moe: {in_words(sizes)}, memory {name}")
            timed = situations[name](sizes, dispatches, loads=loads, rounds=rounds, warmup=warmup, pause=pause)
            reports.append({"situation": f"memory {name}"} | timed)
    settings = {"loads": loads, "rounds": rounds, "warmup": warmup, "pause_seconds": pause}
    columns = {
        "ms": "ms",
        "time / dense_ffn": "time_over_dense_ffn",
        "time / matmuls": "time_over_matmuls",
        "time / grouped_mm": "time_over_grouped_mm",
        "useful GFLOP/s": "useful_gflops",
    }
    print_reports("moe", settings, reports, columns, as_json)


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
    from minimoe.bench import train as benchmark

    messages.print(f"train: {config}, {batch} x {length} tokens a step")
    report = benchmark.measure(
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
    print_reports("train", settings, [report], columns, as_json)


@app.command()
def decode(
    config: Config = DEFAULT_CONFIG,
    model: Annotated[
        str | None, typer.Option(help="A trained checkpoint instead of --config's random weights.")
    ] = None,
    mtp: Annotated[
        bool, typer.Option("--mtp", help="Give --config a head for multi-token prediction, untrained.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Prompt tokens.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 128,
    rounds: Rounds = 7,
    warmup: Warmup = 1,
    pause: Pause = 0.02,
    as_json: Json = False,
) -> None:
    """Greedy generation: tokens per second, against Transformers with the same weights.

    Speed ratios: above 1 is faster than Transformers. The tokens of both must be identical, but for ties: of equal
    scores of an indexer torch takes other entries, and v4-22m has such ties. A model with a head for multi-token
    prediction decodes speculatively too. An untrained head is always wrong, which is the worst that
    speculation can cost; a trained one (--model) is asked after text of the corpus.

    Example: minimoe bench decode --batch 4 --new-tokens 64
    """
    named = None if model is not None else named_config(config)
    if named is not None:
        check_fits(named, prompt + new_tokens, "--prompt plus --new-tokens")
    elif mtp:
        raise UserError("--mtp is for random weights, and --model has its own head or none; leave one of them out")
    start()
    from minimoe.bench import decode as benchmark

    built, ids = benchmark.random_model(named, mtp) if named else benchmark.trained_model(str(model), batch, prompt)
    check_fits(built.config, prompt + new_tokens, "--prompt plus --new-tokens")
    messages.print(f"decode: {model or config}, {batch} x {new_tokens} tokens after {prompt}")
    report = benchmark.measure(
        built, ids, batch=batch, prompt=prompt, new_tokens=new_tokens, rounds=rounds, warmup=warmup, pause=pause
    )
    named_as = {"config": config} if model is None else {"model": model}
    settings: dict[str, Any] = named_as | {"mtp": built.mtp is not None}
    settings |= {"rounds": rounds, "warmup": warmup, "pause_seconds": pause}
    columns = {
        "tokens/s": "tokens_per_second",
        "ms a call": "ms_per_call",
        "speed / plain": "speed_over_plain",
        "speed / transformers": "speed_over_transformers",
    }
    print_reports("decode", settings, [report], columns, as_json)


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
    from minimoe.bench import attention as benchmark

    reports = []
    for sizes in shapes:
        messages.print(f"attention: {in_words(sizes)}")
        reports.append(benchmark.measure(sizes, rounds=rounds, warmup=warmup, pause=pause))
    settings = {"rounds": rounds, "warmup": warmup, "pause_seconds": pause}
    columns = {"ms": "ms", "time / library": "time_over_library", "useful GFLOP/s": "useful_gflops"}
    print_reports("attention", settings, reports, columns, as_json)


@app.command()
def context(
    context: Annotated[list[int] | None, typer.Option(min=1, help="Tokens in the cache; repeatable.")] = None,
    rounds: Rounds = 7,
    warmup: Warmup = 1,
    pause: Pause = 0.02,
    as_json: Json = False,
) -> None:
    """One more token by the length of its context, for each kind of attention: one layer, its cache, float32.

    Microseconds a token and bytes of the cache. CSA and HCA keep one entry for 4 and for 16 tokens here, and a window.

    Example: minimoe bench context --context 256 --context 4096
    """
    contexts = list(dict.fromkeys(context or CONTEXTS))
    start()
    from minimoe.bench import context as benchmark

    messages.print(f"context: {', '.join(f'{c:,}' for c in contexts)} tokens")
    report = benchmark.measure(contexts, rounds=rounds, warmup=warmup, pause=pause)
    settings = {"contexts": contexts, "rounds": rounds, "warmup": warmup, "pause_seconds": pause}
    columns = {f"us at {c:,}": f"us_at_{c}" for c in contexts} | {"growth": "growth"}
    columns |= {f"bytes at {c:,}": f"bytes_at_{c}" for c in contexts}
    print_reports("context", settings, [report], columns, as_json)


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
    from minimoe.bench import quant as benchmark

    settings: dict[str, Any] = {"rounds": rounds, "warmup": warmup, "pause_seconds": pause, "weights": "random"}
    reports = []
    if not decode:
        for sizes in shapes or benchmark.default_shapes():
            messages.print(f"quant: {in_words(sizes)}")
            reports.append(benchmark.measure_matmul(sizes, rounds=rounds, warmup=warmup, pause=pause))
        columns = {"ms": "ms", "speed / float32": "speed_over_float32"}
        columns |= {"weight bytes": "weight_bytes", "relative error": "relative_error"}
        print_reports("quant", settings, reports, columns, as_json)
        return
    settings |= {"configs": list(configs), "recipes": recipes}
    for name, model in configs.items():
        messages.print(f"quant: decode with {name}, random weights")
        sizes_of: dict[str, Any] = {"prompt": prompt, "new_tokens": new_tokens}
        clock: dict[str, Any] = {"rounds": rounds, "warmup": warmup, "pause": pause}
        measured = benchmark.measure_decode(model, batch or [1, 8], recipes=recipes, **sizes_of, **clock)
        reports += [{"config": name, "weights": "random"} | report for report in measured]
    columns = {"tokens/s": "tokens_per_second", "ms a call": "ms_per_call", "speed / float32": "speed_over_float32"}
    columns |= {"bytes": "bytes", "tokens as float32": "tokens_as_float32"}
    print_reports("quant", settings, reports, columns, as_json)
