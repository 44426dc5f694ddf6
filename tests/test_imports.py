"""The house: a room imports only rooms above it, `import minimoe` is instant, and public names exist."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import minimoe

ROOT = Path(minimoe.__file__).parent
ROOMS = [
    "errors", "lazy", "files", "checks", "process", "layers", "attention", "config", "moe", "model", "cost", "data",
    "parallel", "inference", "training", "quant", "distill", "hub", "export", "microscope", "plots", "exercises",
    "console",
    "progress", "doctor", "bench", "experiments", "claims", "tour", "cli",
]  # fmt: skip
ONLY_FOR = {"process": {"process", "console", "doctor", "bench", "experiments", "tour", "cli"}}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def dotted(path: Path) -> str:
    parts = ("minimoe", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).with_suffix("").parts[0]
    return "cli" if first == "__main__" else first


def imported_rooms(path: Path) -> set[tuple[str, int]]:
    """Rooms named by any import statement of a file, at any depth, with the line."""
    found = set()
    package = dotted(path) if path.name == "__init__.py" else dotted(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            # `from minimoe import name`: the room it lives in
            names = [f"minimoe.{public_room(a.name)}" for a in node.names] if base == "minimoe" else [base]
        else:
            continue
        found |= {(name.split(".")[1], node.lineno) for name in names if name.startswith("minimoe.")}
    return found


def public_room(name: str) -> str:
    home = minimoe._HOME.get(name, f"minimoe.{name}")
    return home.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_a_room_imports_only_rooms_above_it(path):
    room = room_of(path)
    assert room in ROOMS, f"{room} has no place in the order of rooms"
    for other, line in imported_rooms(path):
        if other.startswith("__"):  # __version__
            continue
        assert other in ROOMS, f"{path}:{line} imports {other}, which has no place in the order of rooms"
        assert ROOMS.index(other) <= ROOMS.index(room), f"{path}:{line}: {room} imports {other}, a room below it"
        assert room in ONLY_FOR.get(other, {room}), f"{path}:{line}: {other} is not for {room}"


def test_the_order_is_tested_at_all():
    """The parser sees what it should: plain, nested and type-checking imports."""
    seen = {(room_of(path), other) for path in FILES for other, _ in imported_rooms(path)}
    assert {("model", "moe"), ("training", "data"), ("moe", "layers")} <= seen


def loaded_by(code: str) -> str:
    """What a fresh Python that runs this has loaded of the libraries that take a second or more."""
    code += "; import sys; print(sorted({'jax', 'flax', 'orbax'} & set(sys.modules)), file=sys.stderr)"
    # A command asks JAX about settings of JAX and XLA, where there are any; those of this suite are not wanted here.
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent, env=plain).stderr.strip()


def test_sizes_and_formulas_load_no_jax():
    """So that `minimoe --help` answers at once, and what needs only a config does not wait for arrays."""
    names = ("minimoe", "minimoe.attention", "minimoe.layers", "minimoe.config", "minimoe.cost")
    commands = (
        ["--help"],
        ["cost", "--model", "nano"],
        ["cost", "--model", "v4-nano", "--against", "deepseek-v4-pro", "--hardware", "H100", "--json"],
        ["exercises", "list"],
    )
    steps = [f"import {name}; dir({name})" for name in names]
    steps += [
        "from minimoe.cli.app import run",
        f"codes = [run(c) for c in {commands!r}]; assert codes == [0] * 4, codes",
    ]
    assert loaded_by("; ".join(steps)) == "[]"


def test_the_look_for_loaded_libraries_sees_them():
    assert loaded_by("import minimoe.layers; minimoe.layers.RMSNorm") == "['flax', 'jax']"


@pytest.mark.parametrize("name", ["minimoe", *(dotted(p) for p in FILES if p.name != "__main__.py")])
def test_public_names_exist(name):
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [])
    assert [n for n in public if not hasattr(module, n)] == []
    assert len(set(public)) == len(public)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = minimoe.nothing
    assert {"MoEConfig", "moe", "training"} <= set(dir(minimoe))


@pytest.mark.parametrize("room", ["attention", "layers", "cost"])
def test_a_lazy_room_says_all_its_names(room):
    package = importlib.import_module(f"minimoe.{room}")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing
    assert set(package.__all__) <= set(dir(package))
    homes = " ".join(getattr(package, "_HOMES", {}).values()).split()
    assert sorted(homes) == sorted(package.__all__) or room == "cost"
    files = {path.stem for path in Path(package.__file__).parent.glob("*.py")}
    assert not files & set(homes), "a file would take the place of a name that is loaded on first use"
