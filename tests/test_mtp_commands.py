"""From a training run with a head for multi-token prediction to speculative text, a benchmark and an experiment."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from minimoe import MoETransformer
from minimoe.bench.decode import random_model
from minimoe.cli import app
from minimoe.config import ModelConfig, MTPConfig
from minimoe.data import load_tokenizer
from minimoe.experiments import EXPERIMENTS
from minimoe.experiments.mtp import drafted
from minimoe.experiments.workplace import Workplace
from minimoe.hub import save


@pytest.fixture(scope="module")
def folder(tiny_config, tmp_path_factory):
    """A saved model that reads text, with a head."""
    from flax import nnx

    tokenizer = load_tokenizer()
    config = tiny_config.replace(vocab_size=tokenizer.vocab_size, num_layers=1, context_length=90, mtp=MTPConfig())
    return save(MoETransformer(config, rngs=nnx.Rngs(0)), tmp_path_factory.mktemp("saved") / "model", tokenizer)


def test_generate_says_how_often_drafts_were_right(folder, capsys, monkeypatch):
    monkeypatch.setattr("minimoe.cli.generate.start", lambda: None)
    arguments = ["generate", str(folder), "--prompt", "The", "--max-new-tokens", "8", "--temperature", "0", "--json"]
    found = []
    for more in ([], ["--speculative"]):
        assert app.run([*arguments, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    plain, fast = found
    assert plain["texts"] == fast["texts"]
    assert set(fast) - set(plain) == {"acceptance_rate", "tokens_per_forward"}
    assert 1 <= fast["tokens_per_forward"] <= 2
    assert app.run([*arguments[:-1], "--speculative"]) == 0
    assert "of the drafts accepted, 1." in capsys.readouterr().err


def test_bench_decode_times_both(folder, monkeypatch, tiny_config):
    from minimoe.cli import bench

    monkeypatch.setattr(bench, "start", lambda: None)
    common = ["--prompt", "3", "--new-tokens", "4", "--rounds", "2", "--warmup", "0", "--pause", "0", "--json"]
    result = CliRunner().invoke(bench.app, ["decode", "--model", str(folder), *common], catch_exceptions=False)
    assert result.exit_code == 0
    (report,) = json.loads(result.stdout)["reports"]
    assert report["speculation"]["tokens_identical"] is True
    assert set(report["results"]) == {"minimoe", "minimoe speculative"}
    assert report["results"]["minimoe speculative"]["speed_over_plain"]["median"] > 0
    assert report["results"]["minimoe"]["speed_over_plain"] is None
    assert random_model(tiny_config, mtp=True)[0].mtp is not None
    assert app.run(["bench", "decode", "--model", str(folder), "--mtp"]) == 2


def test_the_experiment_changes_the_head_alone(tmp_path, folder):
    work, runs = Workplace(tmp_path), EXPERIMENTS["mtp"]({})
    assert len(runs) == 9
    configs = {run.name: run.config(work) for run in runs}
    plain = configs["plain-0"]
    for name in ("mtp", "dense"):
        config = configs[f"{name}-0"]
        assert config.model.replace(mtp=None) == plain.model
        assert config.recipe == dataclasses.replace(plain.recipe, mtp_weight=0.3)
    assert ModelConfig.preset("nano") == plain.model
    assert configs["dense-2"].model.mtp_layer.d_ff == 128


def test_the_experiment_counts_drafts(tmp_path, folder, monkeypatch):
    from minimoe.hub import load

    monkeypatch.setattr("minimoe.experiments.mtp.PROMPTS", 2)
    monkeypatch.setattr("minimoe.experiments.mtp.NEW_TOKENS", 6)
    found = drafted(Workplace(tmp_path), load(folder)[0], {})["drafts"]
    assert set(found) == {"temperature 0", "temperature 1"}
    assert all(1 <= rates["tokens_per_forward"] <= 2 for rates in found.values())


def test_a_benchmark_leaves_the_head_of_a_preset_as_it_is():
    config = ModelConfig.preset("v4-nano").replace(num_layers=2)
    assert random_model(config, mtp=True)[0].config == config
    assert random_model(config.replace(mtp=None), mtp=True)[0].config == config.replace(mtp=MTPConfig())
