"""All recorded numbers as one page of tables, ``notebooks/RESULTS.md``: what was asked, and what each run scored.

Nothing here is typed by hand. The question and the names of the runs are explained by the experiment's own file, the
numbers come from its record. ``minimoe experiments results --out notebooks/RESULTS.md`` writes the page.
"""

from __future__ import annotations

import importlib
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minimoe.experiments.records import RECORDS, read_record
from minimoe.experiments.show import recipe_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAD = """# Results

Every number below is read from a file in `minimoe/records/` by `minimoe experiments results`. A table has one row for each
way and one column for each seed. An effect is shown when it is larger than the spread of its seeds. Tables of losses count
down: bits per byte and times are better when smaller. `minimoe experiments run NAME` repeats an experiment."""
SPEED = """Ratios are medians over rounds in which the contestants take turns on two cores; another machine has other ones.
PyTorch is driven from Python one operation at a time and a compiled step is not, so a ratio to Transformers also grows where
Python is slow: below such a table stands how fast it was."""
# A score of a run: what the table is called, how it is found, how it is written, and whether a difference is relative.
SCORES: tuple[tuple[str, Callable[[Mapping[str, Any]], float], str], ...] = (
    (
        "Bits per byte of the whole validation text, mean of the domains",
        lambda run: run["full"]["bits_per_byte"],
        ".3f",
    ),
    ("The same once quantized", lambda run: run["quantized"]["bits_per_byte"], ".4f"),
    ("Drafts accepted in greedy text", lambda run: run["drafts"]["temperature 0"]["acceptance_rate"], ".1%"),
    (
        "Drafts accepted in samples of temperature 1",
        lambda run: run["drafts"]["temperature 1"]["acceptance_rate"],
        ".1%",
    ),
    ("Problems solved, asked for the steps", lambda run: run["tasks"]["worked"]["mean_exact_match"], ".1%"),
    ("Problems solved, asked for the answer alone", lambda run: run["tasks"]["direct"]["mean_exact_match"], ".1%"),
    ("Entries of the book recalled", lambda run: run["recalled"], ".1%"),
    ("Bits of the book held, for each parameter", lambda run: run["bits_per_param"], ".2f"),
    ("Entries recalled of the half that the student read", lambda run: run["read"], ".1%"),
    ("Entries recalled of the half that only the teacher read", lambda run: run["unread"], ".1%"),
    *(
        (f"Needles found {distance} tokens back", lambda run, key=str(distance): run["found"][key], ".0%")
        for distance in (8, 16, 32, 64, 128, 512)
    ),
)


def results_page() -> str:
    """The whole page, in Markdown."""
    from minimoe.experiments import EXPERIMENTS, MEASUREMENTS

    parts = [HEAD]
    for name in EXPERIMENTS:
        if (RECORDS / f"{name}.json").is_file():
            runs = read_record(name)["runs"]
            parts += [_title(name), *_score_tables(runs), *_format_table(runs)]
    for name in MEASUREMENTS:
        if (RECORDS / f"{name}.json").is_file():
            parts += [_title(name), *_measurement(read_record(name))]
    parts += ["## Which trained models come with the package?", _shipped()]
    parts += ["## Speed", SPEED]
    for path in sorted(RECORDS.glob("bench-*.json")):
        parts += _benchmark(path.stem, json.loads(path.read_text(encoding="utf-8")))
    if (RECORDS / "predicted-times.json").is_file():
        parts += _predictions(read_record("predicted-times"))
    return "\n\n".join(parts) + "\n"


def facts_recalled() -> Figure:
    """What idle parameters buy where only capacity counts: the record of `knowledge` as a picture, three seeds a row."""
    from minimoe import plots

    runs = read_record("knowledge")["runs"]
    rows: dict[str, list[float]] = {}
    for name, run in runs.items():
        rows.setdefault(name.rpartition("-")[0], []).append(100 * run["recalled"])
    words = {
        "dense": "dense",
        "experts-4": "4 experts",
        "experts-16": "16 experts",
        "experts-64": "64 experts",
        "dense-2x": "dense, twice as long",
        "dense-4x": "dense, four times as long",
    }
    shown = {words[name]: values for name, values in rows.items() if name in words}
    return plots.seeds(
        shown, quantity="facts recalled, %", title="Equal FLOPs a token, 4,096 random facts, three seeds"
    )


def _title(name: str) -> str:
    """The question of an experiment as a heading, its names explained below."""
    module = importlib.import_module(f"minimoe.experiments.{name.replace('-', '_')}")
    question, _, rest = (module.__doc__ or "").partition("\n")
    words = "\n\n".join(_paragraph(lines) for lines in re.split(r"\n\s*\n", rest.strip()))
    return f"## {question}\n\n`minimoe experiments show {name}`. {words}".replace("``", "`")


def _paragraph(lines: str) -> str:
    """A paragraph of a docstring; indented lines, a name, two spaces or more, and what it is, as a list."""
    if lines.startswith("  "):
        return re.sub(r"(?m)^  (\S.*?) {2,}", r"- `\1`: ", lines)
    return re.sub(r"\s+", " ", lines).strip()


def _score_tables(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One table for each score that some run has."""
    found = []
    for caption, score, form in SCORES:
        values = {name: value for name, run in runs.items() if (value := _or_none(score, run)) is not None}
        if values:
            found += [f"{caption}:", _by_seed(values, form)]
    return found


def _or_none(score: Callable[[Mapping[str, Any]], float], run: Mapping[str, Any]) -> float | None:
    try:
        return score(run)
    except (KeyError, TypeError):
        return None


def _by_seed(values: Mapping[str, float], form: str) -> str:
    """A row for each way, a column for each seed, and the mean and the spread of those that there are."""
    ways: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        way, _, seed = name.rpartition("-")
        way, seed = (way, seed) if seed.isdigit() and way else (name, "0")
        ways.setdefault(way, {})[seed] = value
    seeds = sorted({seed for row in ways.values() for seed in row}, key=int)
    if seeds == ["0"]:
        return table(("run", ""), ((way, format(row["0"], form)) for way, row in ways.items()))
    rows = []
    for way, row in ways.items():
        cells = [format(row[seed], form) if seed in row else "" for seed in seeds]
        several = len(row) > 1
        mean = format(statistics.mean(row.values()), form) if several else ""
        spread = format(max(row.values()) - min(row.values()), form) if several else ""
        rows.append((way, *cells, mean, spread))
    return table(("run", *(f"seed {seed}" for seed in seeds), "mean", "spread"), rows)


def _format_table(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What models that know a book recall once their weights are rounded: a row for each way and recipe."""
    values = {}
    for name, run in runs.items():
        way, _, seed = name.rpartition("-")
        for recipe, share in run.get("formats", {}).items():
            values[f"{way}, {recipe}-{seed}"] = share
    return ["Entries recalled once the weights are rounded, by recipe:", _by_seed(values, ".1%")] if values else []


def _measurement(record: Mapping[str, Any]) -> list[str]:
    if "recipes" in record:
        heads, rows = recipe_rows(record)
        return [f"Protocol: {record['protocol']}.", table(heads, rows)]
    if "solved" in record:
        values = {
            f"{recipe}-{index}": one["mean_exact_match"]
            for recipe, sets in record["solved"].items()
            for index, one in enumerate(sets)
        }
        caption = (
            f"Problems that `{record['model']}` solves with its steps, by recipe; a seed is another set of problems:"
        )
        return [caption, _by_seed(values, ".1%")]
    times = [(name, f"{ms:.1f}", f"{record['ratio'][name]:.2f}") for name, ms in record["milliseconds"].items()]
    return [f"On {record['machine']}:", table(("model", "milliseconds", "over dense"), times)]


def _shipped() -> str:
    """The trained models of the package as they are stored, by their own files."""
    from importlib import resources

    rows = []
    for folder in sorted(resources.files("minimoe.hub").joinpath("weights").iterdir(), key=lambda item: item.name):
        if not folder.joinpath("config.json").is_file():
            continue
        source = json.loads(folder.joinpath("config.json").read_text(encoding="utf-8"))["provenance"]
        megabytes = len(folder.joinpath("model.safetensors").read_bytes()) / 1e6
        bits = source["bits_per_byte"]["full"]
        rows.append((folder.name, f"{megabytes:.1f} MB", source["quantized_with"], f"{bits:.3f}"))
    return table(("name", "file", "recipe", "bits per byte, as stored"), rows)


def _benchmark(name: str, record: Mapping[str, Any]) -> list[str]:
    """A table for each report of a benchmark: its contestants, their time or speed, and their ratios."""
    parts = [f"### `minimoe bench {record['benchmark']}` ({name})"]
    for report in record["reports"]:
        results = report["results"]
        ratios = sorted({key for one in results.values() for key in one if "_over_" in key})
        clocks = [key for key in ("tokens_per_second", "ms", "ms_per_call", "ms_per_step") if _any_has(results, key)][
            :1
        ]
        if "contexts" in report:
            clocks, ratios = [f"us_at_{context}" for context in report["contexts"]], ["growth"]
        words = [
            report.get("config"),
            report.get("situation"),
            ", ".join(f"{k} {v}" for k, v in report["shape"].items()),
        ]
        parts.append("; ".join(word for word in words if word) + ":")
        rows = []
        for contestant, one in results.items():
            numbers = [_written(one.get(key)) for key in (*clocks, *ratios)]
            rows.append((contestant, *numbers))
        parts.append(table(("contestant", *(key.replace("_", " ") for key in (*clocks, *ratios))), rows))
    if python := record["environment"].get("python_additions_per_second"):
        parts.append(f"Python added {python / 1e6:.1f} million times a second here.")
    return parts


def _predictions(record: Mapping[str, Any]) -> list[str]:
    """Times that were predicted from the machine's rates, beside the clock and beside its peaks alone."""
    rows = []
    for row in record["rows"]:
        what = "a training step" if row["kind"] == "train" else f"a token each for {row['batch']}"
        times = (f"{row['measured_ms']:.3g}", f"{row['predicted_ms']:.3g}", f"{row['error']:+.0%}")
        rows.append((f"{row['model']}, {what}", *times, f"{row['peak_roofline_ms']:.3g}"))
    ours, peaks = record["errors"]["predicted"], record["errors"]["peak_roofline"]
    words = (
        f"Median error {ours['median_error']:.0%}, largest {ours['largest_error']:.0%}; from peak and bandwidth alone "
    )
    words += f"{peaks['median_error']:.0%} and {peaks['largest_error']:.0%}. "
    for kind, name in (("train", "Training"), ("decode", "Decoding")):
        off = statistics.median(abs(row["error"]) for row in record["rows"] if row["kind"] == kind)
        words += f"{name}: median error {off:.0%}. "
    words += f"Machine: {record['machine']['name']}; {record['note']}."
    heads = ("", "measured, ms", "predicted, ms", "off", "peaks alone, ms")
    picture = "![Predicted against measured times; in the shade at most a quarter apart](figures/predicted_times.png)"
    return ["### `minimoe bench predict` (predicted-times)", table(heads, rows), words, picture]


def _any_has(results: Mapping[str, Mapping[str, Any]], key: str) -> bool:
    return any(key in one for one in results.values())


def _written(value: Any) -> str:
    if value is None:
        return ""
    number = value["median"] if isinstance(value, Mapping) else value
    return f"{number:,.1f}" if number >= 100 else f"{number:.2f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; numbers stand right.

    Example:
      >>> print(table(("run", "bits"), [("a", "1.5")]))
      | run | bits |
      | --- | ---: |
      | a | 1.5 |
    """
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
