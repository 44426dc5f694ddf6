"""Chips as data, the roofline of decoding, and what training costs: against published figures, simulations and laws."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from minimoe import ModelConfig, UserError
from minimoe.cost import (
    Assumptions,
    cache_read_bytes,
    chip,
    chip_names,
    communication_bound,
    decode_step,
    decode_traffic,
    dollars_per_million,
    expected_distinct_experts,
    export_cut,
    export_effect,
    published_model,
    published_names,
    reported_training,
    train_flops,
    training_hours,
    training_range,
)

MILLION = 1_048_576
V3, V32, FLASH, PRO = (published_model(name) for name in published_names())
NANO = ModelConfig.preset("nano")


def test_every_number_of_a_chip_has_a_source_and_a_certainty():
    wanted = {"A100", "A800", "H100", "H800", "H20", "B200", "Ascend 910B", "Ascend 910C", "Ascend 950PR"}
    assert wanted <= set(chip_names())
    for name in chip_names():
        for number in chip(name).numbers.values():
            assert number.value > 0
            assert number.source
            assert number.certainty in ("published", "derived", "unverified")
    assert {n.certainty for n in chip("ascend 910b").numbers.values()} == {"unverified"}
    doubtful = [("B200", "memory_gb"), ("B200", "network_gb_per_s"), ("Ascend 910C", "link_gb_per_s")]
    assert {chip(name).numbers[number].certainty for name, number in doubtful} == {"unverified"}


def test_unverified_numbers_are_refused_unless_asked_for_and_then_named():
    with pytest.raises(UserError, match=r"Ascend 910C: memory_tb_per_s=3\.2 is unverified .*--unverified"):
        decode_step(FLASH, chip("Ascend 910C"), 1, 4096)
    step = decode_step(FLASH, chip("ascend-910c", unverified=True), 1, 4096)
    assert step.unverified == ("memory_tb_per_s", "link_gb_per_s")  # on two chips
    assert decode_step(FLASH, chip("H800", unverified=True), 1, 4096).unverified == ()
    assert "(unverified)" in str(chip("ascend910b").numbers["bf16_tflops"])


@pytest.mark.parametrize(
    ("name", "ridge"), [("A100", 153), ("H100", 295), ("H20", 37), ("B200", 281), ("Ascend 910C", 235)]
)
def test_ridge_points(name, ridge):
    found = chip(name, unverified=True)
    assert found.peak("bf16") / found.memory_bandwidth == pytest.approx(ridge, abs=0.6)


@pytest.mark.parametrize(
    ("name", "kind", "has"),
    [("H100", "fp8", 4398), ("H800", "fp8", 9895), ("B200", "fp8", 5000), ("Ascend 910C", "int8", 3837)],
)
def test_flops_a_link_byte(name, kind, has):
    found = communication_bound(PRO, chip(name, unverified=True), kind)
    assert found == {"chip": pytest.approx(has, abs=1), "experts": 6144}


def test_flops_a_link_byte_follow_the_bytes_that_are_assumed():
    """One byte there and one back: half as much again for each, so a machine of H100 hides V4-Flash's sending."""
    small = Assumptions(dispatch_bytes=1, combine_bytes=1)
    assert communication_bound(FLASH, chip("H100"), "fp8", small)["experts"] == 6144
    assert [export_effect(FLASH, chip("H100"), chip("H800"), 64, 4096, how).hides for how in (None, small)] == [
        (False, False),
        (True, False),
    ]
    nothing = Assumptions(dispatch_bytes=0, combine_bytes=0)
    assert communication_bound(FLASH, chip("H800"), "fp8", nothing)["experts"] == math.inf
    assert communication_bound(NANO.replace(moe=None, d_ff=128), chip("H800"), "fp8", nothing)["experts"] == 0


def test_distinct_experts_are_those_of_a_simulation():
    """Each token takes K of E, all sets alike: exactly what the closed form counts."""
    rng = np.random.default_rng(0)
    for experts, top_k, tokens in [(16, 2, 5), (64, 6, 20), (256, 8, 64)]:
        draws = [
            len(np.unique(rng.random((tokens, experts)).argpartition(top_k, axis=1)[:, :top_k])) for _ in range(300)
        ]
        error = np.std(draws) / np.sqrt(len(draws))
        assert expected_distinct_experts(experts, top_k, tokens) == pytest.approx(np.mean(draws), abs=4 * error)


def test_distinct_experts_of_a_skewed_load_are_those_of_a_simulation():
    rng = np.random.default_rng(1)
    shares = np.arange(1, 17) / 136
    draws = [(rng.random((9, 16)) < 2 * shares).any(axis=0).sum() for _ in range(2000)]
    found = expected_distinct_experts(16, 2, 9, shares)
    assert found == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / np.sqrt(2000))
    assert found < expected_distinct_experts(16, 2, 9)  # a skewed load hits fewer
    assert expected_distinct_experts(16, 2, 9, [1 / 16] * 16) == pytest.approx(expected_distinct_experts(16, 2, 9))


def test_limits_of_distinct_experts():
    assert [expected_distinct_experts(8, 2, tokens) for tokens in (0, 1)] == [0, 2]
    assert expected_distinct_experts(8, 2, 10_000) == pytest.approx(8)
    assert expected_distinct_experts(8, 8, 1) == 8
    with pytest.raises(UserError, match="top_k=9"):
        expected_distinct_experts(8, 9, 1)
    with pytest.raises(UserError, match="must be 8 shares that sum to 1; there are 2"):
        expected_distinct_experts(8, 2, 1, [0.5, 0.5])


def test_bytes_of_one_token_are_the_derived_ones():
    assert decode_traffic(PRO, 1, 4096).expert_bytes / 1e9 == pytest.approx(12.84, abs=0.006)
    assert decode_traffic(FLASH, 1, 4096).expert_bytes / 1e9 == pytest.approx(3.45, abs=0.006)
    assert cache_read_bytes(PRO, MILLION) / 1e6 == pytest.approx(705, abs=1)


@pytest.mark.parametrize(("model", "size"), [(FLASH, 159.609), (PRO, 864.7)])
def test_stored_weights_are_the_published_checkpoint_without_its_extra_block(model, size):
    """The checkpoint holds the block for multi-token prediction too, one more than the others."""
    traffic = decode_traffic(model, 1, 1)
    blocks = (traffic.dense_stored + traffic.experts_stored) / 1e9
    assert blocks * (1 + 1 / model.num_layers) == pytest.approx(size, rel=0.01)


def test_cache_reads_of_our_own_models():
    """Grouped-query attention reads all that it keeps; an indexer reads its keys and the entries that it chose."""
    assert cache_read_bytes(NANO, 100) == 100 * 2048
    v4 = ModelConfig.preset("v4-nano")
    csa = next(la.attention for la in v4.layers if la.attention.kind == "compressed_sparse")
    counts = {la.attention.kind: n for la, n in v4.layer_counts.items() if la.attention.kind != "sliding"}
    window = v4.num_layers * 32 * csa.head_dim * 4
    read = counts["compressed_sparse"] * 4 * (250 * csa.index_dim + csa.index_top_k * csa.head_dim)
    read += counts["heavily_compressed"] * 4 * (1000 // 16) * csa.head_dim
    assert cache_read_bytes(v4, 1000) == pytest.approx(window + read)


def test_the_parts_of_a_step_by_hand():
    traffic, h800 = decode_traffic(FLASH, 100, 8192), chip("H800")
    step = decode_step(FLASH, h800, 100, 8192, Assumptions(chips=4))
    read = traffic.dense_bytes + traffic.expert_bytes / 4 + traffic.cache_bytes / 4
    assert step.read == pytest.approx(read / 3.35e12)
    assert step.calculate == pytest.approx(25 * traffic.flops / 100 / 1979e12)
    assert step.send == pytest.approx(25 * 43 * 6 * 4096 * 3 * 3 / 4 / 200e9)
    assert step.seconds == max(step.read, step.calculate, step.send)
    assert step.tokens_per_second == 100 / step.seconds
    apart = decode_step(FLASH, h800, 100, 8192, Assumptions(chips=4, overlap=False))
    assert apart.seconds == pytest.approx(step.read + step.calculate + step.send)


def test_more_boards_send_over_the_network():
    step = decode_step(PRO, chip("H800"), 64, 4096, Assumptions(chips=16))
    sent = 4 * 61 * 6 * 7168 * 3
    assert step.send == pytest.approx(max(sent * 7 / 16 / 200e9, sent * 8 / 16 / 50e9))


def test_laws_of_a_step():
    h800, many = chip("H800"), Assumptions(chips=8)
    steps = [decode_step(FLASH, h800, batch, 4096, many) for batch in (8, 64, 512)]
    assert [s.read for s in steps] == sorted(s.read for s in steps)
    assert [s.tokens_per_second for s in steps] == sorted(s.tokens_per_second for s in steps)
    slower = decode_step(FLASH, h800, 8, 4096, Assumptions(chips=8, memory_efficiency=0.5))
    assert slower.read == pytest.approx(2 * steps[0].read)
    small, large = (decode_traffic(FLASH, 1, 4096, Assumptions(expert_bits=bits)).expert_bytes for bits in (4, 8))
    assert large == 2 * small
    one, two = (dollars_per_million(steps[0], Assumptions(dollars_per_hour=price)) for price in (1, 2))
    assert two == 2 * one


def test_decoding_one_sequence_waits_for_memory_on_every_chip():
    for name in ("A100", "A800", "H100", "H800", "B200"):
        assert decode_step(PRO, chip(name, unverified=True), 1, 4096).bound_by == "memory"


def test_what_the_export_cut_changes_and_what_it_does_not():
    for full, cut, share in (("A100", "A800", 2 / 3), ("H100", "H800", 4 / 9)):
        kept = export_cut(chip(full), chip(cut))
        assert {name: value for name, value in kept.items() if value != 1} == {"link_gb_per_s": pytest.approx(share)}
        before, after = (decode_step(FLASH, chip(name), 64, 4096) for name in (full, cut))
        assert (before.read, before.calculate) == (after.read, after.calculate)
        assert after.send == pytest.approx(before.send / share)
        assert before.seconds == after.seconds  # both wait for memory
    h20 = export_cut(chip("H100"), chip("H20"))
    assert "network_gb_per_s" not in h20  # unverified
    assert export_cut(chip("H100"), chip("H20", unverified=True))["network_gb_per_s"] == 1
    assert [round(h20[name], 2) for name in ("bf16_tflops", "memory_tb_per_s", "link_gb_per_s")] == [0.15, 1.19, 1.0]
    hours = [training_hours(V3, 14.8e12, chip(name), utilisation=0.39) for name in ("H100", "H800", "H20")]
    assert hours[0] == hours[1]
    assert hours[2] / hours[0] == pytest.approx(989 / 148)


def test_effect_of_the_export_cut_by_hand():
    """Only sending is slower on an H800, by 900/400; a step that waits for memory is as fast, one in sequence is not."""
    effect = export_effect(FLASH, chip("H100"), chip("H800"), 64, 4096)
    before, after = (decode_step(FLASH, chip(name), 64, 4096) for name in ("H100", "H800"))
    assert [effect.slower[part] for part in ("read", "calculate", "step")] == [1, 1, 1]
    assert effect.slower["send"] == pytest.approx(2.25)
    total = [step.read + step.calculate + step.send for step in (before, after)]
    assert effect.slower["step without overlap"] == pytest.approx(total[1] / total[0])
    assert effect.bound_by == ("memory", "memory")
    assert effect.training == 1
    # 6,144 FLOPs a byte of V4-Pro's experts: more than 4,398 of an H100, less than 9,895 of an H800
    assert export_effect(PRO, chip("H100"), chip("H800"), 64, 4096).hides == (True, False)
    assert export_effect(NANO.replace(moe=None, d_ff=128), chip("H100"), chip("H800"), 1, 64).hides is None


def test_effect_on_a_step_of_many_sequences():
    """Enough sequences, and an H800 waits for links where an H100 computes: then the cut costs time."""
    assumed = Assumptions(chips=8, cache_dtype="bfloat16")
    effect = export_effect(FLASH, chip("H100"), chip("H800"), 65_536, 1, assumed)
    before, after = (decode_step(FLASH, chip(name), 65_536, 1, assumed) for name in ("H100", "H800"))
    assert effect.bound_by == ("compute", "links")
    assert effect.slower["step"] == pytest.approx(after.send / before.calculate)
    assert effect.slower["step"] > 1


def test_h20_keeps_memory_and_loses_matmuls():
    effect = export_effect(FLASH, chip("H100"), chip("H20"), 64, 4096)
    assert effect.slower["read"] == pytest.approx(3.35 / 4)
    assert effect.slower["calculate"] == pytest.approx(1979 / 296)
    assert effect.training == pytest.approx(989 / 148)
    assert "H20 against H100" in effect.in_words()


def test_published_throughput_lies_below_the_roofline():
    """V3 on H800: about 14,800 tokens a second and node of 8, at 20 to 22 a second and user, on units of 144 chips.

    Source: deepseek-ai/open-infra-index, day 6 (overview of the inference system). It is an average over a day of
    changing contexts; 4,096 tokens stand for them here.
    """
    users = round(14_800 / 8 / 21)
    step = decode_step(V3, chip("H800"), users * 144, 4096, Assumptions(chips=144))
    assert step.fits
    assert 1 < step.tokens_per_second / 144 / (14_800 / 8) < 10


def test_training_of_v3_from_its_own_figures():
    v3 = reported_training()
    assert (v3.recomputed, v3.total, v3.dollars) == (2_664_000, 2_788_000, 5_576_000)
    assert v3.days_per_trillion == pytest.approx(3.7, abs=0.05)
    assert train_flops(V3, 4096) / 1e9 == pytest.approx(250, abs=1)  # table 2 of arXiv 2505.09343
    assert [round(u, 2) for u in v3.utilisation.values()] == [0.34, 0.39]
    again = training_hours(V3, 14.8e12, chip("H800"), utilisation=v3.utilisation["attention at 4096 tokens too"])
    assert again == pytest.approx(2_664_000)


def test_training_of_v4_is_a_range():
    for name, hours in (("deepseek-v4-pro", 7.9), ("deepseek-v4-flash", 2.0)):
        low, high = (value / 1e6 for value in training_range(name)["range"])
        assert low < hours < high
        assert high > 1.5 * low  # nothing is published: a narrow range would pretend
    with pytest.raises(UserError, match=r"tokens that trained deepseek-v3\.2 are not published"):
        training_range("deepseek-v3.2")
    with pytest.raises(UserError, match="hours that trained deepseek-v4-pro are not published"):
        reported_training("deepseek-v4-pro")


def test_mean_flops_of_training_are_those_of_our_own_attention():
    """The published formulas and the configs' own agree on a V4 of the same sizes: attention cores and indexers."""
    from minimoe.attention import CompressedSparseConfig, HeavilyCompressedConfig
    from minimoe.cost.training import mean_forward_flops

    sizes = {"num_heads": 64, "head_dim": 512, "rope_dim": 64, "q_rank": 1024, "window": 128}
    shared = sizes | {"out_groups": 8, "out_rank": 1024}
    csa = CompressedSparseConfig(**shared, ratio=4, index_heads=64, index_dim=128, index_top_k=512)
    kinds = [(csa, 21), (HeavilyCompressedConfig(**shared, ratio=128), 20)]
    short, long = 1, 8192
    grown = sum(n * (kind.flops_per_token(4096, long) - kind.flops_per_token(4096, short)) for kind, n in kinds)
    sliding = 2 * 4 * 64 * 512 * ((128 * 129 / 2 + 128 * (long - 128)) / long - 1)
    found = mean_forward_flops(FLASH, long) - mean_forward_flops(FLASH, short)
    assert found == pytest.approx(grown + sliding)


def test_records_are_plain():
    step = decode_step(V32, chip("H800"), 3, 4096)
    assert json.loads(json.dumps(step.to_record()))["bound_by"] == "memory"
    assert json.dumps(chip("H20").to_record())


def test_our_own_models_have_a_roofline_too():
    step = decode_step(NANO, chip("A100"), 1, 256)
    assert (step.chips, step.compute, step.send) == (1, "bf16", 0)
    assert step.traffic.dense_bytes + step.traffic.expert_bytes < 4 * 3e6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["price=2"], r"--assume 'price=2' must be name=value; names are busy, .*chips"),
        (["expert_bits"], "must be name=value"),
        (["expert_bits=0"], r"expert_bits=0 must be a number in \(0, 64\]"),
        (["compute=fp6"], "compute='fp6' is not known; choose one of auto, fp4, fp8"),
        (["busy=1.5"], "busy="),
        (["chips=0"], "chips=0"),
        (["overlap=maybe"], "overlap='maybe' must be True or False"),
        (["cache_dtype=int3"], "cache_dtype='int3' is not known"),
    ],
)
def test_impossible_assumptions(settings, words):
    with pytest.raises(UserError, match=words):
        Assumptions.of(settings)


def test_what_a_chip_cannot_do_is_said():
    with pytest.raises(UserError, match="A100: fp8_tflops is not known; known are"):
        decode_step(FLASH, chip("A100"), 1, 4096, Assumptions(compute="fp8"))
    with pytest.raises(UserError, match="hardware 'H900' is not known; choose one of A100"):
        chip("H900")
    with pytest.raises(UserError, match=r"must hold .* GB at the least; take fewer sequences or a shorter context"):
        decode_step(V3, chip("A100"), 10_000_000, MILLION)
    assert not decode_step(V3, chip("A100"), 1, 4096, Assumptions(chips=1)).fits
