"""``minimoe export`` and ``minimoe import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from minimoe.console import Bar, print_json, start, write_out
from minimoe.errors import UserError

DTYPES = {
    "huggingface": ("float32", "bfloat16", "fp8", "fp4"),
    "onnx": ("float32", "int8"),
    "stablehlo": ("float32",),
    "gguf": ("float32", "bfloat16", "int8"),
}


def export(
    checkpoint: Annotated[str, typer.Argument(help="A training folder, a saved folder, or a model of the package.")],
    out: Annotated[Path, typer.Option(help="Folder: new, empty, or an earlier export of this format.")],
    format: Annotated[str, typer.Option(help="huggingface, onnx, stablehlo or gguf.")] = "huggingface",
    dtype: Annotated[
        str,
        typer.Option(
            help="Of the weights: float32; bfloat16 (huggingface, gguf), fp8, fp4 (huggingface), int8 (onnx, gguf)."
        ),
    ] = "float32",
    batch: Annotated[int, typer.Option(help="Sequences of the programs; stablehlo alone has fixed shapes.")] = 1,
    length: Annotated[
        int | None, typer.Option(help="Tokens of them; the context length, up to 4,096, by default.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Write a model in a format that other programs read; the folder's README says how.

    huggingface: Transformers loads it with AutoModelForCausalLM. fp8 is DeepSeek's layout, codes in blocks of 128 x 128; fp4
    is that of DeepSeek-V4's experts, for models of that family. onnx: one file for ONNX Runtime. stablehlo: forward, decode
    step and training step, lowered for cpu, cuda, rocm and tpu. gguf: one file for llama.cpp.

    Example: minimoe export small --out small-hf

    Example: minimoe export small --dtype fp8 --out small-fp8

    Example: minimoe export runs/nano --format onnx --dtype int8 --out nano-onnx
    """
    if format not in DTYPES:
        raise UserError(f"--format {format!r} is not known; choose one of {', '.join(DTYPES)}")
    if dtype not in DTYPES[format]:
        raise UserError(f"--dtype {dtype!r} is not written as {format}; choose one of {', '.join(DTYPES[format])}")
    from minimoe.hub import resolve

    model, tokenizer, _, description = resolve(checkpoint)
    start(f"{format}, {dtype}: {description}")
    with Bar("export", 1) as bar:
        write(format, model, tokenizer, out, checkpoint, dtype, batch, length)
        bar.update(1)
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir()) if path.is_file()}
    if json:
        print_json({"checkpoint": checkpoint, "format": format, "dtype": dtype, "out": str(out), "bytes": sizes})
    else:
        write_out("\n".join(f"{size:>12,} bytes  {out / name}" for name, size in sizes.items()))


def write(
    format: str, model: Any, tokenizer: Any, out: Path, checkpoint: str, dtype: str, batch: int, length: int | None
) -> None:
    """Writes the folder."""
    from minimoe.hub import card, provenance_of, shipped, to_transformers

    if format == "huggingface":
        known = not Path(checkpoint).exists() and checkpoint in shipped()
        text, past = card(checkpoint) if known else "", provenance_of(checkpoint)
        to_transformers(model, out, tokenizer, dtype=dtype, card=text, provenance=past)
        return
    from minimoe.export import export_gguf, export_onnx, export_stablehlo
    from minimoe.training import Recipe

    if format == "onnx":
        export_onnx(model, out, tokenizer, dtype=dtype)
    elif format == "gguf":
        export_gguf(model, out, tokenizer, dtype=dtype)
    else:
        export_stablehlo(model, out, tokenizer, batch=batch, length=length, recipe=Recipe.preset("nano"))


def import_(
    folder: Annotated[
        Path, typer.Argument(help="A folder that Transformers wrote: mixtral, glm4_moe, deepseek_v3 or _v4.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model: new, empty, or an earlier save.")],
    dtype: Annotated[str, typer.Option(help="Of the stored weights: float32 or bfloat16.")] = "float32",
    keep_codes: Annotated[
        bool, typer.Option("--keep-codes", help="FP8 and FP4 weights stay codes, and compute as such.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Read a model that Transformers wrote and save it as ours. Other commands take such a folder as it is, too.

    The saved config.json keeps, under provenance, the format and the checksums of what was read.

    Example: minimoe import downloads/tiny-mixtral --out runs/mixtral

    Example: minimoe import small-fp8 --keep-codes --out runs/small-fp8
    """
    from minimoe.cost import count_params
    from minimoe.hub import check_destination, save
    from minimoe.hub.layouts import load_transformers, source_of

    check_destination(out)
    with Bar("import", 2) as bar:
        model, tokenizer, config = load_transformers(folder, dtype=dtype, keep_codes=keep_codes)
        source = source_of(folder)
        bar.update(1)
        save(model, out, tokenizer, provenance=source)
        bar.update(2)
    count = count_params(config)
    report = {"folder": str(folder), "out": str(out), "params_total": count.total, "params_active": count.active}
    report |= {"tokenizer": None if tokenizer is None else tokenizer.name}
    if json:
        print_json(report)
    else:
        has = (
            "no tokenizer: give text as token ids" if tokenizer is None else f"tokenizer of {tokenizer.vocab_size} ids"
        )
        write_out(f"{count.total / 1e6:.2f}M parameters, {count.active / 1e6:.2f}M active; {has}. Saved in {out}")
