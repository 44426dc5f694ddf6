"""Damaged exports, float and quantized: headers, indexes, configs and whole files are refused in one line, or load.

Each mutation must end soon, allocate little, write nothing, and leave nothing behind where a model was to be saved.

python tests/test_export_fuzz.py 2000      as many mutations, from a random seed, which is printed with the counts
"""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flax import nnx
from test_hub_fuzz import mutated_bytes, mutated_values

from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, MoETransformer, UserError, hub
from minimoe.cli import app
from minimoe.data import load_tokenizer
from minimoe.errors import LONGEST_MESSAGE
from minimoe.hub.folder import sealed
from minimoe.hub.layouts.write import DTYPES
from minimoe.hub.tensorfile import FileRecord
from minimoe.quant import quantize_model

LONGEST = 10  # seconds of computing for one folder of kilobytes
ALLOCATED = 2**31  # bytes of address space that a load may add: the folders are kilobytes
RECIPES = ("int8", "v4")
STORED = tuple(dtype for dtype in DTYPES if dtype != "fp4")  # which a family of another shape has
KINDS = (*STORED, "shards", *RECIPES)
NAMES = ["../x", "/etc/passwd", "a\nb", "\x1b[31m", "\ud800", "x" * 100_000, "", ".", "..", "a/b", "con\x00fig", "é"]


def write_exports(folder: Path) -> None:
    """One export of each kind, of a model whose widths every recipe takes."""
    moe = MoEConfig(32, 32, 4, 2, num_shared_experts=1, score="sigmoid")
    attention = GroupedQueryConfig(num_heads=2, num_kv_heads=1, head_dim=16)
    config = ModelConfig(vocab_size=257, d_model=32, num_layers=2, attention=attention, context_length=16, moe=moe)
    model, tokenizer = MoETransformer(config, rngs=nnx.Rngs(0)), load_tokenizer("byte")
    for dtype in STORED:
        hub.to_transformers(model, folder / dtype, None, dtype=dtype)
    hub.to_transformers(model, folder / "shards", None, shard_bytes=40_000)
    for recipe in RECIPES:
        hub.save(quantize_model(model, recipe), folder / recipe, tokenizer)


# ---- damage


def damage_config(folder: Path, rng: random.Random) -> str:
    path = folder / "config.json"
    text = path.read_text()
    for _ in range(rng.choice([1, 1, 1, 3])):
        text = mutated_values(text, rng)
    path.write_text(text)
    return "config"


def damage_index(folder: Path, rng: random.Random) -> str:
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return damage_config(folder, rng)
    index = json.loads(path.read_text())
    names = list(index["weight_map"])
    for name in rng.sample(names, rng.choice([1, 1, 2, len(names)])):
        index["weight_map"][name] = rng.choice([*NAMES, None, 1, [], {}, *index["weight_map"].values()])
    path.write_text(json.dumps(index) if rng.random() < 0.7 else mutated_values(json.dumps(index), rng))
    return "index"


def damage_header(folder: Path, rng: random.Random) -> str:
    """The JSON of one tensor file, with a length that is right; what is wrong stands in it."""
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    entry, other = header[rng.choice(names)], header[rng.choice(names)]
    numbers = [0, -1, 1, 2**31, 2**62, 2**63, 2**64 - 1, 2**64, 10**30, 1.5, None, "1"]
    change = rng.randrange(8)
    if change == 0:
        offsets = [*numbers, *entry["data_offsets"]]
        entry["data_offsets"] = [rng.choice(offsets) for _ in range(rng.choice([1, 2, 2, 3]))]
    elif change == 1:
        entry["shape"] = [rng.choice(numbers) for _ in range(rng.choice([0, 1, 2, 3, 1000]))]
    elif change == 2:
        entry["dtype"] = rng.choice(["F64", "F8_E8M0", "BOOL", "I8", "F32", "BF16", "U8", "I64", "F4", "", *NAMES])
    elif change == 3:
        entry["data_offsets"] = other["data_offsets"]
    elif change == 4:
        header[rng.choice(NAMES)] = header.pop(rng.choice(names))
    elif change == 5:
        header["__metadata__"] = rng.choice([None, 1, [], {"a": 1}, {"a": {}}, "x"])
    elif change == 6:
        entry["shape"] = entry["shape"][::-1] + [1] * rng.choice([0, 1, 30])
    text = mutated_values(json.dumps(header), rng) if change == 7 else json.dumps(header)
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + raw[8 + length :])
    return "header"


def damage_length(folder: Path, rng: random.Random) -> str:
    """The eight bytes before the header."""
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    raw = path.read_bytes()
    right = int.from_bytes(raw[:8], "little")
    wrong = rng.choice([0, 1, right - 1, right + 1, right * 2, len(raw), 2**31, 2**40, 2**63, 2**64 - 1])
    path.write_bytes(wrong.to_bytes(8, "little") + raw[8:])
    return "length"


def damage_text(folder: Path, rng: random.Random) -> str:
    """A JSON file that is none, or a strange one."""
    path = rng.choice(sorted(folder.glob("*.json")))
    text = path.read_bytes()
    key, _, rest = text.partition(b":")
    strange = [b"", b"null", b"[]", b"\xff\xfe" + text, b"\xef\xbb\xbf" + text, b"[" * 100_000, text + text, text[:-3]]
    strange += [b'{"model_type":"' + b"x" * 100_000 + b'"}', b"0" * 10_000, key + b":" + rest + b"\x00", b"-1e999"]
    path.write_bytes(rng.choice(strange))
    return "text"


def damage_file(folder: Path, rng: random.Random) -> str:
    """Bytes, or the whole file: gone, a folder, a link to nowhere or in a circle, or with an end that is a hole."""
    path = rng.choice(sorted(folder.iterdir()))
    change = rng.randrange(8)
    if change < 4:
        path.write_bytes(mutated_bytes(path.read_bytes(), rng))
    elif change == 4:
        with path.open("r+b") as file:
            file.truncate(rng.choice([0, 7, 8, 2**33, 2**40]))
    else:
        path.unlink()
        if change == 6:
            path.mkdir()
        elif change == 7:
            path.symlink_to(rng.choice([path, Path("/nowhere/else"), Path("/dev/zero"), folder]))
    return "file"


DAMAGES: tuple[Callable[[Path, random.Random], str], ...] = (
    damage_config,
    damage_config,
    damage_index,
    damage_header,
    damage_header,
    damage_length,
    damage_text,
    damage_file,
)


def seal_again(folder: Path) -> None:
    """Checksums of what is there now: damage by somebody who knows the layout is not found by them."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        values = json.loads((folder / "config.json").read_text())
        if "sha256" not in values:
            return
        for name, record in values["files"].items():
            stored = folder / name
            if stored.is_file() and stored.stat().st_size < 10**7 and isinstance(record, dict):
                values["files"][name] = FileRecord.of(stored).to_dict()
        (folder / "config.json").write_text(json.dumps(sealed(values)))


# ---- what happens


@contextlib.contextmanager
def bounds() -> Iterator[None]:
    """An alarm after `LONGEST` seconds, and memory for `ALLOCATED` more bytes; what goes beyond is an error of ours."""

    def late(*_: object) -> None:
        raise TimeoutError(f"a damaged folder took over {LONGEST} seconds")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    resource.setrlimit(resource.RLIMIT_AS, (now + ALLOCATED, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def tree(work: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_size) for path in work.rglob("*"))


def load(folder: Path) -> str:
    try:
        hub.load(folder)
        return "loaded"
    except UserError as error:
        said = str(error)
    assert said.isprintable(), repr(said)  # no second line, and nothing that a terminal obeys or refuses
    assert len(said) <= LONGEST_MESSAGE
    return "refused"


def import_by_command(folder: Path, out: Path) -> str:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = app.run(["import", str(folder), "--out", str(out)])
    if code == 0:
        hub.load(out)
        shutil.rmtree(out)
        return "loaded"
    assert code == 2, said.getvalue()
    assert said.getvalue().count("minimoe: ") == 1, said.getvalue()
    assert said.getvalue().splitlines()[-1].startswith("minimoe: "), said.getvalue()
    return "refused"


@functools.cache
def whole(folder: Path) -> MoETransformer:
    """The model of an undamaged folder."""
    return hub.load(folder)[0]


def save_over(folder: Path, model: MoETransformer, format: str) -> str:
    """A damaged folder is replaced by a whole one, or refused as somebody's work and left as it is."""
    before = tree(folder)
    with contextlib.suppress(UserError):
        hub.save(model, folder, format=format)
        hub.load(folder)
        return "replaced"
    assert tree(folder) == before
    return "kept"


def outcome(work: Path, kind: str, exports: Path, rng: random.Random, by_command: float) -> str:
    """What was damaged, and what came of it; anything else is an error of ours."""
    folder = work / "in" / "model"
    shutil.rmtree(work / "in", ignore_errors=True)
    shutil.copytree(exports / kind, folder)
    what = rng.choice(DAMAGES)(folder, rng)
    if rng.random() < 0.7:
        seal_again(folder)
    dice, before = rng.random(), tree(work)
    theirs = kind not in RECIPES
    with bounds():
        if dice < by_command and theirs:
            said = import_by_command(folder, work / "out")
        elif dice > 0.9:
            said = save_over(folder, whole(exports / kind), "huggingface" if theirs else "minimoe")
        else:
            said = load(folder)
    inside = f"{folder}/" if said == "replaced" else "\0"
    assert [one for one in tree(work) if not one[0].startswith(inside)] == [
        one for one in before if not one[0].startswith(inside)
    ]
    return f"{what}: {said}"


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    write_exports(folder)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the memory in use")
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_export_is_refused_in_one_line_or_loads(kind, exports, tmp_path):
    whole(exports / kind)
    rng = random.Random(kind)
    found = collections.Counter(outcome(tmp_path, kind, exports, rng, 0.1) for _ in range(12))
    assert sum(count for said, count in found.items() if said.endswith("refused")) > 4, found


def test_a_config_of_gigabytes_is_not_read(tmp_path):
    """A hole takes no room on the disk, and would take memory."""
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**33)
    with bounds(), pytest.raises(UserError, match=r"no saved model|is broken"):
        hub.load(tmp_path)


def test_a_save_over_a_folder_of_the_name_changes_nothing(exports, tmp_path):
    for kind, format in (("int8", "minimoe"), ("float32", "huggingface")):
        folder = tmp_path / kind
        shutil.copytree(exports / kind, folder)
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").mkdir()
        assert save_over(folder, whole(exports / kind), format) == "kept"


def test_a_message_is_one_line_that_can_be_printed():
    assert str(UserError("plain, déjà vu: 'x\\n'; repair")) == "plain, déjà vu: 'x\\n'; repair"
    hostile = str(UserError("a\r\nb\x1b[2J\ud800\u202e\x00; repair"))
    assert hostile == r"a  b\x1b[2J\ud800\u202e\x00; repair"
    long = str(UserError(f"{'n' * 10**6}; copy the folder again"))
    assert len(long) <= LONGEST_MESSAGE
    assert long.startswith("nnn")
    assert long.endswith("; copy the folder again")


def main(count: int) -> None:
    seed = random.randrange(10**6)
    found: collections.Counter[str] = collections.Counter()
    failed: collections.Counter[str] = collections.Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_exports(work / "exports")
        (work / "run").mkdir()
        for number in range(count):
            rng = random.Random(f"{seed}-{number}")
            kind = rng.choice(KINDS)
            try:
                found[outcome(work / "run", kind, work / "exports", rng, 0.1)] += 1
            except Exception as error:
                shutil.rmtree(work / "run" / "out", ignore_errors=True)
                failed[f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"] += 1
                if sum(failed.values()) < 20:
                    print(f"{seed}-{number} {kind}: {type(error).__name__}: {str(error)[:300]!r}", flush=True)
    print(f"seed {seed}: {count} mutations in {time.monotonic() - began:.0f} s: {dict(sorted(found.items()))}")
    print(f"failed: {sum(failed.values())} {dict(failed)}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
