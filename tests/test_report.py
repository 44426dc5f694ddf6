"""The report page: whole, self-contained, and deaf to hostile text."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minimoe import plots
from minimoe.errors import UserError
from minimoe.tour import report
from minimoe.tour.html import Link, Picture, Sample, Section, Table, escape, page, write_report

HOSTILE = "</pre></p><script>alert(1)</script><img src=http://evil.example/x onerror='x'>\"&amp; $title ${body}"
UNPRINTABLE = "\x00\x1b[31m\x07\r\u202e\ud800\x85\x7f"
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Checks that tags balance while it reads; keeps tags with their attributes, and the text of each <pre>."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.samples: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "pre":
            self.samples.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "pre":
            self.samples[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make_figure():
    return plots.bits_per_byte_by_domain({"model": {"text": 1.5}})


def full_section(text: str) -> Section:
    return Section(
        heading=text,
        paragraphs=[text, text],
        picture=Picture(make_figure(), caption=text, alt=text),
        table=Table([text, "bits per byte"], [[text, "1.500"], ["b", "–"]], caption=text),
        samples=[Sample(text, label=text), Sample("plain")],
    )


def test_written_page_is_utf8_and_replaces_the_old_one(tmp_path: Path):
    path = tmp_path / "new" / "report.html"
    for title in ("first", "second é"):
        assert write_report(path, title=title, lead="lead", sections=[full_section("text")]) == path
    assert "<title>second é</title>" in path.read_text(encoding="utf-8")
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_hostile_text_changes_no_tag():
    text = HOSTILE + UNPRINTABLE
    hostile = Page(page(text, text, [full_section(text)] * 3))
    harmless = Page(page("x", "x", [full_section("x")] * 3))
    assert [name for name, _ in hostile.tags] == [name for name, _ in harmless.tags]
    assert "script" not in {name for name, _ in hostile.tags}
    for _, attributes in hostile.tags:
        assert not any(name.startswith("on") for name in attributes)


def test_nothing_is_loaded_from_elsewhere():
    read = Page(page(HOSTILE, HOSTILE, [full_section(HOSTILE)] * 3))
    addresses = [value for _, attributes in read.tags for name, value in attributes.items() if name in ("src", "href")]
    assert addresses
    assert all(value.startswith(("data:image/png;base64,", "#section-")) for value in addresses if value is not None)
    assert "link" not in {name for name, _ in read.tags}
    plain = page("t", "l", [full_section("x")])
    assert "http:" not in plain
    assert "https:" not in plain
    assert "url(" not in plain
    assert "@import" not in plain


def test_the_figure_is_inside_with_its_text():
    read = Page(page("t", "l", [Section("h", picture=Picture(make_figure(), "the caption"))]))
    image = read.all("img")[0]
    assert image["alt"] == "the caption"
    assert base64.b64decode(str(image["src"]).partition(",")[2]).startswith(b"\x89PNG")


def test_a_link_leads_to_a_file_beside_the_page():
    read = Page(page("t", "l", [Section("h", link=Link("other.html", "go <there>"))]))
    assert [link["href"] for link in read.all("a")] == ["other.html"]
    for file in ("../other.html", "https://example.org", "javascript:alert(1)", "//host", "a b", "", ".hidden"):
        with pytest.raises(UserError, match="plain file name"):
            Link(file, "text")


def test_a_figure_without_words_is_refused():
    with pytest.raises(UserError, match="describe the figure"):
        Picture(make_figure(), caption=" ")


def test_tables_are_semantic_and_scroll():
    read = Page(page("t", "l", [Section("h", table=Table(["name", "value"], [["a", "1.2"], ["b", "–"]]))]))
    assert [cell["scope"] for cell in read.all("th")] == ["col", "col", "row", "row"]
    assert [cell.get("class") for cell in read.all("td")] == ["number", "number"]
    assert read.all("th")[0].get("class") is None
    assert {"class": "scroll", "role": "region", "tabindex": "0", "aria-label": "h"} in read.all("div")


def test_a_ragged_table_is_refused():
    with pytest.raises(UserError, match="row 1 has 1 cells for 2 columns"):
        Table(["a", "b"], [["1", "2"], ["3"]])


@pytest.mark.parametrize(
    "text", ["\n\nstarts and ends with line feeds\n\n", "tab\there", "a < b && c > 'd'", HOSTILE, ""]
)
def test_samples_come_back_letter_for_letter(text: str):
    read = Page(page("t", "l", [Section("h", samples=[Sample(text)])]))
    # The first line feed after <pre> is dropped by browsers, though not by this parser.
    assert read.samples == ["\n" + text]


def test_unprintable_characters_become_visible():
    assert escape(UNPRINTABLE) == "␀␛[31m␇␍\ufffd\ufffd\ufffd␡"
    assert escape("\r\n\t") == "␍\n\t"
    every = escape("".join(map(chr, range(0x3000))))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", every)


def test_page_reads_on_a_phone_and_in_the_dark():
    text = page("t", "l", [])
    assert any(meta.get("name") == "viewport" for meta in Page(text).all("meta"))
    assert "@media (prefers-color-scheme: dark)" in text


def test_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is a folder"):
        write_report(tmp_path, title="t", lead="l", sections=[])


def test_a_stacked_table_names_its_columns_in_every_cell():
    table = Table(("claim", "verdict <1>"), [("a", "holds")], stacked=True)
    text = page("t", "lead", [Section("s", table=table)])
    assert '<table class="stacked">' in text
    assert '<td data-label="verdict &lt;1&gt;">holds</td>' in text  # what a narrow screen puts before the cell
    assert (
        "data-label=" not in page("t", "lead", [Section("s", table=Table(("a", "b"), [("1", "2")]))]).split("<body>")[1]
    )


def test_a_report_that_a_kill_left_unfinished_may_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "minimoe-tour"
    monkeypatch.setattr("minimoe.microscope.write_page", killed)
    report.prepare(out)
    with pytest.raises(KeyboardInterrupt):
        report.write(out, {"microscope": {"model": "nano"}}, {}, None, None)  # type: ignore[arg-type]
    assert sorted(path.name for path in out.iterdir()) == ["figures", "report.json"]
    report.prepare(out)
    (out / "report.json").write_text("{}")
    with pytest.raises(UserError, match="not an earlier report"):
        report.prepare(out)
