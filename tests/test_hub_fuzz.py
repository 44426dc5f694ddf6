"""Damaged folders in the layout of Transformers: mutated configs, indexes and headers are refused in one line or load.

python tests/test_hub_fuzz.py 2000      as many mutations, from a random seed, which is printed
"""

from __future__ import annotations

import collections
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from minimoe import UserError, hub

FIXTURES = Path(__file__).parent / "fixtures" / "transformers"
FAMILIES = ("mixtral", "glm4_moe", "deepseek_v3")
CODED = (
    "mixtral-fp8",
    "deepseek_v3-fp8",
    "deepseek_v4-fp8",
)  # exported with codes, without the checksums of their files
STRANGE = [
    None,
    -1,
    0,
    1,
    2**31,
    2**63,
    1e308,
    "x",
    "",
    [],
    {},
    True,
    [1, 2],
    3.5,
    "../x",
    10**400,
    float("nan"),
    float("inf"),
]
LONGEST = 10.0  # seconds for one folder of kilobytes


def mutated_values(text: str, rng: random.Random) -> str:
    """JSON with one value deleted, multiplied, or replaced by a strange one."""
    values = node = json.loads(text)
    while isinstance(node, (dict, list)) and node:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        old: Any = node[key]
        if isinstance(old, (dict, list)) and old and rng.random() < 0.6:
            node = old
            continue
        dice = rng.random()
        if dice < 0.15 and isinstance(node, dict):
            del node[key]
        elif dice < 0.3 and type(old) is int:
            node[key] = old * rng.choice([2, 3, 1000, -1]) + rng.choice([0, 1])
        else:
            node[key] = rng.choice(STRANGE)
        break
    return json.dumps(values)


def mutated_bytes(raw: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, mostly near the beginning, and sometimes the end cut off."""
    content = bytearray(raw)
    for _ in range(rng.choice([1, 1, 3, 20])):
        content[rng.randrange(min(len(content), 400) if rng.random() < 0.7 else len(content))] = rng.randrange(256)
    return bytes(content[: rng.randrange(len(content))] if rng.random() < 0.2 else content)


def damage(folder: Path, rng: random.Random) -> Path:
    """Mutates one file of the folder."""
    path = rng.choice(sorted(path for path in folder.iterdir() if path.name != "generation_config.json"))
    raw = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.8:
        path.write_text(mutated_values(raw.decode(), rng))
    elif path.suffix == ".safetensors" and rng.random() < 0.6:
        length = int.from_bytes(raw[:8], "little")
        header = mutated_values(raw[8 : 8 + length].decode(), rng).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    else:
        path.write_bytes(mutated_bytes(raw, rng))
    return path


def whole(work: Path, family: str) -> Path:
    """The folder that is damaged."""
    plain, _, dtype = family.partition("-")
    source = FIXTURES / plain if plain in FAMILIES else FIXTURES.parent / plain
    if not dtype or (work / family).exists():
        return work / family if dtype else source
    hub.to_transformers(hub.from_transformers(source), work / family, dtype=dtype)
    config = work / family / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "files"}))
    return work / family


def outcome(work: Path, family: str, rng: random.Random) -> str:
    """``loaded`` or ``refused``; anything else is an error of ours."""
    folder = work / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole(work, family), folder, ignore=shutil.ignore_patterns("expected*", "README.md", "*.txt"))
    path = damage(folder, rng)
    before, began = sorted(folder.rglob("*")), time.monotonic()
    try:
        hub.load(folder)
        said = "loaded"
    except UserError as error:
        said = "refused" if "\n" not in str(error) else f"refused in several lines: {error}"
    assert time.monotonic() - began < LONGEST, path.name
    assert sorted(folder.rglob("*")) == before
    return said


@pytest.mark.parametrize("family", FAMILIES + CODED)
def test_a_damaged_folder_is_refused_in_one_line_or_loads(family, tmp_path):
    rng = random.Random(family)
    found = collections.Counter(outcome(tmp_path, family, rng) for _ in range(25))
    assert set(found) <= {"loaded", "refused"}
    assert found["refused"] > 10


def main(count: int) -> None:
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as work:
        found = collections.Counter(outcome(Path(work), rng.choice(FAMILIES + CODED), rng) for _ in range(count))
    print(f"seed {seed}: {dict(found)}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
