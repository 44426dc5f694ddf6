"""The benchmarks run, print one JSON object and measure the same function on both sides. No test asserts a time."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from typer.testing import CliRunner

HAS_REFERENCE = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
QUICK = ["--rounds", "2", "--warmup", "0", "--pause", "0"]


@pytest.fixture
def bench(monkeypatch, tiny_config):
    """Runs a benchmark; the preset ``tiny`` exists, and the compilation cache stays off."""
    from minimoe.cli import bench, bench_device
    from minimoe.config import PRESETS

    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    for commands in (bench, bench_device):
        monkeypatch.setattr(commands, "start", lambda: None)
    return lambda *arguments: CliRunner().invoke(bench.app, [*arguments, *QUICK], catch_exceptions=False)


def only_json(result) -> dict:
    assert result.exit_code == 0
    return json.loads(result.stdout)


def check_envelope(report: dict, benchmark: str) -> None:
    assert set(report) == {"benchmark", "environment", "settings", "reports"}
    assert report["benchmark"] == benchmark
    assert {"jax", "torch", "transformers", "cpu_count"} <= set(report["environment"])
    assert 1e5 < report["environment"]["python_additions_per_second"] < 1e10
    assert report["settings"]["rounds"] == 2


@pytest.mark.live(everywhere=True)
def test_moe(bench):
    """Both memory situations; the same loads in each, which are those that were asked for."""
    loads = ["--load", "0", "--load", "0.5", "--load", "all"]
    whole = only_json(
        bench("moe", "--shape", "24,8,12,4,2", "--dispatch", "dropless", "--dispatch", "loop", *loads, "--json")
    )
    check_envelope(whole, "moe")
    assert [report["situation"] for report in whole["reports"]] == ["memory kept", "memory returned"]
    for report in whole["reports"]:
        assert report["shape"] == {"T": 24, "D": 8, "F": 12, "E": 4, "K": 2}
        assert report["max_violation"] == {"0": 0.0, "0.5": 0.5, "all": 1.0}  # E/K - 1: two of four experts take all
        names = {f"{name}, load {load}" for name in ("dropless", "loop") for load in report["max_violation"]}
        names |= {"dense_ffn", "matmuls"} | ({"grouped_mm"} if HAS_REFERENCE else set())
        assert set(report["results"]) == names
        expected = "measured at load 0.5" if HAS_REFERENCE else "pip install 'minimoe[interop]'"
        assert expected in report["reference"]
        check_moe_results(report)


def check_moe_results(report: dict) -> None:
    for values in report["results"].values():
        ratios = {"time_over_dense_ffn", "time_over_matmuls", "time_over_grouped_mm"}
        assert set(values) == {"ms", "useful_gflops"} | ratios
        assert values["ms"]["min"] <= values["ms"]["p25"] <= values["ms"]["median"] <= values["ms"]["p75"]
        assert (values["time_over_grouped_mm"] is not None) == HAS_REFERENCE
    assert report["results"]["dense_ffn"]["time_over_dense_ffn"]["median"] == 1.0
    assert report["results"]["matmuls"]["time_over_matmuls"]["median"] == 1.0
    for values in report["differences"]["max_abs_difference"].values():
        expected = {"output", "grad x", "grad router.kernel", "grad experts.gate_up_proj", "grad experts.down_proj"}
        assert set(values) == expected
        assert max(values.values()) < 1e-4


@pytest.mark.parametrize(
    "shape", [(64, 8, 8, 4, 2), (60, 6, 8, 5, 1), (7, 4, 4, 3, 3), (5, 4, 4, 1, 1), (3, 8, 8, 8, 2)]
)
@pytest.mark.parametrize("load", ["0", "0.25", "1", "all"])
def test_tokens_choose_their_experts_in_the_numbers_asked_for(shape, load):
    from minimoe.bench.moe import tokens_of_load

    t, _, _, e, k = shape
    x = tokens_of_load(dict(zip("TDFEK", shape, strict=True)), load)
    chosen = x[:, :e] >= 3
    assert (chosen.sum(axis=1) == k).all(), "K different experts a token"
    count, mean = chosen.sum(axis=0), t * k / e
    if load == "all":
        assert sorted(count, reverse=True)[:k] == [t] * k
    elif t > 10 and e > 1:
        assert abs(count.max() - min(t, (1 + float(load)) * mean)) <= 1


@pytest.mark.parametrize("config", ["tiny", "dense"])
def test_train(bench, monkeypatch, tiny_config, config):
    from minimoe.config import PRESETS

    monkeypatch.setitem(PRESETS, "dense", tiny_config.dense_equivalent())
    whole = only_json(bench("train", "--config", config, "--batch", "2", "--length", "8", "--json"))
    check_envelope(whole, "train")
    (report,) = whole["reports"]
    assert report["reference"].startswith("not compared")  # the tiny model has a shared expert
    assert report["results"]["minimoe"]["tokens_per_second"] > 0
    assert report["results"]["minimoe"]["speed_over_transformers"] is None
    assert report["parameters"]["active"] <= report["parameters"]["total"]
    assert len(report["max_violation"]["last_step"]) == (2 if config == "tiny" else 0)
    assert all(np.isfinite(report["first_losses"]["minimoe"]))


def test_decode(bench):
    whole = only_json(
        bench("decode", "--config", "tiny", "--batch", "2", "--prompt", "3", "--new-tokens", "5", "--json")
    )
    check_envelope(whole, "decode")
    (report,) = whole["reports"]
    assert report["shape"] == {"B": 2, "prompt": 3, "new_tokens": 5}
    assert report["tokens_identical"] is None
    assert report["results"]["minimoe"]["tokens_per_second"] > 0


def test_texts_that_part_have_tokens_before_it():
    from minimoe.bench.decode import _before_parting

    same = np.array([[True, True, False, True], [True, True, True, False]])
    assert _before_parting(same) == 2
    assert _before_parting(np.ones((2, 4), bool)) == 4
    assert _before_parting(~same) == 0


def test_attention(bench):
    whole = only_json(bench("attention", "--shape", "2,70,4,2,6", "--json"))
    check_envelope(whole, "attention")
    (report,) = whole["reports"]
    assert set(report["results"]) == {"causal_attention", "dot_product_attention"}
    assert max(report["max_abs_difference"].values()) < 1e-4


def test_context(bench, monkeypatch):
    """The bytes are those of the arrays, and a call leaves the cache as it found it."""
    from minimoe.bench import context

    monkeypatch.setattr(context, "STEPS", 3)
    monkeypatch.setattr(context, "KINDS", {name: context.KINDS[name] for name in ("grouped-query", "CSA")})
    whole = only_json(bench("context", "--context", "16", "--context", "40", "--json"))
    check_envelope(whole, "context")
    (report,) = whole["reports"]
    assert report["contexts"] == [16, 40]
    assert set(report["results"]) == {"grouped-query", "CSA"}
    values = report["results"]["grouped-query"]
    assert values["bytes_at_40"] == 2 * 2 * 64 * 4 * 40
    assert values["us_at_16"]["min"] > 0 < values["growth"]["median"]


def test_dispatch(bench, tmp_path):
    """The same weights every way; what is beside the numbers says which device gave them."""
    file = tmp_path / "dispatch.json"
    ways = ["--dispatch", "dropless", "--dispatch", "capacity", "--dtype", "float32"]
    whole = only_json(
        bench(
            "dispatch",
            "--shape",
            "24,8,12,4,2",
            "--config",
            "tiny",
            "--batch",
            "2",
            *ways,
            "--out",
            str(file),
            "--json",
        )
    )
    check_envelope(whole, "dispatch")
    assert json.loads(file.read_text()) == whole
    assert whole["environment"]["device"] == "cpu"
    layer, model = whole["reports"]
    assert set(layer["results"]) == {"dropless float32", "capacity float32"}
    assert all(values["time_over_default"]["median"] > 0 for values in layer["results"].values())
    names = {"train, dropless float32", "train, capacity float32", "decode 2, dropless float32"}
    assert set(model["results"]) == names  # with a capacity nothing is decoded
    assert all(values["tokens_per_second"] > 0 for values in model["results"].values())
    default = model["results"]["decode 2, dropless float32"]
    assert default["time_over_default"]["median"] == 1
    speed = 1000 * 2 / default["ms"]["median"]  # milliseconds are of one token of both sequences
    assert default["tokens_per_second"] == pytest.approx(speed, rel=0.02)


def test_dispatch_finds_what_is_wrong(monkeypatch):
    """The differences are no decoration: experts that answer for others show in all four."""
    from minimoe.bench import dispatch
    from minimoe.moe.dispatch import DISPATCHERS

    def shifted(x, experts, *rest, **more):
        return DISPATCHERS["dense"](x, (experts + 1) % 4, *rest, **more)

    monkeypatch.setitem(DISPATCHERS, "ragged", shifted)
    shape = {"T": 24, "D": 8, "F": 12, "E": 4, "K": 2}
    dtypes = ["float32", "bfloat16"]
    right = dispatch.measure_layer(shape, ["dropless", "dense", "capacity"], dtypes, rounds=1, warmup=0)["results"]
    for name, values in right.items():
        assert max(values["difference"].values()) < (1e-5 if name.endswith("float32") else 0.05)
    found = dispatch.measure_layer(shape, ["ragged"], ["float32"], rounds=1, warmup=0)["results"]["ragged float32"]
    assert min(found["difference"].values()) > 0.1
    assert found["time_over_default"] is None  # the default took no part


def test_device_of_a_model_that_does_not_ship(capsys):
    from minimoe.cli import app

    assert app.run(["bench", "device", "--model", "giant"]) == 2
    assert "--model 'giant' does not ship; choose from" in " ".join(capsys.readouterr().err.split())


def test_device(monkeypatch, tiny_config):
    """On the CPU itself nothing differs, and the programs run from their files."""
    from minimoe.bench import device
    from minimoe.data import ByteTokenizer
    from minimoe.training.loop import init_model

    model = init_model(tiny_config.replace(vocab_size=ByteTokenizer().vocab_size), 0)
    monkeypatch.setattr(device, "resolve_with_tokenizer", lambda name: (model, ByteTokenizer(), model.config, name))
    for name, size in {"ROWS": 2, "LENGTH": 20, "PROMPT": 8, "NEW_TOKENS": 6, "STEPS": 2}.items():
        monkeypatch.setattr(device, name, size)
    seen: list[list[str]] = []
    report = device.measure(["tiny"], "tiny", progress=lambda report: seen.append(list(report["results"])))
    assert seen == [["tiny"]]
    assert report["platform"] == "cpu"
    tiny = report["results"]["tiny"]
    assert tiny["load_seconds"] >= 0
    assert (tiny["difference"], tiny["difference_unasked"]) == (0, 0)
    assert (tiny["likeliest_equal"], tiny["greedy_equal"]) == (1, 1)
    programs = report["programs"]
    assert (programs["forward_difference"], programs["greedy_equal"]) == (0, 1)
    assert programs["losses"] == programs["losses_on_cpu"]
    assert programs["losses"][-1] < programs["losses"][0]


@pytest.mark.live(everywhere=True)
def test_tables(bench):
    """Without --json a table, and the reason if Transformers was left out."""
    result = bench("moe", "--shape", "8,4,12,3,1", "--load", "0", "--memory", "kept")
    assert result.exit_code == 0
    assert "dense_ffn" in result.stdout
    assert HAS_REFERENCE or "pip install 'minimoe[interop]'" in " ".join(result.stdout.split())
    assert "T=8" in result.stderr  # progress is not for pipes


@pytest.mark.parametrize("command", ["moe", "train", "decode", "context", "attention", "dispatch", "device"])
def test_help_has_an_example(command):
    from minimoe.cli.bench import app

    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: minimoe bench {command}" in result.stdout


@pytest.mark.parametrize(
    "text", ["", "1,2", "1,2,3,4,5,6", "a,2,3,4,5", "0,2,3,4,5", "-1,2,3,4,5", "1.5,2,3,4,5", "²,2,3,4,5"]
)
def test_bad_shapes_are_refused_in_one_line(text):
    from minimoe.bench.sizes import MOE_AXES, parse_shape
    from minimoe.errors import UserError

    with pytest.raises(UserError, match=r"^--shape .* must be 5 whole numbers of at least 1: T,D,F,E,K$"):
        parse_shape(text, MOE_AXES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["moe", "--shape", "8,4,6,2,3"], "top_k=3 must be in 1..num_experts=2"),
        (["moe", "--dispatch", "magic"], "dispatch='magic' is not known"),
        (["moe", "--shape", "8,4,6,5,2"], "E=5 must be at most D=4"),
        (["moe", "--load", "2"], "--load '2' must be a MaxVio from 0 to 1, or all"),
        (["moe", "--memory", "none"], "--memory 'none' must be kept, returned or both"),
        (["dispatch", "--shape", "8,4,6,2,3"], "top_k=3 must be in 1..num_experts=2"),
        (["dispatch", "--dispatch", "magic"], "dispatch='magic' is not known"),
        (["dispatch", "--dtype", "float8"], "--dtype 'float8' must be float32 or bfloat16"),
        (["dispatch", "--config", "giant"], "--config 'giant' is not known"),
        (["attention", "--shape", "1,8,3,2,4"], "N=3 query heads must be a multiple of M=2"),
        (["train", "--config", "giant"], "--config 'giant' is not known"),
        (["train", "--config", "tiny", "--length", "25"], "above context_length=24"),
        (["decode", "--config", "tiny", "--prompt", "20", "--new-tokens", "5"], "above context_length=24"),
    ],
)
def test_impossible_settings_are_refused(bench, arguments, message):
    from minimoe.errors import UserError

    with pytest.raises(UserError) as caught:
        bench(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ratios_are_taken_round_by_round():
    """A machine that slows down threefold in the middle changes both clocks and neither ratio."""
    from minimoe.bench import Timing, ratio

    ours, theirs = Timing((1.0, 1.0, 3.0, 3.0)), Timing((2.0, 2.0, 6.0, 6.0))
    assert ratio(ours, theirs) == {"median": 0.5, "p25": 0.5, "p75": 0.5}
    assert ratio(Timing((2.0,)), Timing((1.0,))) == {"median": 2.0, "p25": 2.0, "p75": 2.0}


def test_contestants_take_turns():
    from minimoe.bench import alternate

    calls: list[str] = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
    assert "".join(calls) == "ab" * 4
    assert {name: len(timing.seconds) for name, timing in times.items()} == {"a": 3, "b": 3}


def test_the_benchmark_model_has_21_million_parameters():
    from minimoe.bench.mixtral import not_mixtral
    from minimoe.bench.models import MIXTRAL_21M
    from minimoe.cost import count_params

    assert count_params(MIXTRAL_21M).total == 21_130_496
    assert not_mixtral(MIXTRAL_21M) is None


def test_the_v4_shape_of_the_benchmark():
    """The sizes, and that Transformers has every one of them."""
    from minimoe.bench.deepseek_v4 import not_v4
    from minimoe.bench.models import V4_22M
    from minimoe.cost import count_params

    ratios = [getattr(layer.attention, "ratio", 0) for layer in V4_22M.layers]
    assert ratios == [0, 0, 4, 16, 4, 16]
    assert [layer.moe.select for layer in V4_22M.layers] == ["hash"] + 5 * ["topk"]
    assert count_params(V4_22M).total == 22_813_241
    assert not_v4(V4_22M) is None


def test_what_deepseek_v4_of_transformers_cannot_express_is_said(tiny_config):
    from minimoe import ModelConfig
    from minimoe.bench.deepseek_v4 import not_v4
    from minimoe.bench.models import V4_22M
    from minimoe.config import LayerConfig, MTPConfig
    from minimoe.layers import ADD

    assert "hyper-connections" in (not_v4(tiny_config) or "")
    assert "hyper-connections" in (not_v4(V4_22M.replace(residual=ADD)) or "")
    assert "multi-token" in (not_v4(V4_22M.replace(mtp=MTPConfig())) or "")
    assert "indexer" in (not_v4(ModelConfig.preset("v4-nano").replace(mtp=None)) or "")
    assert "dropout" in (not_v4(V4_22M.replace(dropout=0.1)) or "")
    assert "multiples of 4" in (not_v4(V4_22M.replace_moe(d_expert=6)) or "")
    assert "n_shared_experts" in (not_v4(V4_22M.replace_moe(num_shared_experts=2)) or "")
    wider = dataclasses.replace(V4_22M.attention, window=7)
    assert "one size" in (not_v4(V4_22M.replace(first_layers=(LayerConfig(wider), *V4_22M.first_layers))) or "")


def test_what_mixtral_cannot_express_is_said(tiny_config):
    from minimoe.bench.mixtral import not_mixtral
    from minimoe.bench.models import MIXTRAL_21M

    assert "dense" in (not_mixtral(MIXTRAL_21M.dense_equivalent()) or "")
    assert "shared" in (not_mixtral(tiny_config) or "")
    assert "multiples of 4" in (not_mixtral(MIXTRAL_21M.replace_moe(d_expert=6)) or "")
    assert "dropout" in (not_mixtral(MIXTRAL_21M.replace(dropout=0.1)) or "")


@pytest.fixture(scope="module")
def odd_config():
    """No two sizes alike, so that a swapped axis cannot go unseen: D=12, N*H=30, M*H=10, 2F=40, E=5, K=3, V=37."""
    from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig

    moe = MoEConfig(d_model=12, d_expert=20, num_experts=5, top_k=3)
    return ModelConfig(
        vocab_size=37,
        d_model=12,
        num_layers=3,
        attention=GroupedQueryConfig(num_heads=3, num_kv_heads=1, head_dim=10, rope_theta=500.0),
        moe=moe,
        context_length=40,
        tie_embeddings=False,
    )


@pytest.mark.live
@pytest.mark.parametrize("tied", [False, True])
def test_mixtral_computes_the_same_logits(odd_config, tied):
    import jax
    import jax.numpy as jnp
    import torch
    from flax import nnx

    from minimoe import MoETransformer
    from minimoe.bench.mixtral import mixtral_model

    model = MoETransformer(odd_config.replace(tie_embeddings=tied), rngs=nnx.Rngs(5))
    key = jax.random.key(1)  # every parameter moved off its initial value, norm scales too, and large enough to matter
    nnx.update(
        model,
        jax.tree.map(lambda p: 2 * p + 0.1 * jax.random.normal(key, p.shape), nnx.state(model, nnx.Param)),
    )
    tokens = np.random.default_rng(0).integers(0, 37, (2, 33))
    ours, _ = model(jnp.asarray(tokens, jnp.int32))
    with torch.no_grad():
        theirs = mixtral_model(model).eval()(input_ids=torch.from_numpy(tokens)).logits.numpy()
    assert float(jnp.abs(ours).max()) > 0.5
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4)


@pytest.mark.live
def test_training_and_decoding_agree_with_mixtral(odd_config, bench, monkeypatch):
    from minimoe.config import PRESETS

    monkeypatch.setitem(PRESETS, "odd", odd_config)
    trained = only_json(
        bench("train", "--config", "odd", "--batch", "2", "--length", "16", "--learning-rate", "0.01", "--json")
    )
    losses = trained["reports"][0]["first_losses"]
    np.testing.assert_allclose(losses["minimoe"], losses["transformers"], atol=1e-3)  # the steps are the same too
    decoded = only_json(bench("decode", "--config", "odd", "--prompt", "5", "--new-tokens", "30", "--json"))
    assert decoded["reports"][0]["tokens_identical"] is True


@pytest.fixture
def odd_v4():
    """Both kinds with entries, sizes that differ. Eight heads: an indexer of few has scores of 0, which tie."""
    from minimoe.bench.models import V4_22M
    from minimoe.config import LayerConfig

    sizes = {"num_heads": 6, "head_dim": 12, "rope_dim": 4, "q_rank": 9, "window": 5, "out_groups": 3, "out_rank": 7}
    sparse, heavy = (layer.attention for layer in V4_22M.pattern)
    sparse = dataclasses.replace(sparse, **sizes, ratio=3, index_heads=8, index_dim=10, index_top_k=2)
    heavy = dataclasses.replace(heavy, **sizes, ratio=7)
    small = {"d_model": 20, "d_expert": 12, "num_experts": 5}
    moe = dataclasses.replace(V4_22M.moe, **small)
    hashed = dataclasses.replace(moe, select="hash", hash_vocab_size=37)
    shape = {"vocab_size": 37, "d_model": 20, "num_layers": 2, "attention": heavy, "moe": moe, "context_length": 40}
    return V4_22M.replace(**shape, first_layers=(LayerConfig(sparse, hashed),), pattern=())


@pytest.mark.live
def test_training_and_decoding_agree_with_deepseek_v4(odd_v4, bench, monkeypatch):
    from minimoe.config import PRESETS

    monkeypatch.setitem(PRESETS, "odd", odd_v4)
    trained = only_json(
        bench("train", "--config", "odd", "--batch", "2", "--length", "17", "--learning-rate", "0.01", "--json")
    )
    assert trained["reports"][0]["reference"] == "measured"
    losses = trained["reports"][0]["first_losses"]
    np.testing.assert_allclose(losses["minimoe"], losses["transformers"], atol=1e-3)
    decoded = only_json(bench("decode", "--config", "odd", "--prompt", "5", "--new-tokens", "30", "--json"))
    assert decoded["reports"][0]["tokens_identical"] is True


def test_what_the_page_on_other_chips_says_of_a_gpu():
    from minimoe.experiments import read_record

    record = read_record("bench-dispatch")
    assert record["environment"]["device"] == "NVIDIA H200"
    layer = record["reports"][0]["results"]
    assert layer["dropless float32"]["ms"]["median"] > 10 * layer["ragged float32"]["ms"]["median"]
    for dtype, most in (("float32", 0.001), ("bfloat16", 0.012)):
        off = [max(values["difference"].values()) for name, values in layer.items() if name.endswith(dtype)]
        assert len(off) == 4
        assert max(off) < most
    for name in ("recall", "longer-problems"):
        assert any(run["machine"] == "NVIDIA H200" for run in read_record(name)["runs"].values())
