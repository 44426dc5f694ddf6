"""Published models: the formulas against the numbers that were published, and `minimoe cost`."""

from __future__ import annotations

import json

import pytest

from minimoe import ModelConfig, UserError
from minimoe.attention import MultiHeadLatentConfig
from minimoe.cli import app
from minimoe.cost import (
    account,
    count_params,
    flops_shares,
    forward_flops_per_token,
    gqa_bytes_per_token,
    kv_bytes_per_token,
    published_model,
    published_names,
)
from minimoe.hub import load_pretrained
from minimoe.quant import size_report

MILLION = 1_048_576
V3, V32, FLASH, PRO = (published_model(name) for name in published_names())


@pytest.mark.parametrize(
    ("model", "total", "active"), [(V3, 671, 36.62), (V32, 671.88, 37.48), (FLASH, 284.3, 13.27), (PRO, 1573.0, 48.85)]
)
def test_parameters(model, total, active):
    assert model.params_total / 1e9 == pytest.approx(total, abs=0.06)
    assert model.params_active / 1e9 == pytest.approx(active, abs=0.006)


def test_parameters_by_part_of_pro():
    billions = {part: round(number / 1e9, 2) for part, number in PRO.params.items()}
    assert billions == {
        "routed experts": 1547.40, "shared experts": 4.03, "dense feed-forward": 0, "attention": 18.29,
        "compressors and indexers": 1.17, "router": 0.17, "hyper-connections": 0.08, "embedding": 0.93, "head": 0.93,
    }  # fmt: skip


def test_bytes_per_token():
    assert [kv_bytes_per_token(m) for m in (V3, V32, FLASH, PRO)] == [70_272, 48_068, 3514.25, 5031.4375]
    assert kv_bytes_per_token(PRO) / gqa_bytes_per_token(61) == pytest.approx(0.02, abs=2e-4)
    assert kv_bytes_per_token(FLASH) / gqa_bytes_per_token(43) == pytest.approx(0.02, abs=2e-4)


def test_latent_attention_decodes_in_the_absorbed_form():
    """A position costs 2 N (2 R + P) in each layer, for our own model of these sizes as for a published one."""
    latent = MultiHeadLatentConfig(num_heads=128, kv_rank=512, q_rank=1536, nope_dim=128, rope_dim=64, v_dim=128)
    ours = ModelConfig(vocab_size=64, d_model=7168, num_layers=61, context_length=4096, attention=latent, d_ff=64)
    grown = [sum(account(m, 2049).flops.values()) - sum(account(m, 2048).flops.values()) for m in (ours, V3)]
    assert grown == [61 * 2 * 128 * (2 * 512 + 64)] * 2


def test_a_checkpoint_is_priced_in_the_bits_that_it_stores(capsys):
    """A shipped model is kept in int8 with its scales; bits that are given come first."""
    asked = ["cost", "--model", "student", "--context", "256", "--hardware", "H800", "--json"]
    assert app.run(asked) == 0
    found = json.loads(capsys.readouterr().out)
    stored = found["hardware"][0]
    total = size_report(load_pretrained("student")[0]).bytes
    assert stored["decode"]["memory_needed"] == pytest.approx(total + found["kv_bytes"], rel=1e-3)
    assert 8 < stored["assumptions"]["expert_bits"] < 9
    assert app.run([*asked, "--assume", "expert_bits=4"]) == 0
    assert json.loads(capsys.readouterr().out)["hardware"][0]["assumptions"]["expert_bits"] == 4


def test_a_context_that_a_model_does_not_take_is_said(capsys):
    assert not any("context_length" in said for said in account(ModelConfig.preset("nano"), 256).assumptions)
    assert app.run(["cost", "--model", "nano", "--context", "512"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "512 tokens are more than the model takes (context_length=256): by formula" in said
    assert app.run(["cost", "--model", "n" * 300]) == 2
    assert "is not known" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "window", "plain"), [(PRO, 9.545, 9.554), (FLASH, 13.67, 13.68)])
def test_ratios_at_a_million_tokens(model, window, plain):
    ours, theirs = account(model, MILLION), account(V32, MILLION)
    assert theirs.kv_bytes / ours.kv_bytes == pytest.approx(window, abs=0.005)
    assert theirs.kv_bytes_per_token / ours.kv_bytes_per_token == pytest.approx(plain, abs=0.005)


def test_everything_in_bfloat16():
    sizes = [account(model, MILLION, "bfloat16").kv_bytes for model in (V32, PRO)]
    assert [size / 2**30 for size in sizes] == pytest.approx([83.875, 9.625], abs=5e-4)
    assert sizes[0] / sizes[1] == pytest.approx(8.71, abs=0.005)


def test_fixed_state():
    assert [PRO.cache_bytes(MILLION)[part] for part in ("window", "tails")] == [61 * 128 * 584, 18_710_528]
    assert FLASH.cache_bytes(MILLION)["tails"] == 12_206_080
    assert PRO.cache_bytes(5)["window"] == 61 * 5 * 584


@pytest.mark.parametrize(("model", "low", "high"), [(PRO, 0.206, 0.319), (FLASH, 0.082, 0.137)])
def test_the_share_of_flops_is_a_range(model, low, high):
    shares = flops_shares(model, V32, MILLION).values()
    assert [round(min(shares), 3), round(max(shares), 3)] == [low, high]
    assert V32.flops(MILLION)["indexer"] == pytest.approx(1.048e12, rel=1e-3)


@pytest.mark.parametrize("model", [V3, V32, FLASH, PRO])
def test_every_number_has_a_source(model):
    from dataclasses import fields

    numbers = {f.name for f in fields(model)} - {"name", "attention", "sources"}
    numbers |= {f.name for kind, _ in model.attention for f in fields(kind) if getattr(kind, f.name)}
    assert numbers <= set(model.sources)
    assert all(said["source"] and said["certainty"] for said in model.sources.values())
    assert sum(layers for _, layers in model.attention) == model.num_layers


def test_our_own_models_in_the_same_account():
    config = ModelConfig.preset("nano")
    record = account(config, 10).to_record()
    count = count_params(config)
    assert (record["params_total"], record["params_active"]) == (count.total, count.active)
    assert record["kv_bytes"] == 10 * kv_bytes_per_token(config)
    mean = sum(account(config, length).flops["all"] for length in range(1, 11)) / 10
    assert mean == pytest.approx(forward_flops_per_token(config, 10))


def test_command_in_json(capsys):
    arguments = [
        "cost",
        "--model",
        "deepseek-v4-pro",
        "--against",
        "deepseek-v3.2",
        "--context",
        str(MILLION),
        "--json",
    ]
    assert app.run(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kv_ratio"] == pytest.approx(9.545, abs=5e-4)
    assert record["kv_bytes_per_token"] == 5031.4375
    assert record["params_total"] == PRO.params_total
    assert record["params_active"] == PRO.params_active
    assert record["flops_per_token"] == pytest.approx(0.3032e12, rel=1e-3)
    assert record["against"]["kv_bytes_per_token"] == 48_068


def test_command_in_words_and_on_presets(capsys):
    assert app.run(["cost", "--model", "nano", "--against", "small"]) == 0
    shown = capsys.readouterr().out
    assert f"{count_params(ModelConfig.preset('nano')).total:,}" in shown
    assert "says nothing of weights" in shown


def test_command_on_chips(capsys):
    chips = ["--hardware", "H100", "--hardware", "h800", "--batch", "64"]
    command = ["cost", "--model", "deepseek-v4-flash", "--against", "deepseek-v3", *chips]
    assert app.run([*command, "--assume", "dollars_per_hour=3", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    first, second = record["hardware"]
    assert [each["chip"]["name"] for each in record["hardware"]] == ["H100", "H800"]
    assert first["assumptions"]["dollars_per_hour"] == 3
    assert first["decode"]["seconds"] == second["decode"]["seconds"]
    assert first["decode"]["send"] < second["decode"]["send"]
    assert record["training"]["certainty"].startswith("derived")
    assert record["against"]["training"]["total"] == 2_788_000
    assert app.run(command) == 0
    shown = capsys.readouterr().out
    assert "dollars_per_hour = 2" in shown
    assert "2.788 million H800 hours" in shown
    assert "H800 against H100: link_gb_per_s at 0.44, all else kept" in " ".join(shown.split())
    assert "unverified" not in shown


def test_command_marks_unverified_numbers(capsys):
    command = ["cost", "--model", "nano", "--hardware", "ascend-910b", "--unverified"]
    assert app.run(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "(unverified)" in shown
    assert "UNVERIFIED numbers of Ascend 910B were used: memory_gb, memory_tb_per_s, bf16_tflops" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "gpt-9"], "deepseek-v4-pro, nano"),
        (["--model", "nano", "--context", "0"], "context"),
        (["--model", "nano", "--context", "-3"], "context"),
        (["--model", "nano", "--context", "2.5"], "context"),
        (["--model", "nano", "--context", "9" * 320], "a whole number in 1..9007199254740992"),
        (["--model", "nano", "--hardware", "H800", "--batch", "9" * 320], "--batch=9"),
        (["--model", "nano", "--hardware", "H800", "--assume", "chips=" + "9" * 320], "chips=9"),
        (["--model", "nano", "--cache-dtype", "int3"], "bfloat16"),
        (["--model", "nano", "--hardware", "H900"], "choose one of A100"),
        (["--model", "nano", "--hardware", "H800", "--batch", "0"], "--batch=0"),
        (["--model", "nano", "--hardware", "H800", "--batch", "many"], "--batch='many'"),
        (["--model", "nano", "--batch", "2"], "need --hardware"),
        (["--model", "nano", "--hardware", "H800", "--assume", "price=1"], "names are busy"),
        (["--model", "nano", "--hardware", "Ascend 910C"], "is unverified"),
        (["--model", "nano", "--hardware", "A100", "--assume", "compute=fp8"], "fp8_tflops is not known"),
    ],
)
def test_mistakes_are_one_line(arguments, words, capsys):
    assert app.run(["cost", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert words in said.err


def test_unknown_published_model():
    with pytest.raises(UserError, match="deepseek-v4-flash"):
        published_model("deepseek-v5")
