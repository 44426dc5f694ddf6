"""The folder of a tour's report: what may be replaced, and what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT, REPORT_FILE = "minimoe-tour-1", "report.json"


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
    except (OSError, ValueError, AttributeError):
        return False


def write(out: Path, values: dict[str, Any], figures: dict[str, Figure]) -> None:
    """Writes the page, the figures and the numbers; ``report.json`` last, because it marks the folder as a report."""
    from minimoe.files import write_atomically, writing
    from minimoe.plots import save
    from minimoe.tour.html import write_report
    from minimoe.tour.page import page

    folder = out / "figures"
    shutil.rmtree(folder, ignore_errors=True)
    with writing(out):
        folder.mkdir()
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
    write_report(out / "report.html", **page(values, figures))
    write_atomically(out / REPORT_FILE, json.dumps(values, indent=1) + "\n")
