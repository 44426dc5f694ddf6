"""``minimoe notebooks`` and ``minimoe lab``: the lessons in a folder of the reader's, and Jupyter Lab on the first one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

import minimoe
from minimoe.console import messages, start, write_out
from minimoe.errors import UserError
from minimoe.files import check_file, check_folder, write_atomically

FIRST = "00_tour.ipynb"
PAGE = "microscope.html"
FOLDER = Path("minimoe-lessons")
KINDS = ("*.ipynb", "*.md", "figures/*")

FORMERLY = ("list", "show", "run", "ship", "results")  # of experiments, which this name once stood for

Target = Annotated[Path, typer.Argument(help="Folder for the lessons; it is made if it is missing.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files of these names that are there; else they are kept.")
]


def notebooks(folder: Target, overwrite: Overwrite = False) -> None:
    """Copy the lessons, their figures and pages into a folder. They run there offline, from the installed package.

    A file that is there already is kept, your own work in it too, unless --overwrite is given.

    Example: minimoe notebooks my-lessons
    """
    written, kept = copy_lessons(folder, overwrite)
    tell(folder, written, kept)
    write_out(f"read them on the web, or: minimoe lab {folder}")


def lab(
    folder: Target = FOLDER,
    overwrite: Overwrite = False,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the address, as Jupyter Lab does with this option.")
    ] = False,
    rest: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
) -> int:
    """Copy the lessons into a folder, as `minimoe notebooks` does, and open Jupyter Lab on the first one.

    Example: minimoe lab my-lessons --no-browser
    """
    if rest or str(folder) in FORMERLY:
        words = " ".join([str(folder), *(rest or [])])
        raise UserError(f"minimoe lab opens the lessons; for experiments: minimoe experiments {words}")
    if importlib.util.find_spec("jupyterlab") is None:
        raise UserError("Jupyter Lab is not installed; pip install 'minimoe[notebooks]'")
    tell(folder, *copy_lessons(folder, overwrite))
    command = [sys.executable, "-m", "jupyterlab", FIRST, *(["--no-browser"] if no_browser else [])]
    with subprocess.Popen(command, cwd=folder) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # Jupyter Lab got it too: it asks whether to stop
                continue


def tell(folder: Path, written: int, kept: list[str]) -> None:
    """How many files were written, and which are there otherwise than in the package."""
    write_out(f"{folder}: {written} files written")
    if kept:
        names = ", ".join(kept[:3]) + (", ..." if len(kept) > 3 else "")
        messages.print(f"kept as they are, though they differ from the package's: {names}; --overwrite replaces them")


def lessons_folder() -> Path:
    """Where the lessons are: in the package, or in the copy of the repository that the package is run from.

    Raises:
      UserError: if they are in neither.
    """
    package = Path(minimoe.__file__).parent
    for place in (package / "notebooks", package.parent / "notebooks"):
        if (place / FIRST).is_file():
            return place
    raise UserError(f"the lessons are not in {package}; install minimoe again, from a wheel or from its repository")


def copy_lessons(folder: Path, overwrite: bool = False) -> tuple[int, list[str]]:
    """Copies what is missing, with the page of the microscope, which is written from the package's weights.

    Args:
      overwrite: whether files that differ are replaced.

    Returns:
      Number of files written, and the names of those that differ and were kept.

    Raises:
      UserError: before anything is written, if the folder or a file in it cannot be written.
    """
    source = lessons_folder()
    if folder.resolve() == source.resolve():
        raise UserError(f"{folder} is where the lessons come from; name another folder")
    check_folder(folder, lambda there: True, "a folder of lessons")
    names = sorted(path.relative_to(source).as_posix() for kind in KINDS for path in source.glob(kind))
    content = {name: (source / name).read_bytes() for name in names}
    missing = [name for name in (*names, PAGE) if not (folder / name).exists()]
    differs = [name for name in names if name not in missing and not _holds(folder / name, content[name])]
    writes = missing + (differs if overwrite else [])
    for name in writes:
        check_file(folder / name)
    for name in writes:
        write_atomically(folder / name, _page(source) if name == PAGE else content[name])
    return len(writes), [] if overwrite else differs


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file has this content; a folder of that name has not."""
    return path.is_file() and path.read_bytes() == content


def _page(source: Path) -> bytes | str:
    """The page of the microscope: the repository has it, a wheel has what it is made of."""
    if (source / PAGE).is_file():
        return (source / PAGE).read_bytes()
    from minimoe.hub import resolve_with_tokenizer
    from minimoe.microscope.page import build_page

    start(f"writing {PAGE}, the router microscope: a few seconds")
    model, tokenizer, _, _ = resolve_with_tokenizer(Path("nano"))
    return build_page(model, tokenizer, name="nano")
