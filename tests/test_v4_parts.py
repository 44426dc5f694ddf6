"""The experiment on the parts of DeepSeek-V4's block: what its runs are, and that they train together."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from minimoe.config import PRESETS, LayerConfig, ModelConfig, MTPConfig
from minimoe.data import Document, training_data
from minimoe.experiments import EXPERIMENTS
from minimoe.experiments.run import Learning
from minimoe.experiments.together import train_together
from minimoe.experiments.v4_parts import MUON_RATE
from minimoe.experiments.workplace import Workplace
from minimoe.training.loop import init_model


def flat(values, path=""):
    """Every plain value of nested dictionaries by its path."""
    if not isinstance(values, dict):
        return {path: values}
    return {name: value for key, inner in values.items() for name, value in flat(inner, f"{path}/{key}").items()}


def test_every_part_is_alone_against_plain_nano(tmp_path):
    work, runs = Workplace(tmp_path), EXPERIMENTS["v4-parts"]({})
    configs = {run.name: run.config(work).to_dict() for run in runs}
    assert len(configs) == len(runs) == 34
    changed = {
        "plain": set(),
        "streams": {f"/model/residual/{n}" for n in ("kind", "streams", "sinkhorn_iters", "eps", "norm_eps")},
        "clamp": {"/model/moe/swiglu_limit"},
        "hash": {"/model/first_layers"},
        "scores": {"/model/moe/score"},
        "muon": {"/recipe/optimizer", "/recipe/learning_rate"},
        "no-sink": {"/model/attention/sink"},
    }
    for name, config in configs.items():
        part, _, seed = name.rpartition("-")
        long, part = ("long", part[5:]) if part.startswith("long-") else ("", part)
        against = "window" if part in ("window", "no-sink") else "plain"
        found, plain = flat(config), flat(configs[f"{long}-{against}-{seed}".lstrip("-")])
        differ = {path for path in found.keys() | plain.keys() if found.get(path) != plain.get(path)}
        expected = set() if part == "window" else changed.get(part)
        assert all(path.startswith("/model/mtp") for path in differ) if part == "mtp" else differ == expected, name
        assert found["/recipe/seed"] == int(seed)
    assert [layer["moe"]["select"] for layer in configs["hash-0"]["model"]["first_layers"]] == ["hash"]


@pytest.fixture
def tiny_nano(monkeypatch) -> ModelConfig:
    nano = PRESETS["nano"]
    moe = dataclasses.replace(nano.moe, d_model=16, d_expert=8, num_experts=4)
    tiny = nano.replace(d_model=16, num_layers=2, context_length=12, moe=moe).replace_attention(
        num_heads=2, num_kv_heads=1, head_dim=8
    )
    monkeypatch.setitem(PRESETS, "nano", tiny)
    return tiny


def test_two_steps_of_all_parts_at_once_train_together(tiny_nano, tmp_path):
    """One model with every part and a head for two tokens, and two seeds: steps are scanned, seeds are mapped."""
    work, runs = Workplace(tmp_path), {run.name: run for run in EXPERIMENTS["v4-parts"]({})}
    clamped, scored = runs["clamp-0"].model.moe, runs["scores-0"].model.moe
    moe = dataclasses.replace(scored, swiglu_limit=clamped.swiglu_limit)
    hashed = dataclasses.replace(moe, select="hash", hash_vocab_size=tiny_nano.vocab_size)
    everything = runs["streams-0"].model.replace(moe=moe, first_layers=(LayerConfig(moe=hashed),), mtp=MTPConfig())
    short = {"steps": 2, "batch_size": 2, "log_every": 1, "warmup_steps": 0}
    two = [dataclasses.replace(runs[f"muon-{s}"], changes={**runs[f"muon-{s}"].changes, **short}) for s in (0, 1)]
    configs = [dataclasses.replace(run, model=everything).config(work) for run in two]
    data = training_data([Document("abc", "train", "1", "abcdefgh" * 40)], work.tokenizer)
    learnings = [Learning(data), Learning(data)]
    together = train_together("tiny", configs, learnings, [], work.tokenizer)
    losses = [[line["loss"] for line in result.records] for result in together]
    assert np.isfinite(losses).all()
    assert np.isfinite([line["mtp_loss"] for result in together for line in result.records]).all()
    assert losses[0] != losses[1]
    for result, config in zip(together, configs, strict=True):
        assert (result.run.model, result.run.recipe.optimizer) == (everything, "muon")
        fresh = init_model(config.model, config.recipe.seed)
        before, after = (model.layers[0].ffn.experts.down_proj[...] for model in (fresh, result.model))
        # Two orthogonal steps: the rate is at its peak, then at its end.
        size = float(jnp.sqrt(jnp.square(after - before).mean()))
        assert 0.5 * 0.18 * MUON_RATE < size < 2 * 0.18 * MUON_RATE
