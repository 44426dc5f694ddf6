"""Builds the notebooks from their text masters, or checks that they are up to date.

Masters are ``source/NN_name.py`` (jupytext, py:percent); results are ``NN_name.ipynb`` beside this file, executed, with
their outputs, so that they can be read on the web. Edit the master, never the notebook.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import json
import os
import re
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from minimoe.files import write_atomically

HERE = Path(__file__).resolve().parent
MAX_BYTES = 1_000_000
# Not for the kernel: the profile, which --fast decides, and what tells a notebook that somebody sits before it.
PERSONAL = {"MINIMOE_FAST", "JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"}
MAX_CODE_LINES = 25
KERNEL = "python3"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": KERNEL},
    "language_info": {"name": "python"},
}
EXAMPLE = """\
examples:
  python notebooks/build.py                        build all notebooks (minutes each)
  python notebooks/build.py 02_routing             build one
  python notebooks/build.py 02_routing --prose-only   carry changed prose over, keep the outputs (seconds)
  python notebooks/build.py --check                run all with MINIMOE_FAST=1 and compare; writes nothing
  python notebooks/build.py --check --no-execute   compare alone (seconds)
"""


class BuildError(Exception):
    """A notebook that cannot be built; the message is for people, and may have many lines."""


@dataclasses.dataclass(frozen=True)
class Lesson:
    """One notebook: its text master and its executed form, of which either may be missing."""

    name: str
    master: Path
    notebook: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 fine, 1 problems found, 2 wrong usage."""
    options = parse(arguments)
    try:
        lessons = find_lessons(options.folder, options.names)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 2
    if not lessons:
        print(f"FAIL  no notebook and no master in {options.folder}; masters are source/NN_name.py")
        return 1
    if options.check:
        return check_all(lessons, execute_too=not options.no_execute, timeout=options.timeout, jobs=options.jobs)
    return build_all(lessons, timeout=options.timeout, prose_only=options.prose_only)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Build the notebooks from notebooks/source, or check them.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="notebooks, such as 02_routing; all of them if none is named")
    parser.add_argument(
        "--check", action="store_true", help="compare with the masters and run them fast; write nothing"
    )
    parser.add_argument("--no-execute", action="store_true", help="with --check: compare alone")
    parser.add_argument(
        "--prose-only",
        action="store_true",
        help="take the text from the master and the outputs from the notebook; refused if any code changed",
    )
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for each whole notebook (default: 600)")
    parser.add_argument("--jobs", type=int, default=1, help="with --check: notebooks that run at once (default: 1)")
    parser.add_argument("--folder", type=Path, default=HERE, help="of the notebooks (default: the one of this file)")
    options = parser.parse_args(arguments)
    if options.no_execute and not options.check:
        parser.error("--no-execute goes with --check; a notebook without outputs is not worth building")
    if options.jobs < 1 or (options.jobs > 1 and not options.check):
        parser.error(
            f"--jobs {options.jobs} goes with --check, from 1 on; notebooks that are built have clocks of their own"
        )
    if options.prose_only and options.check:
        parser.error("--prose-only writes and --check writes nothing; choose one of them")
    return options


def find_lessons(folder: Path, names: Sequence[str]) -> list[Lesson]:
    """All lessons that have a master or a notebook, in order, or those named (with or without folder and suffix)."""
    found = {path.stem for path in (folder / "source").glob("*.py")} | {path.stem for path in folder.glob("*.ipynb")}
    wanted = {Path(name).stem for name in names} or found
    unknown = sorted(wanted - found)
    if unknown:
        raise BuildError(f"no notebook called {', '.join(unknown)}; there are: {', '.join(sorted(found)) or 'none'}")
    return [Lesson(name, folder / "source" / f"{name}.py", folder / f"{name}.ipynb") for name in sorted(wanted)]


# ---- building


def build_all(lessons: Sequence[Lesson], timeout: float, prose_only: bool = False) -> int:
    """Builds one after the other; stops at the first that fails, and leaves its earlier notebook as it was."""
    for lesson in lessons:
        print(f"{lesson.name} ...", flush=True)
        start = time.perf_counter()
        try:
            if not lesson.master.exists():
                raise BuildError(f"there is no {lesson.master.name} in source/; restore it or delete the notebook")
            notebook = read_master(lesson.master)
            if prose_only:
                keep_outputs(notebook, lesson)
            else:
                execute(notebook, lesson.notebook.parent, fast=False, timeout=timeout)
            content = to_bytes(notebook)
            write_atomically(lesson.notebook, content)
        except BuildError as error:
            print(f"FAIL  {lesson.name}: {error}", flush=True)
            return 1
        print(f"ok    {lesson.name}  {time.perf_counter() - start:.1f} s  {len(content) / 1000:.0f} kB", flush=True)
        if len(content) > MAX_BYTES:
            print(f"WARN  {lesson.name}: over {MAX_BYTES / 1e6:g} MB; make its figures smaller or fewer", flush=True)
    return 0


def read_master(path: Path) -> NotebookNode:
    """The notebook of a master: no outputs, minimal metadata, and cell ids that follow from the text of the cells."""
    try:
        notebook = jupytext.read(path, fmt="py:percent")
    except Exception as error:  # jupytext raises what its parsers raise
        raise BuildError(f"{path.name} cannot be read as py:percent: {error}") from error
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(METADATA)
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        # Equal cells are told apart by how many came before, so that an edit changes only its own cell's id.
        cell.id = f"{digest}-{seen[digest]}" if seen[digest] else digest
        seen[digest] += 1
    return notebook


def execute(notebook: NotebookNode, folder: Path, *, fast: bool, timeout: float) -> None:
    """Runs the notebook in place, in a fresh kernel of this interpreter whose working folder is ``folder``.

    Raises:
      BuildError: with the source of the failing cell and what it raised, or if it takes over ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as scratch:
        client = NotebookClient(
            notebook,
            km=kernel_manager(Path(scratch)),
            resources={"metadata": {"path": str(folder)}},
            timeout_func=lambda cell: max(0.1, deadline - time.monotonic()),
            force_raise_errors=True,
            shutdown_kernel="immediate",
            record_timing=False,
            store_widget_state=False,
            coalesce_streams=True,
        )
        try:
            # Without cleanup_kc, nbclient leaves the kernel of a manager that it was given running.
            client.execute(env=kernel_environment(Path(scratch), fast), cleanup_kc=True)
        except CellExecutionError as error:
            raise BuildError(describe_failure(notebook, error)) from error
        except CellTimeoutError as error:
            raise BuildError(f"took over {timeout:g} s; a cell may hang, or raise --timeout\n{error}") from error
        except DeadKernelError as error:
            raise BuildError(f"the kernel died, often for want of memory: {error}") from error
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)


def keep_outputs(master: NotebookNode, lesson: Lesson) -> None:
    """Gives the cells of the master the outputs of the existing notebook, without running anything.

    Raises:
      BuildError: if the notebook cannot be read, or any code cell is new, gone, moved or changed. Its output would then
        belong to other code.
    """
    run = f"run: python notebooks/build.py {lesson.name}"
    try:
        notebook = nbformat.read(lesson.notebook, as_version=4)
    except Exception as error:  # no file, broken JSON, not a notebook: all the same repair
        raise BuildError(f"{lesson.notebook.name} cannot be read ({error}), so there are no outputs; {run}") from error
    new, old = ([cell for cell in book.cells if cell.cell_type == "code"] for book in (master, notebook))
    for number, (a, b) in enumerate(zip(new, old, strict=False), 1):
        if a.source != b.source:
            raise BuildError(f"code cell {number} differs from the notebook's, so its output may too; {run}")
    if len(new) != len(old):
        raise BuildError(f"the master has {len(new)} code cells, the notebook {len(old)}; {run}")
    for a, b in zip(new, old, strict=True):
        a.outputs, a.execution_count = b.outputs, b.execution_count


def kernel_manager(scratch: Path) -> AsyncKernelManager:
    """Starts this very interpreter, whatever kernels are registered on the machine."""
    spec = scratch / "kernels" / KERNEL
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    (spec / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
    specs = KernelSpecManager(kernel_dirs=[str(scratch / "kernels")], ensure_native_kernel=False)
    return AsyncKernelManager(kernel_name=KERNEL, kernel_spec_manager=specs)


def kernel_environment(scratch: Path, fast: bool) -> dict[str, str]:
    """This environment, less what would make the result depend on the person who builds."""
    environment = {name: value for name, value in os.environ.items() if name not in PERSONAL}
    environment["IPYTHONDIR"] = str(scratch / "ipython")  # no personal start-up files
    environment["PYTHONHASHSEED"] = "0"
    environment["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # a debugger's warning that would land in the outputs
    if fast:
        environment["MINIMOE_FAST"] = "1"
    return environment


def describe_failure(notebook: NotebookNode, error: CellExecutionError) -> str:
    """The number and the source of the failing cell, and its traceback without colours."""
    failed = next((i for i, cell in enumerate(notebook.cells) if error_outputs(cell)), None)
    if failed is None:
        return without_colors(str(error))
    output = error_outputs(notebook.cells[failed])[0]
    traceback = without_colors("\n".join(output.get("traceback", []))) or f"{output.ename}: {output.evalue}"
    source = textwrap.indent(notebook.cells[failed].source, "    | ", lambda line: True)
    return f"cell {failed + 1} of {len(notebook.cells)} failed\n{source}\n{textwrap.indent(traceback, '    ')}"


def without_colors(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def to_bytes(notebook: NotebookNode) -> bytes:
    nbformat.validate(notebook)
    return (nbformat.writes(notebook).rstrip("\n") + "\n").encode("utf-8")


# ---- checking


def check_all(lessons: Sequence[Lesson], *, execute_too: bool, timeout: float, jobs: int) -> int:
    """Checks every lesson, whatever the ones before came to; prints a line for each and then each problem."""

    def check(lesson: Lesson) -> tuple[list[str], float]:
        start = time.perf_counter()
        problems = list(compare(lesson))
        if execute_too and lesson.master.exists():
            problems += run_fast(lesson, timeout)
        return problems, time.perf_counter() - start

    failures = 0
    with ThreadPoolExecutor(jobs) as pool:  # threads wait; the work is in the kernels, which are processes
        for lesson, (problems, seconds) in zip(lessons, pool.map(check, lessons), strict=True):
            failures += bool(problems)
            size = f"{lesson.notebook.stat().st_size / 1000:.0f} kB" if lesson.notebook.exists() else "no notebook"
            print(f"{'FAIL' if problems else 'ok  '}  {lesson.name}  {seconds:.1f} s  {size}", flush=True)
            for problem in problems:
                print(textwrap.indent(problem, "      "), flush=True)
    print(f"{len(lessons)} notebooks checked, {failures} with problems")
    return 1 if failures else 0


def run_fast(lesson: Lesson, timeout: float) -> list[str]:
    try:
        execute(read_master(lesson.master), lesson.notebook.parent, fast=True, timeout=timeout)
    except BuildError as error:
        return [f"run with MINIMOE_FAST=1: {error}"]
    return []


def compare(lesson: Lesson) -> Iterator[str]:
    """Problems that can be seen without running anything."""
    rebuild = f"run: python notebooks/build.py {lesson.name}"
    master = notebook = None
    if not lesson.master.exists():
        yield f"has no master source/{lesson.master.name}; restore it, or delete the notebook"
    else:
        try:
            master = read_master(lesson.master)
        except BuildError as error:
            yield str(error)
    if not lesson.notebook.exists():
        yield f"has no {lesson.notebook.name}; {rebuild}"
    else:
        try:
            notebook = nbformat.read(lesson.notebook, as_version=4)
        except Exception as error:  # broken JSON, not a notebook, not UTF-8: all the same repair
            yield f"{lesson.notebook.name} cannot be read ({error}); {rebuild}"
        yield from (f"{problem}; {rebuild}" for problem in notebook_problems(lesson.notebook, notebook))
    if master is not None:
        yield from long_cells(master)
    if master is not None and notebook is not None:
        yield from (f"{problem}\n{rebuild}" for problem in differences(master, notebook))


def notebook_problems(path: Path, notebook: NotebookNode | None) -> Iterator[str]:
    """What is wrong with a committed notebook by itself."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        yield f"is {size / 1e6:.2f} MB, over {MAX_BYTES / 1e6:g} MB; make its figures smaller or fewer"
    for number, cell in enumerate(notebook.cells if notebook else [], 1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.get("execution_count") is None:
            yield f"cell {number} was never executed"
        for output in error_outputs(cell):
            yield f"cell {number} holds an error: {output.get('ename')}: {output.get('evalue')}"


def long_cells(master: NotebookNode) -> Iterator[str]:
    for number, cell in enumerate(master.cells, 1):
        lines = len(cell.source.splitlines())
        if cell.cell_type == "code" and lines > MAX_CODE_LINES:
            yield f"cell {number} has {lines} lines of code, over {MAX_CODE_LINES}; split it in the master"


def differences(master: NotebookNode, notebook: NotebookNode) -> Iterator[str]:
    """The first cell whose kind or text is not the master's, as a diff."""
    theirs = [(cell.cell_type, cell.source) for cell in master.cells]
    ours = [(cell.cell_type, cell.source) for cell in notebook.cells]
    for number, (a, b) in enumerate(zip(theirs, ours, strict=False), 1):
        if a != b:
            lines = difflib.unified_diff(
                a[1].splitlines(), b[1].splitlines(), f"master ({a[0]})", f"notebook ({b[0]})", lineterm="", n=1
            )
            yield "\n".join([f"cell {number} differs from the master", *list(lines)[:20]])
            return
    if len(theirs) != len(ours):
        yield f"has {len(ours)} cells, its master {len(theirs)}"


def error_outputs(cell: NotebookNode) -> list[NotebookNode]:
    return [output for output in cell.get("outputs", []) if output.output_type == "error"]


if __name__ == "__main__":
    sys.exit(main())
