"""One self-contained web page: text, figures, tables and samples, in a single file that opens anywhere.

Nothing is loaded from elsewhere: figures are inlined as PNG, the style sheet is a few lines, there is no script. All
text is escaped, because samples are whatever a model wrote.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import os
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from minimoe.errors import UserError
from minimoe.files import write_atomically
from minimoe.plots.style import png_bytes

NARROW_IN = 5.0  # a figure up to this wide has letters that can be read on a phone; a wider one scrolls there


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure with its caption; ``alt`` says what it shows to those who cannot see it (the caption if empty)."""

    figure: Figure
    caption: str
    alt: str = ""

    def __post_init__(self) -> None:
        if not (self.alt or self.caption).strip():
            raise UserError(
                f"Picture: caption={self.caption!r} and alt={self.alt!r} are both empty; describe the figure"
            )


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells below a header; columns of numbers are set to the right. Format numbers before.

    ``stacked``: on a narrow screen each row becomes a block of lines, for tables of sentences.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    stacked: bool = False

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise UserError(
                    f"Table: row {index} has {len(row)} cells for {len(self.header)} columns; make them the same"
                )


@dataclasses.dataclass(frozen=True)
class Sample:
    """Text shown letter for letter, such as what a model wrote, under an optional label."""

    text: str
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Link:
    """To a file beside the page, whose name is its address.

    Raises:
      UserError: for an address that leads elsewhere.
    """

    file: str
    text: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", self.file):
            raise UserError(f"Link: {self.file!r} is no plain file name; name a file beside the page")


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order: paragraphs, link, picture, table, samples."""

    heading: str
    paragraphs: Sequence[str] = ()
    link: Link | None = None
    picture: Picture | None = None
    table: Table | None = None
    samples: Sequence[Sample] = ()


def write_report(path: str | os.PathLike[str], *, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Writes the page, all or nothing, over an earlier one.

    Args:
      path: of the page; missing folders are made.
      title: of the page, plain text like all the others.
      lead: one paragraph below the title.
      sections: in reading order.

    Returns:
      The path written.

    Raises:
      UserError: if ``path`` is a folder.

    Example:
      >>> write_report("report.html", title="A run", lead="What it did.", sections=[])  # doctest: +SKIP
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"report {path.name!r} is a folder; name a file, such as {path.name}/report.html")
    return write_atomically(path, page(title, lead, sections))


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page as text."""
    links = [f'<li><a href="#section-{i}">{escape(section.heading)}</a></li>' for i, section in enumerate(sections, 1)]
    contents = f'<nav aria-label="Contents"><ol>{"".join(links)}</ol></nav>' if len(sections) > 2 else ""
    written = [_section(number, section) for number, section in enumerate(sections, 1)]
    body = "\n".join([*written[:1], contents, *written[1:]])  # the first section is what the page opens with
    return PAGE.substitute(title=escape(title), lead=_paragraph(lead), body=body, style=STYLE)


def escape(text: str) -> str:
    """Text that is safe between tags and inside quotes, with every character visible or harmless.

    Control characters become their picture (``␀``, ``␛``), a carriage return ``␍``. Characters that would turn the
    direction of the text around them, C1 controls, lone surrogates and noncharacters become ``�``. Line feeds and tabs
    stay.
    """
    return html.escape(UNPRINTABLE.sub(_picture_of, text), quote=True)


UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def _picture_of(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"


def _section(number: int, section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>", *(_paragraph(text) for text in section.paragraphs)]
    if section.link is not None:
        parts.append(f'<p><a href="{section.link.file}">{escape(section.link.text)}</a></p>')
    if section.picture is not None:
        parts.append(_picture(section.picture))
    if section.table is not None:
        parts.append(_table(section.table, section.heading))
    parts += [_sample(sample) for sample in section.samples]
    return f'<section id="section-{number}">\n' + "\n".join(parts) + "\n</section>"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(png_bytes(picture.figure)).decode("ascii")
    image = f'<img alt="{escape(picture.alt or picture.caption)}" src="data:image/png;base64,{data}">'
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    kind = ' class="wide"' if picture.figure.get_figwidth() > NARROW_IN else ""
    return f"<figure{kind}>{image}{caption}</figure>"


def _table(table: Table, heading: str) -> str:
    columns = [[row[i] for row in table.rows] for i in range(len(table.header))]
    kinds = [' class="number"' if _are_numbers(column) else "" for column in columns]
    head = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for cell, kind in zip(table.header, kinds, strict=True))
    names = table.header if table.stacked else ()
    body = "\n".join(_row(row, kinds, names) for row in table.rows)
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    # Wide tables scroll in their own box, which the keyboard can reach, so that the page itself never does.
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.caption or heading)}">'
    look = ' class="stacked"' if table.stacked else ""
    return f"{box}<table{look}>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"


def _row(row: Sequence[str], kinds: Sequence[str], names: Sequence[str]) -> str:
    first = f'<th scope="row"{kinds[0]}>{escape(row[0])}</th>' if row else ""
    labels = [f' data-label="{escape(name)}"' for name in names] or [""] * len(row)
    rest = "".join(
        f"<td{kind}{label}>{escape(cell)}</td>"
        for cell, kind, label in zip(row[1:], kinds[1:], labels[1:], strict=True)
    )
    return f"<tr>{first}{rest}</tr>"


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether a column reads as numbers: digits first, a short unit at most behind; dashes for missing ones."""
    numeric = [re.fullmatch(r"\s*[-+−]?[\d.,]+(e[-+]?\d+)?\s?[%×\w/]{0,8}\s*", cell) is not None for cell in cells]
    missing = [cell.strip() in ("", "-", "–", "—", "n/a") for cell in cells]
    return any(numeric) and all(a or b for a, b in zip(numeric, missing, strict=True))


def _sample(sample: Sample) -> str:
    label = f"<figcaption>{escape(sample.label)}</figcaption>" if sample.label else ""
    # HTML drops one line feed right after <pre>; giving it one keeps the sample's own.
    return f'<figure class="sample">{label}<pre dir="auto">\n{escape(sample.text)}</pre></figure>'


# The policy makes browsers refuse anything that is not in this file, should the escaping ever fail.
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
<header><h1>$title</h1>
<div class="lead">$lead</div></header>
$body
</main>
</body>
</html>
""")

STYLE = """\
:root { color-scheme: light dark; --ink: #1d1d1f; --quiet: #5c5c61; --paper: #fff; --box: #f4f4f6; --line: #d5d5da;
  --link: #0062a3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececee; --quiet: #a9a9b0; --paper: #17171a; --box: #222226; --line: #3d3d44; --link: #6db9ee; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
main { max-width: 52rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
.lead { font-size: 1.1rem; color: var(--quiet); }
a { color: var(--link); }
nav ol { padding-left: 1.4rem; }
p { white-space: pre-line; }
figure { margin: 1.2rem 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 0.5rem; }
figcaption, caption { color: var(--quiet); font-size: 0.9rem; text-align: left; padding: 0.4rem 0; }
.scroll { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: 0.92rem; overflow-wrap: normal; }
th, td { padding: 0.35rem 0.8rem 0.35rem 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--quiet); }
tbody th { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { margin: 0; padding: 0.8rem; background: var(--box); border-radius: 6px; font-size: 0.88rem; white-space: pre-wrap;
  max-height: 30rem; overflow: auto; }
@media (max-width: 36rem) {
  .stacked, .stacked tbody, .stacked tr, .stacked th, .stacked td { display: block; }
  .stacked thead { display: none; }
  .stacked tr { border-bottom: 1px solid var(--line); padding: 0.5rem 0; }
  .stacked th, .stacked td { border: 0; padding: 0.1rem 0; }
  .wide { overflow-x: auto; }
  .wide img { max-width: none; width: 36rem; }
  .stacked td::before { content: attr(data-label) ": "; color: var(--quiet); }
}
@media (min-width: 100rem) { html { font-size: 130%; } }
@media print { .scroll, pre { overflow: visible; max-height: none; } }
"""
