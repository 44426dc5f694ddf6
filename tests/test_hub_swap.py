"""A saved folder while it changes: killed at every step, read while it is written, written twice, on a full disk."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flax import nnx

from minimoe import GroupedQueryConfig, ModelConfig, MoETransformer, UserError, hub
from minimoe.files import UNFINISHED, only_writer
from minimoe.hub.folder import sealed
from minimoe.hub.tensorfile import TensorFile

TINY = ModelConfig(vocab_size=8, d_model=4, num_layers=1, attention=GroupedQueryConfig(1, 1, 4), moe=None, d_ff=4)


@pytest.fixture(scope="module")
def models():
    return [MoETransformer(TINY, rngs=nnx.Rngs(seed)) for seed in range(2)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def died(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("Windows has no fork")
    script = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "saves_that_die.py")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    found = subprocess.run(
        [*script, str(tmp_path_factory.mktemp("died"))], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.splitlines()[-1])


def test_a_kill_leaves_the_old_model_or_the_new_one(died):
    """Before a step it is the old one, from that step on the new one."""
    seen = died["overwriting"]
    assert [name for name, _ in itertools.groupby(seen)] == ["old", "new"]
    assert len(seen) > 10
    assert seen.count("old") > 4
    assert [name for name, _ in itertools.groupby(died["fresh"])] == ["nothing", "new"]


def test_readers_beside_writers_find_whole_models(died):
    for name in ("one writer", "two writers"):
        assert min(died[name].values()) > 0, died


def test_a_second_save_is_refused_in_one_line(models, tmp_path):
    hub.save(models[0], tmp_path / "m")
    before = contents(tmp_path / "m")
    with only_writer(tmp_path / "m"), pytest.raises(UserError, match=r"m is being written by another process; wait"):
        hub.save(models[1], tmp_path / "m")
    assert contents(tmp_path / "m") == before


def test_a_reader_whose_files_are_exchanged_reads_again(models, tmp_path, monkeypatch):
    """Somebody saves after the reader has seen config.json, once."""
    folder = hub.save(models[0], tmp_path / "m")
    checked = []
    check = TensorFile._check

    def late(self, record):
        checked.append(record.sha256)
        if len(checked) == 1:
            self._file.close()
            hub.save(models[1], folder)
            self._file = self.path.open("rb")
        return check(self, record)

    monkeypatch.setattr(TensorFile, "_check", late)
    model, _, _ = hub.load(folder)
    assert len(checked) == 2
    assert (model.embed.embedding[...] == models[1].embed.embedding[...]).all()


def test_what_is_not_renamed_yet_is_read_and_kept(models, tmp_path, monkeypatch):
    """Windows refuses to rename over a file that is being read: the new one keeps its first name, and wins."""
    folder = hub.save(models[0], tmp_path / "m")
    move = os.replace

    def refuse(source, target):
        if Path(target).name == "model.safetensors":
            raise PermissionError(errno.EACCES, "in use")
        move(source, target)

    monkeypatch.setattr("os.replace", refuse)
    for _ in range(2):  # the second finds the name taken by its own content
        hub.save(models[1], folder)
        assert (hub.load(folder)[0].embed.embedding[...] == models[1].embed.embedding[...]).all()
    with monkeypatch.context() as patch:
        patch.setattr("minimoe.hub.folder.write_tensors", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "disk")))
        with pytest.raises(UserError, match="the disk reports an error"):
            hub.save(models[0], folder)
    assert (hub.load(folder)[0].embed.embedding[...] == models[1].embed.embedding[...]).all()
    monkeypatch.setattr("os.replace", move)
    hub.save(models[1], folder)
    assert not list(folder.glob(f"{UNFINISHED}*"))


def test_files_are_on_the_disk_before_the_config_names_them(models, tmp_path, monkeypatch):
    done = []
    fsync, move = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda handle: (done.append("sync"), fsync(handle)))
    monkeypatch.setattr("os.replace", lambda a, b: (done.append(Path(b).name), move(a, b)))
    hub.save(models[0], tmp_path / "m")
    names = [name if not name.startswith(UNFINISHED) else "aside" for name in done]
    assert names == ["sync", "aside", "sync", "sync", "config.json", "sync", "model.safetensors", "sync"]


@pytest.fixture
def small_files_only():
    """Files end at a thousand bytes, as on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no file-size limits")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_size_limit_is_one_line_and_the_old_model_stays(models, tmp_path, request):
    hub.save(models[0], tmp_path / "old")
    before = contents(tmp_path)
    request.getfixturevalue("small_files_only")
    for name in ("old", "new/below"):
        with pytest.raises(UserError, match=rf"{name} cannot be written: .*larger than this process") as caught:
            hub.save(models[1], tmp_path / name)
        assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 kB, where the tests may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("this user may not mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def test_a_full_disk_and_a_read_only_one(models, disk):
    folder = hub.save(models[0], disk / "m")
    before = contents(disk)
    with pytest.raises(OSError, match="space"), (disk / "rest").open("wb", buffering=0) as rest:  # noqa: PT012
        while True:
            rest.write(bytes(4096))
    with pytest.raises(UserError, match=r"m cannot be written: the disk is full; make room"):
        hub.save(models[1], folder)
    (disk / "rest").unlink()
    assert contents(disk) == before
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(UserError, match=r"m cannot be written"):
        hub.save(models[1], folder)
    with pytest.raises(UserError, match=r"new cannot be written"):
        hub.save(models[1], disk / "new")
    assert contents(disk) == before
    assert (hub.load(folder)[0].embed.embedding[...] == models[0].embed.embedding[...]).all()


def test_a_folder_that_vanishes(models, tmp_path, monkeypatch):
    def vanish(path, _):
        path.parent.rmdir()
        path.write_bytes(b"half")

    monkeypatch.setattr("minimoe.hub.folder.write_tensors", vanish)
    with pytest.raises(UserError, match=r"m cannot be written: the folder is gone; make it again"):
        hub.save(models[0], tmp_path / "m")


def test_config_vouches_for_itself_however_it_is_spaced(models, tmp_path):
    folder = hub.save(models[0], tmp_path / "m")
    values = json.loads((folder / "config.json").read_text())
    assert values == sealed(values)
    (folder / "config.json").write_text(json.dumps(dict(reversed(values.items())), indent=4))
    hub.load(folder)
    values["model"]["context_length"] += 1
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"config.json was altered: .*copy the whole folder again, or delete its line"):
        hub.load(folder)
    for read in (hub.resolve, hub.provenance_of):
        with pytest.raises(UserError, match="was altered"):
            read(folder)
    del values["sha256"]  # as folders of earlier versions
    (folder / "config.json").write_text(json.dumps(values))
    hub.load(folder)
