"""`minimoe quantize`: the folder it leaves, the numbers it prints, what it refuses; and eval and generate on its folder."""

from __future__ import annotations

import json
import shutil

import pytest
from flax import nnx

from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, MoETransformer
from minimoe.cli import app
from minimoe.data import load_tokenizer
from minimoe.hub import load, save
from minimoe.quant.models import quantize_model, size_report
from minimoe.training import Recipe, RunConfig, make_optimizer
from minimoe.training.checkpoint import CheckpointFolder
from minimoe.training.run_folder import write_run_config

TINY = ModelConfig(
    vocab_size=2048, d_model=16, num_layers=1,
    attention=GroupedQueryConfig(num_heads=2, num_kv_heads=1, head_dim=8),
    context_length=32,
    moe=MoEConfig(16, 8, 4, 2, num_shared_experts=1, score="sigmoid"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.setattr("minimoe.data.documents", few_documents)
    monkeypatch.chdir(tmp_path)


def few_documents(domain=None, split=None):
    from minimoe.data.corpus import documents

    return [documents(name, "val")[0] for name in ("austen", "math")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training folder as `minimoe train` leaves it, but for the training."""
    folder = tmp_path_factory.mktemp("quantize") / "run"
    folder.mkdir()
    recipe = Recipe(steps=4)
    tokenizer = load_tokenizer("bpe2048")
    write_run_config(folder, RunConfig(TINY, recipe, {"name": "none", "sha256": "0"}, tokenizer.name), tokenizer)
    model = MoETransformer(TINY, rngs=nnx.Rngs(0))
    checkpoints = CheckpointFolder(folder)
    checkpoints.save(4, model, nnx.Optimizer(model, make_optimizer(recipe), wrt=nnx.Param))
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A saved folder of a dense float model."""
    model = MoETransformer(TINY.dense_equivalent(), rngs=nnx.Rngs(0))
    return save(model, tmp_path_factory.mktemp("dense") / "dense", load_tokenizer("bpe2048"))


def run_json(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert app.run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_quantize_saves_measures_and_reports(run, capsys, tmp_path):
    report = run_json(capsys, "quantize", str(run), "--recipe", "int8", "--out", "small")
    names = {"config.json", "tokenizer.json", "model.safetensors", "sizes.png"}
    assert {path.name for path in (tmp_path / "small").iterdir()} == names
    model, _, config = load("small")
    sizes = report["bytes"]
    assert config == TINY
    assert sizes["quantized"] == size_report(model).bytes
    assert sizes["tensor_file"] == (tmp_path / "small" / "model.safetensors").stat().st_size
    assert sizes["float32"] == 2 * sizes["bfloat16"] > 3 * sizes["quantized"]
    assert report["share_of_bfloat16"] == pytest.approx(sizes["quantized"] / sizes["bfloat16"], abs=1e-4)
    quality = report["bits_per_byte"]
    assert set(quality["after"]["per_domain"]) == set(quality["relative_change"]) == {"austen", "math"}
    assert quality["relative_change_of_mean"] == pytest.approx(0, abs=0.01)
    assert quality["before"] != quality["after"]
    assert 0 <= report["routing_changes"] < 0.2
    provenance = json.loads((tmp_path / "small" / "config.json").read_text())["provenance"]
    assert (provenance["source"]["step"], provenance["source"]["recipe"]["seed"]) == (4, 0)

    values = run_json(capsys, "eval", "small")
    assert values["per_domain"] == quality["after"]["per_domain"]
    arguments = ("generate", "small", "--prompt", "The", "--max-new-tokens", "4", "--temperature", "0")
    assert run_json(capsys, *arguments)["new_tokens"] == [4]


def test_tables_and_a_dense_model(dense, capsys):
    assert app.run(["quantize", str(dense), "--recipe", "int8", "--out", "small"]) == 0
    said = capsys.readouterr().out
    for part in ("share of bfloat16", "austen", "mean over domains", "Saved in small"):
        assert part in said
    assert "Expert choices" not in said
    assert app.run(["quantize", str(dense), "--recipe", "mxfp4", "--out", "small", "--no-eval"]) == 0  # its own save
    said = capsys.readouterr().out
    assert "austen" not in said
    assert load("small")[0].layers[0].ffn.down_proj.weight.spec.format == "fp4_e2m1"


def test_ship_leaves_weights_and_a_card_of_what_they_score(run, tmp_path):
    shutil.copytree(run, tmp_path / "trained")
    line = {"kind": "eval", "step": 4, "bits_per_byte": 9.875}
    (tmp_path / "trained" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert app.run(["experiments", "ship", "tiny", "--checkpoint", "trained", "--into", "shipped"]) == 0
    folder = tmp_path / "shipped" / "tiny"
    model, tokenizer, config = load(folder)
    assert (config, tokenizer.name) == (TINY, "bpe2048")
    assert model.layers[0].ffn.experts.down.spec.format == "int8"
    scores = json.loads((folder / "config.json").read_text())["provenance"]["bits_per_byte"]
    card = (folder / "MODEL_CARD.md").read_text()
    assert f"| mean | {scores['quick']:.4f} | {scores['full']:.4f} |" in card
    assert "| 4 | 9.875 |" in card
    assert app.run(["experiments", "ship", "tiny", "--checkpoint", "nosuch", "--into", "shipped"]) == 2


BAD = {
    "unknown recipe": (["quantize", "run", "--recipe", "int3", "--out", "new"], "choose one of int8, int8-w8a8"),
    "unknown protocol": (["quantize", "run", "--recipe", "int8", "--out", "new", "--protocol", "half"], "half"),
    "no recipe": (["quantize", "run", "--out", "new"], "--recipe"),
    "no checkpoint": (["quantize", "nosuch", "--recipe", "int8", "--out", "new"], "nosuch"),
    "foreign checkpoint": (["quantize", "foreign", "--recipe", "int8", "--out", "new"], "foreign"),
    "foreign out": (["quantize", "run", "--recipe", "int8", "--out", "foreign"], "foreign"),
    "out is a training folder": (["quantize", "copy", "--recipe", "int8", "--out", "run"], "run"),
    "out is a file": (["quantize", "run", "--recipe", "int8", "--out", "file.txt"], "file.txt"),
    "out is the checkpoint": (["quantize", "float", "--recipe", "int8", "--out", "float"], "the checkpoint itself"),
    "quantized already": (["quantize", "twice", "--recipe", "int8", "--out", "new"], "quantized already"),
    "no tokenizer": (["quantize", "mute", "--recipe", "int8", "--out", "new"], "add --no-eval"),
    "eval without tokenizer": (["eval", "mute"], "holds no tokenizer"),
    "damaged": (["eval", "damaged"], "model.safetensors is cut short"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_exit_code_two_and_nothing_left(name, run, dense, folders, tmp_path, capsys):
    arguments, value = BAD[name]
    shutil.copytree(folders, tmp_path, dirs_exist_ok=True)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    capsys.readouterr()
    assert app.run(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert lines[-1].startswith("minimoe: ")
    assert value in lines[-1]
    assert len(lines) == (2 if name == "quantized already" else 1)  # that takes loading, which is announced
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def folders(run, dense, tmp_path_factory):
    """Every kind of folder a command may meet."""
    place = tmp_path_factory.mktemp("folders")
    for name in ("run", "copy"):
        shutil.copytree(run, place / name)
    for name in ("float", "damaged"):
        shutil.copytree(dense, place / name)
    content = (place / "damaged" / "model.safetensors").read_bytes()
    (place / "damaged" / "model.safetensors").write_bytes(content[: len(content) // 2])
    model = load(dense)[0]
    save(model, place / "mute")
    save(quantize_model(model, "int8"), place / "twice", load_tokenizer("bpe2048"))
    (place / "foreign").mkdir()
    (place / "foreign" / "thesis.doc").write_text("years of work")
    (place / "file.txt").write_text("")
    return place


def test_help_has_an_example(capsys):
    assert app.run(["quantize", "--help"]) == 0
    assert "Example: minimoe quantize" in " ".join(capsys.readouterr().out.split())
