"""``minimoe cost``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minimoe import console
from minimoe.checks import LARGEST_COUNT, whole
from minimoe.console import print_json
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.config import ModelConfig
    from minimoe.cost import Account, PublishedModel

CACHE_DTYPES = ("published", "float32", "float16", "bfloat16")


def cost(
    model: Annotated[str, typer.Option(help="A published model, a preset, a shipped model, or a folder.")],
    against: Annotated[str | None, typer.Option(help="Another one to compare with.")] = None,
    context: Annotated[str, typer.Option(help="Tokens of one sequence.")] = "4096",
    cache_dtype: Annotated[str, typer.Option(help=f"Of the cache: {', '.join(CACHE_DTYPES)}.")] = "published",
    hardware: Annotated[
        list[str] | None, typer.Option(help="A chip: time and price of a step of decoding there. Repeatable.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Sequences decoded at once, with --hardware.")] = "1",
    assume: Annotated[
        list[str] | None, typer.Option(help="name=value, with --hardware: chips=16, expert_bits=8, ... Repeatable.")
    ] = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Use numbers of chips that are not verified; results name them.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Parameters, cache bytes and FLOPs per token of a model, ours or a published one, from formulas alone.

    With --hardware also the roofline of decoding on that chip and dollars per million tokens, with all that is assumed;
    of a published model, what is known of its training.

    Example: minimoe cost --model deepseek-v4-pro --against deepseek-v3.2 --context 1048576 --json

    Example: minimoe cost --model deepseek-v4-flash --hardware H100 --hardware H800 --batch 64 --assume expert_bits=8
    """
    from minimoe.cli import cost_hardware
    from minimoe.cost import account

    length = whole(
        "--context", _number(context), most=LARGEST_COUNT, hint="give the tokens of one sequence, such as 4096"
    )
    if cache_dtype not in CACHE_DTYPES:
        raise UserError(f"--cache-dtype {cache_dtype!r} is not known; choose one of {', '.join(CACHE_DTYPES)}")
    dtype = None if cache_dtype == "published" else cache_dtype
    both = {name: _find(name) for name in (model, against) if name is not None}
    found = {name: config for name, (config, _) in both.items()}
    accounts = {name: account(config, length, dtype) for name, config in found.items()}
    sequences = whole("--batch", _number(batch), most=LARGEST_COUNT, hint="give the sequences that are decoded at once")
    if not hardware and (assume or unverified or sequences != 1):
        raise UserError("--batch, --assume and --unverified need --hardware; name a chip, such as --hardware H800")
    assumed = cost_hardware.assumptions(assume or [], dtype)
    quotes = {
        name: cost_hardware.quotes(config, hardware or [], sequences, length, assumed.with_weights(bits), unverified)
        for name, (config, bits) in both.items()
    }
    compared = _compare(found, accounts, model, against) if against is not None else {}
    if json:

        def record(name: str) -> dict[str, Any]:
            return {"model": name} | accounts[name].to_record() | quotes[name]

        other = {} if against is None else {"against": record(against)}
        print_json(record(model) | {"kv_ratio": None} | compared | other)
        return
    _show(accounts, compared)
    cost_hardware.show(quotes)


def _number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text  # refused by the check, with its own words


def _find(name: str) -> tuple[ModelConfig | PublishedModel, dict[str, float]]:
    """A published model, a preset, or the config of a checkpoint and the bits of its stored weights."""
    from minimoe.config import PRESETS
    from minimoe.cost import published_model, published_names

    here = os.path.exists(name)  # Path.exists raises below a folder that may not be read, and for endless names
    if not here and name in published_names():
        return published_model(name), {}
    if not here and name in PRESETS:
        return PRESETS[name], {}
    from minimoe.hub import resolve, shipped  # loads JAX, which the formulas above do without

    if here or name in shipped():
        from minimoe.quant import size_report

        model, _, config, _ = resolve(name)
        return config, size_report(model).weight_bits()
    known = ", ".join(dict.fromkeys([*published_names(), *PRESETS, *shipped()]))
    raise UserError(f"model {name!r} is not known, and there is no such folder; choose one of {known}, or a folder")


def _compare(found: dict[str, Any], accounts: dict[str, Account], model: str, against: str) -> dict[str, Any]:
    """How many times smaller the cache of ``model`` is, and its FLOPs as a share."""
    from minimoe.cost import PublishedModel, flops_shares

    mine, other = accounts[model].to_record(), accounts[against].to_record()
    ratios = {
        "kv_ratio": other["kv_bytes"] / mine["kv_bytes"],
        "kv_ratio_per_token": (
            other["kv_bytes_per_token"] / mine["kv_bytes_per_token"] if mine["kv_bytes_per_token"] else None
        ),
        "kv_ratio_with_tails": other["kv_bytes_with_tails"] / mine["kv_bytes_with_tails"],
        "flops_share": mine["flops_per_token"] / other["flops_per_token"],
    }
    if all(isinstance(config, PublishedModel) for config in (found[model], found[against])):
        shares = flops_shares(found[model], found[against], accounts[model].context)
        ratios["flops_share_by_weighting"] = shares
        ratios["flops_share_range"] = [min(shares.values()), max(shares.values())]
    return ratios


def _show(accounts: dict[str, Account], compared: dict[str, Any]) -> None:
    from rich.table import Table

    first = next(iter(accounts.values()))
    table = Table("", *accounts, title=f"one sequence of {first.context:,} tokens")
    records = [entry.to_record() for entry in accounts.values()]

    def rows(title: str, key: str) -> None:
        for part in dict.fromkeys(part for record in records for part in record[key]):
            table.add_row(f"  {title}: {part}", *(f"{record[key].get(part, 0):,.0f}" for record in records))

    for label, key in (("parameters", "params_total"), ("active parameters", "params_active")):
        table.add_row(label, *(f"{record[key]:,}" for record in records))
        rows(
            "all" if key == "params_total" else "active", "params" if key == "params_total" else "params_active_by_part"
        )
    table.add_row("cache storage", *(record["storage"] for record in records))
    table.add_row("cache bytes a token", *(f"{record['kv_bytes_per_token']:,.2f}" for record in records))
    table.add_row("cache bytes at this context", *(f"{record['kv_bytes']:,.0f}" for record in records))
    rows("cache", "cache_bytes")
    table.add_row("FLOPs of the last token", *(f"{record['flops_per_token']:,.0f}" for record in records))
    lines = [f"{key.replace('_', ' ')}: {value:.3f}" for key, value in compared.items() if isinstance(value, float)]
    if "flops_share_range" in compared:
        low, high = compared["flops_share_range"]
        lines.append(
            f"FLOPs share over {len(compared['flops_share_by_weighting'])} weightings: {low:.1%} to {high:.1%}"
        )
    lines += dict.fromkeys(
        said for entry in accounts.values() for said in entry.assumptions if "context_length" in said
    )
    says = (
        "A smaller cache says nothing of weights, quality or speed; tails are in no ratio but the one that names them."
    )
    console.show(table, *lines, says)
