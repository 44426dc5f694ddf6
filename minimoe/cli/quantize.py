"""``minimoe quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minimoe import console
from minimoe.console import Bar, print_json, start, write_out
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.quant.report import SizeReport

SIZES_FILE = "sizes.png"


def quantize(
    checkpoint: Annotated[Path, typer.Argument(help="A training folder or a saved folder, not quantized.")],
    recipe: Annotated[str, typer.Option(help="How: int8, int8-w8a8, fp8, mxfp4, v4, ...; a wrong name lists all.")],
    out: Annotated[Path, typer.Option(help="Folder for the quantized model: new, empty, or an earlier save.")],
    protocol: Annotated[str, typer.Option(help="Of the evaluation: quick (a fixed 40,000 tokens) or full.")] = "quick",
    evaluate: Annotated[bool, typer.Option("--eval/--no-eval", help="Measure quality before and after.")] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Store a model in fewer bits: writes a folder that eval and generate take, and says what it cost.

    Sizes are those of weights. After quantizing, the folder is read back, and what was read is what is measured.

    Example: minimoe quantize runs/small --recipe v4 --out runs/small-v4
    """
    from minimoe.data.evaluation import PROTOCOLS
    from minimoe.hub import check_destination, load, provenance_of, resolve, save
    from minimoe.quant.comparison import compare_models
    from minimoe.quant.models import get_recipe, quantize_model, size_report

    get_recipe(recipe)
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol!r} is not known; choose one of {', '.join(PROTOCOLS)}")
    if out.exists() and checkpoint.exists() and out.samefile(checkpoint):
        raise UserError(f"--out {out} is the checkpoint itself; name another folder")
    check_destination(out)
    model, tokenizer, _, description = resolve(checkpoint)
    if evaluate and tokenizer is None:
        raise UserError(f"{description} holds no tokenizer, so its quality cannot be measured; add --no-eval")
    start(f"{recipe}: {description}")
    with Bar("quantize", 3) as bar:
        quantized = quantize_model(model, recipe)
        bar.update(1, "save")
        provenance = {"checkpoint": checkpoint.name, "quantized_with": recipe, "source": provenance_of(checkpoint)}
        save(quantized, out, tokenizer, provenance=provenance)
        bar.update(2, "read back")
        quantized, _, _ = load(out)
        bar.update(3)
    before, after = size_report(model), size_report(quantized)
    report: dict[str, Any] = {"checkpoint": str(checkpoint), "recipe": recipe, "out": str(out)}
    report |= {"bytes": sizes(before, after, out)}
    report |= {"share_of_bfloat16": round(after.bytes / after.bfloat16_bytes, 4)}
    report |= {"bits_per_value": round(after.bits_per_value, 4)}
    report |= {"bits_per_byte": None, "routing_changes": None}
    if evaluate and tokenizer is not None:
        with Bar("evaluate", 1) as bar:
            report |= compare_models(
                model, quantized, tokenizer, protocol, lambda which, n, of: bar.update(n, which, of)
            )
    draw(before, after, recipe, out)
    if json:
        print_json(report)
    else:
        show(report)


def sizes(before: SizeReport, after: SizeReport, out: Path) -> dict[str, int]:
    """Bytes of the model: before in two dtypes, after by its bits, and what lies on disk."""
    from minimoe.hub.folder import FILES, TENSOR_FILE

    return {
        "float32": 2 * before.bfloat16_bytes,
        "bfloat16": before.bfloat16_bytes,
        "quantized": after.bytes,
        "tensor_file": (out / TENSOR_FILE).stat().st_size,
        "folder": sum((out / name).stat().st_size for name in FILES if (out / name).exists()),
    }


def draw(before: SizeReport, after: SizeReport, recipe: str, out: Path) -> None:
    """``sizes.png``: where the bytes are, in bfloat16 and after."""
    from minimoe import plots

    forms = {
        "bfloat16": {row.path: row.bfloat16_bytes for row in before.rows},
        recipe: {row.path: row.bytes for row in after.rows},
    }
    plots.save(plots.bytes_by_part(forms), out / SIZES_FILE)


def show(report: dict[str, Any]) -> None:
    """The report as tables."""
    from rich.table import Table

    table = Table("weights", "bytes", "share of bfloat16", title=f"{report['checkpoint']} as {report['recipe']}")
    for name, count in report["bytes"].items():
        table.add_row(name.replace("_", " "), f"{count:,}", f"{count / report['bytes']['bfloat16']:.1%}")
    console.show(table)
    quality = report["bits_per_byte"]
    if quality is not None:
        table = Table("domain", "before", "after", "change", title=f"bits per byte ({quality['protocol']})")
        for domain, value in quality["after"]["per_domain"].items():
            add_quality(table, domain, quality["before"]["per_domain"][domain], value)
        add_quality(table, "mean over domains", quality["before"]["bits_per_byte"], quality["after"]["bits_per_byte"])
        console.show(table)
    if report["routing_changes"] is not None:
        write_out(f"Expert choices that changed: {report['routing_changes']:.2%}")
    write_out(f"{report['bits_per_value']:.2f} bits a value. Saved in {report['out']}")


def add_quality(table: Any, name: str, before: float, after: float) -> None:
    table.add_row(name, f"{before:.4f}", f"{after:.4f}", f"{after / before - 1:+.2%}")
