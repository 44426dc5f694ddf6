"""The ledger: its rows, what of it is measured again, and whether README, lessons and pages say what it says."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest

from minimoe.claims import again, ladder, ledger
from minimoe.claims.again import Again
from minimoe.claims.evidence import by_seed, gain, recalled, text
from minimoe.claims.page import cell, claims_page
from minimoe.claims.row import Row, answer_of
from minimoe.claims.rungs import FIELDS
from minimoe.cli import app
from minimoe.experiments import read_record
from minimoe.plots.verdict import ANSWERS

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"

# The claim of a lesson's box, by its beginning -> the row of the ledger. A box that says it of less than the row, and
# rightly so, stands in PARTS.
BOXES = {
    "A dynamic routing mechanism": "active",
    "Sparsity drastically reduces": "tflops",
    "The routing is worth having": "routing",
    "Balanced routing keeps": "balance",
    '"FP8 and INT8, near-lossless': "eight-bits",
    "DeepSeek-V4 stores its experts in FP4": "four-bits",
    "Distillation from larger teachers": "distillation",
    "A rival's model was made by distillation": "black-box",
    '"A smaller cache, the same quality': "cache-quality",
    '"9.5 times less memory': "cache",
    '"27% of the FLOPs"': "cache-flops",
    '"Open-weight': "open-weights",
    '"Runs on Huawei chips': "huawei",
    '"Viable on restricted A800': "restricted-chips",
    '"Cheaper to operate': "cheaper",
    "It does the most with the least": "most-with-least",
}
# Asked by a lesson, not by the press: the ledger has no row for it. The numbers come from a record, in the cell.
ASKED_BY_US = (
    '"The other parts of DeepSeek-V4 make a better model."',
    "The program, too, engages only a fraction of the capacity per step.",
)
PARTS = {
    ("00_tour", "active"): "holds",
}


@pytest.fixture(scope="module")
def rows():
    return ledger()


def boxes():
    """``(lesson, claim, verdict)`` of every verdict that a committed notebook shows."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for one in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in one.get("outputs", []):
                shown = "".join(output.get("data", {}).get("text/markdown", ""))
                if "**Verdict**" in shown:
                    claim = re.search(r"^\| The claim \| (.*) \|$", shown, re.MULTILINE)
                    verdict = re.search(r"^\| \*\*Verdict\*\* \| \*\*(.*)\*\* \|$", shown, re.MULTILINE)
                    yield path.stem, claim[1], verdict[1]


def test_every_claim_has_a_row_that_says_what_it_does_not_establish(rows):
    assert [row.number for row in rows.values()] == sorted(row.number for row in rows.values())
    assert {row.number for row in rows.values()} == set(range(1, 14))
    for row in rows.values():
        record = row.to_record()
        assert all(
            record[name].strip() for name in ("claim", "means", "published", "verdict", "not_established", "command")
        )
        assert all(record[name].strip() for name in ("text", "reasoning", "knowledge", "other"))
        assert row.answer in ANSWERS
        json.dumps(record)


def test_numbers_come_from_the_records(rows):
    runs = read_record("knowledge")["runs"]
    expected = [100 * (runs[f"experts-16-{s}"]["recalled"] - runs[f"dense-{s}"]["recalled"]) for s in range(3)]
    assert rows["tflops"].numbers["facts"] == pytest.approx(expected)
    assert f"{statistics.mean(expected):+.0f}" in rows["tflops"].knowledge
    longer = read_record("longer-text")["runs"]
    one = longer["dense-1"]["full"]["bits_per_byte"] - longer["experts-8-1"]["full"]["bits_per_byte"]
    assert rows["tflops"].numbers["text"]["8 experts, equal tokens"][1] == pytest.approx(one)
    assert rows["cache"].numbers["reported"] == pytest.approx(9.545, abs=5e-4)
    assert by_seed("knowledge", "dense", recalled) == [100 * runs[f"dense-{s}"]["recalled"] for s in range(3)]
    assert gain("v4-parts", "plain", "hash", text)[0] > 0


def test_a_verdict_follows_the_numbers(monkeypatch):
    """Other numbers, another verdict: sparse wins on text too, or not even on facts."""
    from minimoe.claims import sparse

    monkeypatch.setattr(
        sparse, "text_gains", lambda: {"8 experts, equal tokens": [0.1], "8 experts, equal time": [0.1]}
    )
    assert sparse.tflops().verdict == "holds"
    monkeypatch.setattr(sparse, "gain", lambda *a: [0.1, -0.1])
    assert sparse.tflops().answer == "does not show here"


def test_a_row_refuses_a_verdict_of_another_kind(rows):
    record = {name: value for name, value in rows["rivals"].to_record().items() if name != "answer"}
    with pytest.raises(ValueError, match="must begin with"):
        Row(**{**record, "verdict": "perhaps"})


def test_the_lessons_say_what_the_ledger_says(rows):
    seen = set()
    for lesson, claim, verdict in boxes():
        if claim in ASKED_BY_US:
            continue
        id = next((row for beginning, row in BOXES.items() if claim.startswith(beginning)), None)
        assert id is not None, f"{lesson}: no row of the ledger for {claim!r}; add it to BOXES"
        seen.add(id)
        expected = PARTS.get((lesson, id), rows[id].verdict)
        assert verdict == expected, f"{lesson} and the ledger disagree on {claim!r}"
        assert answer_of(verdict).startswith("holds") == rows[id].answer.startswith("holds")
    assert set(BOXES.values()) - seen <= {"most-with-least"}


def test_the_readme_says_what_the_ledger_says(rows):
    """Each sentence of README.md that judges a claim, and the numbers that must bear it out."""
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    block = rows["cache-quality"].numbers["blocks"]["v4-small"]
    tflops, sizes = rows["tflops"].numbers, rows["open-weights"].numbers["file_bytes"]
    said = {
        "with idle experts recall more, from as much training and in as much time": min(
            *tflops["facts"], *tflops["facts_in_time"]
        )
        > 0,
        "On text of this size the same experts win nothing at equal training time": all(
            statistics.mean(values) <= 0 for name, values in tflops["text"].items() if "time" in name
        ),
        "12 MB in int8": round(sizes["small"] / 1e6) == 12,
        "is about as good on text (one run of each), and its cache is 18 times smaller at 256 tokens": abs(
            block["bits"]
        )
        < 0.01
        and round(block["smaller"]) == 18,
    }
    assert [sentence for sentence in said if sentence not in readme] == [], (
        "the README says it otherwise: read it again"
    )
    assert [sentence for sentence, holds in said.items() if not holds] == []


def test_the_page_is_up_to_date():
    """Whoever changes a row or a record writes it again: `minimoe claims --out notebooks/CLAIMS.md`."""
    assert (NOTEBOOKS / "CLAIMS.md").read_text(encoding="utf-8") == claims_page()


def test_the_ladder_has_a_number_or_a_reason_everywhere():
    rungs = ladder()
    for index, rung in enumerate(rungs):
        assert set(rung.values) == set(FIELDS)
        assert set(rung.why) == {name for name, value in rung.values.items() if value is None}
        for name, value in rung.values.items():
            first = rungs[0].values[name]
            assert rung.first[name] == (None if value is None or first is None else pytest.approx(value / first))
            assert (cell(rung, name, FIELDS[name][2], index) == "-") == (value is None)
    by_name = {rung.name: rung for rung in rungs}
    assert by_name["dense"].values["weight_bytes"] == 4 * by_name["dense"].values["total_params"]
    exported = by_name["exported"]
    assert exported.before["weight_bytes"] == pytest.approx(
        exported.values["weight_bytes"] / by_name["distilled"].values["weight_bytes"]
    )


def test_measured_again_is_compared_within_its_tolerance():
    assert Again("row", "n", 1.0, 1.05, 0.1).same is True
    assert Again("row", "n", 1.0, 1.2, 0.1).same is False
    assert Again("row", "n", 1.0, float("nan"), 0.1).same is False
    assert Again("row", "n", None, 1.2, 0.1).same is None
    assert Again("row", "speed", 1.0, 9.0, None).same is None


def test_what_is_recorded_is_what_is_measured():
    names = [name for row in again.TOLERANCES.values() for name in row]
    assert list(again.recorded_values()) == names
    assert set(again.TOLERANCES) <= set(ledger())


def test_a_row_is_measured_again_on_the_command_line(capsys, monkeypatch):
    assert app.run(["claims", "--run", "--only", "cache", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["again"]
    assert [one["same"] for one in found] == [True, True]
    monkeypatch.setattr("minimoe.claims.again._cache", lambda: {"V3.2 over V4-Pro at 1,048,576 tokens": 9.0})
    assert app.run(["claims", "--run", "--only", "cache"]) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_what_cannot_be_asked_is_one_line(capsys, tmp_path):
    picture = ["--figure", str(tmp_path / "ladder.png")]
    for arguments in (
        ["--only", "nosuch"],
        ["--record"],
        ["--run", "--record", "--only", "cache"],
        ["--only", "cache", "--ladder"],
        ["--only", "cache", *picture],
        ["--out", str(tmp_path)],
        ["--figure", str(tmp_path)],
        ["--figure", str(tmp_path / "ladder.gif")],
    ):
        assert app.run(["claims", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "ladder.png").exists()


def test_the_ladder_is_drawn_into_a_file(capsys, tmp_path):
    """One panel for each quantity, by name; what is printed stays the ladder."""
    path = tmp_path / "ladder.svg"
    assert app.run(["claims", "--ladder", "--figure", str(path)]) == 0
    assert "the whole block of DeepSeek-V4" in " ".join(capsys.readouterr().out.split())
    drawn = path.read_text(encoding="utf-8")
    words = [title for title, _, _ in FIELDS.values()] + [rung.name for rung in ladder()]
    assert [word for word in words if f"<!-- {word} -->" not in drawn] == []  # above the curves that spell it
    least = sum(better is False for _, better, _ in FIELDS.values())
    assert (drawn.count("<!-- lower is better -->"), least) == (least, 6)


def test_the_commands_print_rows_and_rungs(capsys):
    assert app.run(["claims"]) == 0
    assert "most-with-least" in capsys.readouterr().out
    assert app.run(["claims", "--ladder"]) == 0
    assert "the whole block of DeepSeek-V4" in " ".join(capsys.readouterr().out.split())
    assert app.run(["claims", "--only", "huawei"]) == 0
    assert "not testable here" in " ".join(capsys.readouterr().out.split())
