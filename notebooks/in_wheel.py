"""The build's step that puts the lessons into the wheel: `pyproject.toml` names it, setuptools calls it.

The notebooks are kept once, in this folder. A wheel holds a copy of what a reader needs, in ``minimoe/notebooks``; an
editable install needs none, since `minimoe notebooks` then takes the files from here. The page of the microscope is not
in the wheel: the command writes it anew from the package's weights, to the same bytes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
SHIPPED = ("*.ipynb", "*.md", "figures/*")  # the masters and the build stay here


class WithLessons(build_py):
    """`build_py`, and the lessons."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._lessons():
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        added = [] if self.editable_mode else [target for _, target in self._lessons()]
        return super().get_outputs(include_bytecode) + added

    def get_source_files(self) -> list[str]:
        """So that a source archive holds what a wheel is made of."""
        return [*super().get_source_files(), f"notebooks/{Path(__file__).name}", *(s for s, _ in self._lessons())]

    def _lessons(self) -> list[tuple[str, str]]:
        """Each file, relative to the root of the source, and its place in the build."""
        found = sorted(path.relative_to(HERE) for pattern in SHIPPED for path in HERE.glob(pattern))
        place = Path(self.build_lib) / "minimoe" / "notebooks"
        return [(f"notebooks/{path.as_posix()}", str(place / path)) for path in found]
