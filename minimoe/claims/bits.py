"""Claims 4 and 5: weights of 8 bits, and experts of 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimoe.claims.evidence import all_signed, gain, mean
from minimoe.claims.row import Row
from minimoe.experiments import read_record


def text_changes() -> dict[str, float]:
    """Bits per byte of `small` by recipe against float32, in percent; above 0 is worse."""
    record = read_record("quant-recipes")
    before = record["float32"]["full"]["bits_per_byte"]
    return {name: 100 * (row["full"]["bits_per_byte"] / before - 1) for name, row in record["recipes"].items()}


def problems_lost() -> dict[str, list[float]]:
    """Points of problems that `teacher` no longer solves, by recipe and set of problems; above 0 is worse."""
    exact = {
        n: [one["mean_exact_match"] for one in sets] for n, sets in read_record("reasoning-formats")["solved"].items()
    }
    return {
        name: [100 * (before - after) for before, after in zip(exact["float32"], shares, strict=True)]
        for name, shares in exact.items()
        if name != "float32"
    }


def problems_asked() -> int:
    """How many problems stand behind `problems_lost`: five levels, all sets."""
    record = read_record("reasoning-formats")
    return 5 * record["problems"] * len(record["sets"])


def facts_lost() -> dict[str, list[float]]:
    """Points of a book learnt by heart that are forgotten when the weights of a model are rounded, by recipe and seed."""
    runs = [run for name, run in read_record("knowledge-formats")["runs"].items() if name.startswith("plain-")]
    return {name: [100 * (run["recalled"] - run["formats"][name]) for run in runs] for name in runs[0]["formats"]}


def _bytes(recipe: str) -> tuple[int, int]:
    """Of the tensor file of `small`: in float32, and by a recipe."""
    record: Mapping[str, Any] = read_record("quant-recipes")
    return record["float32"]["bytes"], record["recipes"][recipe]["file_bytes"]


def _speed(name: str, batch: int) -> dict[str, float]:
    """Decoding speed over float32 of a model in int8, by kind of matmul."""
    for report in read_record("bench-quant-decode")["reports"]:
        if name in str(report.get("config")) and report["shape"]["B"] == batch:
            return {k: v["speed_over_float32"]["median"] for k, v in report["results"].items() if k != "float32"}
    return {}


def eight_bits() -> Row:
    """Claim 4: FP8 and INT8."""
    texts, problems, facts = text_changes(), problems_lost(), facts_lost()
    full, int8 = _bytes("int8")
    fast, large = _speed("small", 1), _speed("random-300m", 1)
    keeps = max(texts["int8"], texts["fp8"]) < 1 and mean(problems["fp8"]) < 2
    yes = (
        "holds when the format is int8: FP8 keeps text and problems too, but it forgets facts of a book learnt by heart"
    )
    return Row(
        number=4,
        id="eight-bits",
        claim="FP8 and INT8, near-lossless, smaller footprint.",
        means="With 8-bit weights a trained model answers almost as before, and its file is about half of bfloat16.",
        published="nothing to compute on quality. Eight bits and one scale a block are half of bfloat16",
        text=f"bits per byte of small: int8 {texts['int8']:+.2f}%, int8 on both sides {texts['int8-w8a8']:+.2f}%, "
        f"fp8 {texts['fp8']:+.2f}%",
        reasoning=f"points of {problems_asked()} problems lost: "
        f"int8 on both sides {all_signed(problems['int8-w8a8'], 1)}, fp8 {all_signed(problems['fp8'], 1)}",
        knowledge="points of a book learnt by heart that are forgotten: "
        f"int8 {all_signed(facts['int8'], 1)}, fp8 {all_signed(facts['fp8'], 1)}",
        other=f"the file of small: {full / 1e6:.1f} MB in float32, "
        f"{int8 / 1e6:.1f} MB in int8 ({full / 2 / int8:.2f} times smaller than bfloat16). Decoding on this CPU, "
        f"int8 on both sides: {fast['int8-w8a8']:.2f} times as fast for small, {large['int8-w8a8']:.2f} times for a "
        f"model of 300M parameters; int8 that is decoded first {fast['int8']:.2f} and {large['int8']:.2f} times",
        verdict=yes if keeps and mean(facts["int8"]) < 5 < mean(facts["fp8"]) else "does not show here",
        not_established="How large models with loud channels behave. FP8 is emulated: what a chip with FP8 units would "
        "gain in speed was not run. The facts model has 47,552 parameters and is filled on purpose.",
        command="minimoe experiments run quant-recipes; minimoe experiments run knowledge-formats; "
        "minimoe experiments run reasoning-formats; minimoe bench quant",
        numbers={"text_percent": texts, "problems_lost": problems, "facts_lost": facts, "bytes": [full, int8]},
    )


def four_bits() -> Row:
    """Claim 5: FP4 experts, with and without training through the rounding."""
    texts, problems, facts = text_changes(), problems_lost(), facts_lost()
    full, v4 = _bytes("v4")
    qat = gain("qat-mxfp4", "plain", "qat", lambda run: run["quantized"]["bits_per_byte"])
    after = read_record("knowledge-formats")["runs"]
    seeds = sorted(name.rpartition("-")[2] for name in after if name.startswith("plain-"))
    won_back = [
        100 * (after[f"qat-mxfp4-{s}"]["formats"]["mxfp4"] - after[f"plain-{s}"]["formats"]["mxfp4"]) for s in seeds
    ]
    spared = max(texts["mxfp4"], texts["v4"]) < 1 and mean(problems["v4"]) < 2
    partly = 0 < mean(won_back) < mean(facts["mxfp4"])
    return Row(
        number=5,
        id="four-bits",
        claim="DeepSeek-V4 stores its experts in FP4.",
        means="Experts in MXFP4, trained through the rounding, lose little.",
        published="4.25 bits a weight with the scale of every block of 32. The report gives no ablation",
        text=f"bits per byte of small: mxfp4 {texts['mxfp4']:+.2f}%, v4 {texts['v4']:+.2f}%. "
        f"Trained on with the rounding, then rounded: {all_signed(qat, 4)} gained against trained on without",
        reasoning=f"points of {problems_asked()} problems lost: mxfp4 {all_signed(problems['mxfp4'], 1)}, "
        f"v4 {all_signed(problems['v4'], 1)}, every matrix in mxfp4 {all_signed(problems['all-mxfp4'], 1)}",
        knowledge=f"points of a book learnt by heart that are forgotten: mxfp4 {all_signed(facts['mxfp4'], 0)}, "
        f"v4 {all_signed(facts['v4'], 0)}. Training through the rounding wins back {all_signed(won_back, 0)}",
        other=f"the file of small in recipe v4: {v4 / 1e6:.1f} MB, {v4 / full:.1%} of float32",
        verdict="holds when text or problems are asked: "
        "they hardly change, but of a book learnt by heart much is forgotten, and QAT wins back only a part"
        if spared and partly and mean(facts["v4"]) > 5
        else "does not show here",
        not_established="Whether a model of V4's size is as full of facts as these. "
        "Nothing here computes in FP4: numbers are decoded first.",
        command="minimoe experiments run qat-mxfp4; minimoe experiments run knowledge-formats; "
        "minimoe experiments run reasoning-formats",
        numbers={"qat_text": qat, "qat_facts": won_back, "bytes": [full, v4]},
    )
