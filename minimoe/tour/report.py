"""The folder of a tour's report: what may be replaced, and what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minimoe.data import Tokenizer
    from minimoe.model import MoETransformer

FORMAT, REPORT_FILE, MICROSCOPE_FILE = "minimoe-tour-1", "report.json", "microscope.html"


def prepare(out: Path) -> None:
    """Makes sure that ``out`` is new, empty or an earlier report.

    Raises:
      UserError: if it is something else or cannot be written.
    """
    from minimoe.files import prepare_folder

    prepare_folder(out, _is_report, "an earlier report")


def _is_report(out: Path) -> bool:
    try:
        return json.loads((out / REPORT_FILE).read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def write(
    out: Path, values: dict[str, Any], figures: dict[str, Figure], model: MoETransformer, tokenizer: Tokenizer
) -> None:
    """Writes the page, the figures, the microscope with ``model`` in it, and the numbers.

    ``report.json`` marks the folder as a report: it comes first without numbers, so that the next tour may finish what a
    killed one began, and last with them.
    """
    from minimoe.files import write_atomically, writing
    from minimoe.microscope import write_page
    from minimoe.plots import save
    from minimoe.tour.html import write_report
    from minimoe.tour.page import page

    write_atomically(out / REPORT_FILE, json.dumps({"format": FORMAT, "unfinished": True}) + "\n")
    folder = out / "figures"
    shutil.rmtree(folder, ignore_errors=True)
    with writing(out):
        folder.mkdir()
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
    write_page(out / MICROSCOPE_FILE, model, tokenizer, name=values["microscope"]["model"])
    write_report(out / "report.html", **page(values, figures))
    write_atomically(out / REPORT_FILE, json.dumps(values, indent=1) + "\n")
