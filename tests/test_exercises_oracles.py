"""What answers are compared with: the oracles against the tests' own loops and against the library, and gradients."""

from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracles
import pytest

from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig
from minimoe.attention.window import in_window, visible_entries
from minimoe.cost import chip, count_params, decode_step, expected_distinct_experts, moe_layer_flops, published_model
from minimoe.distill import hinton_kd, masked_mean, reverse_kl, topk_kl
from minimoe.exercises.grade import grade
from minimoe.exercises.gradients import expected_gradients
from minimoe.exercises.numeric import numerical_gradient
from minimoe.exercises.registry import CATALOGUE
from minimoe.exercises.values import expected_outputs
from minimoe.moe import (
    AFFINITIES,
    bias_update,
    combine_weights,
    load_balance_loss,
    loop_dispatch,
    select_group_limited,
    select_topk,
    sequence_balance_loss,
)
from minimoe.quant import INT8_CHANNEL, MXFP4, quantize

IDS = list(CATALOGUE)


def cases(id):
    return [(case.arguments, expected_outputs(CATALOGUE[id], case)) for case in CATALOGUE[id].cases]


def test_oracles_of_lesson_01():
    for (x, experts, weights, gate_up, down), (y,) in cases("sparse.moe_forward"):
        wide = [np.asarray(a, np.float64) for a in (x, weights, gate_up, down)]
        np.testing.assert_allclose(y, oracles.moe_forward(wide[0], experts, *wide[1:]), rtol=1e-9)
    for sizes, (width, sparse, dense) in cases("sparse.dense_width"):
        assert sparse == moe_layer_flops(MoEConfig(*sizes), 1)
        assert dense == 6 * sizes[0] * width
        assert width == (sizes[3] + sizes[4]) * sizes[1]


def test_oracle_of_params_agrees_with_the_library():
    sizes = {"vocab_size": 5, "num_layers": 1, "attention": GroupedQueryConfig(2, 1, 2), "context_length": 4}
    for (d, *rest), (total, active) in cases("sparse.params"):
        count = count_params(ModelConfig(d_model=d, moe=MoEConfig(d, *rest), **sizes))
        assert total == count.router + count.shared + count.routed
        assert active == count.router + count.shared + count.routed_active


def test_oracles_of_lessons_02_and_03():
    for (affinities, bias, k), (experts, weights) in cases("routing.topk"):
        rows = affinities.astype(np.float64)
        for row, chosen, weight in zip(rows, experts, weights, strict=True):
            order = sorted(range(len(row)), key=lambda e: (-(row[e] + float(bias[e])), e))[:k]
            assert order == chosen.tolist()
            np.testing.assert_allclose(weight, row[order] / row[order].sum())
    for (probs, experts), (loss,) in cases("balance.switch_loss"):
        np.testing.assert_allclose(loss, oracles.balance_loss(probs, experts), rtol=1e-9)
    for (probs, experts, segments, n), (loss,) in cases("balance.sequence_loss"):
        each = [oracles.balance_loss(probs, experts, where=segments == s) for s in range(n) if (segments == s).any()]
        np.testing.assert_allclose(loss, sum(each) / len(each), rtol=1e-9)
    for (bias, load, rate), (moved,) in cases("balance.bias_update"):
        np.testing.assert_allclose(moved, oracles.bias_update(bias.astype(float), load, rate), atol=1e-12)
    balanced = next(case for case in CATALOGUE["balance.switch_loss"].cases if case.name == "balanced")
    assert expected_outputs(CATALOGUE["balance.switch_loss"], balanced)[0] == pytest.approx(1.0)


def test_oracles_of_lesson_06():
    for (length, ratio, window), (mask,) in cases("cache.visible"):
        at = jnp.arange(length)
        np.testing.assert_array_equal(mask[:, :length], in_window(at[:, None], at[None], window))
        np.testing.assert_array_equal(mask[:, length:], visible_entries(at, length // ratio, ratio))
    published = {args: total for args, (total,) in cases("cache.bytes") if args[0] == 1_048_576}
    for name, layers in (("deepseek-v4-flash", 43), ("deepseek-v4-pro", 61)):
        parts = published_model(name).cache_bytes(1_048_576)
        (total,) = (total for args, total in published.items() if len(args[1]) == layers)
        assert total == sum(size for part, size in parts.items() if part != "tails")
    for (values, _, bias), (entries,) in cases("cache.compress"):
        assert entries.shape == (len(values) // len(bias), values.shape[1])
        for i, entry in enumerate(entries):  # a mean lies between what it is of
            block = values[i * len(bias) : (i + 1) * len(bias)]
            assert (entry <= block.max(0) + 1e-9).all()
            assert (entry >= block.min(0) - 1e-9).all()


def test_oracles_of_lesson_08():
    h800 = chip("H800")
    for (flops, num_bytes, peak, bandwidth), (seconds, rate, waits) in cases("hardware.roofline"):
        assert (rate <= peak * (1 + 1e-12)).all()
        np.testing.assert_array_equal(waits, flops / num_bytes < peak / bandwidth)
        np.testing.assert_allclose(np.where(waits, num_bytes / bandwidth, flops / peak), seconds)
    for (batch, layers, experts, top_k, *sizes), (read,) in cases("hardware.step_bytes"):
        hit = expected_distinct_experts(experts, top_k, batch)
        assert read == pytest.approx(sizes[1] + layers * hit * sizes[0] + batch * sizes[2], rel=1e-9)
    flash, batch = published_model("deepseek-v4-flash"), 64
    traffic = decode_step(flash, h800, batch, 4096).traffic
    (published,) = (args for args, _ in cases("hardware.step_bytes") if args[0] == batch)
    assert traffic.expert_bytes == pytest.approx(
        published[1] * published[4] * expected_distinct_experts(256, 6, batch), rel=1e-9
    )
    for (chosen, num_experts, devices), (rows,) in cases("hardware.rows_sent"):
        homes = np.repeat(np.arange(devices), len(chosen) // devices)
        away = [
            len(set((row // (num_experts // devices)).tolist()) - {home})
            for row, home in zip(chosen, homes, strict=True)
        ]
        assert rows.sum() == sum(away)
        assert not np.diag(rows).any()


def test_oracles_of_lesson_04():
    for (w,), (codes, scale) in cases("quant.absmax_int8"):
        np.testing.assert_array_equal(codes, quantize(jnp.asarray(w), INT8_CHANNEL).codes)
        assert (np.abs(codes).max(1)[scale[:, 0] != 1] == 127).all()
    for (x,), (scale, x_hat) in cases("quant.mxfp4_scale"):
        mantissa, exponent = np.frexp(scale)
        assert (mantissa == 0.5).all()
        largest = np.abs(x).max(1)
        assert ((largest <= 6 * scale) & ((largest > 3 * scale) | (largest == 0))).all()
        np.testing.assert_array_equal(exponent[largest == 0], 1)
        steps = (x / scale[:, None]).astype(ml_dtypes.float4_e2m1fn).astype(float)
        np.testing.assert_array_equal(x_hat, steps * scale[:, None])
    for (x, scale), (x_hat,) in cases("quant.straight_through"):
        q = quantize(jnp.asarray(x), INT8_CHANNEL, scale=jnp.asarray(scale))
        codes = np.maximum(np.asarray(q.codes, np.float64), -127)  # with a given scale the library goes on to -128
        np.testing.assert_allclose(x_hat, codes * scale, rtol=1e-6)


def test_the_straight_through_gradient_is_exact():
    exercise = CATALOGUE["quant.straight_through"]
    for case in exercise.cases[:2]:
        x, scale = case.arguments
        of_x, of_scale = expected_gradients(exercise, case)
        saturated = np.abs(x) > 127 * scale
        assert 0 < saturated.sum() < x.size
        assert (np.abs(np.abs(x / scale) - 127)[~saturated] > 1).all()
        np.testing.assert_array_equal(of_x, np.where(saturated, 0, np.cos(np.arange(x.size)).reshape(x.shape)))
        assert not of_scale.any()


@pytest.mark.parametrize("id", [id for id in IDS if id.startswith("distillation.")])
def test_the_gradients_asked_for_in_lesson_05_are_those_of_the_oracles(id):
    """The student's; by differences, where the logits are small enough for them. The teacher's are 0 by convention."""
    exercise = CATALOGUE[id]
    for case in exercise.cases:
        if case.gradient and np.abs(case.arguments[0]).max() < 100:
            of_student, *of_teacher = expected_gradients(exercise, case)
            (differences,) = numerical_gradient(exercise.oracle, case.arguments, (0,))
            np.testing.assert_allclose(of_student, differences, rtol=1e-6, atol=1e-9)
            assert not any(g.any() for g in of_teacher)


def library_kd(student, teacher, labels, mask, temperature, alpha):
    return hinton_kd(student, teacher, labels, temperature, alpha, where=mask)


def library_on_policy(student, teacher, tokens, prompt_lengths, written_lengths):
    place, first = jnp.arange(tokens.shape[1])[None], prompt_lengths[:, None] - 1
    where = (place >= first) & (place < first + written_lengths[:, None])
    return masked_mean(reverse_kl(student, teacher, where=where), where)


def library_int8(w):
    q = quantize(w, INT8_CHANNEL)
    return q.codes, q.scale


def library_mxfp4(x):
    q = quantize(x, MXFP4)
    return q.block_scales()[:, 0], q.dequantize()


def library_topk(affinities, bias, k):
    experts = select_topk(affinities, bias, k)
    return experts, combine_weights(affinities, experts)


def library_groups(scores, num_groups, top_k_groups, k):
    bias = jnp.zeros(scores.shape[1])
    return select_group_limited(scores, bias, k, num_groups=num_groups, top_k_groups=top_k_groups)


def library_sequence_loss(probs, experts, segments, num_segments):
    return sequence_balance_loss(probs, experts, segments, num_segments)


@pytest.mark.parametrize(
    ("id", "answer"),
    [
        ("sparse.moe_forward", loop_dispatch),
        ("routing.topk", library_topk),
        ("routing.sqrtsoftplus", AFFINITIES["sqrtsoftplus"]),
        ("routing.group_limited", library_groups),
        ("balance.switch_loss", load_balance_loss),
        ("balance.sequence_loss", library_sequence_loss),
        ("balance.bias_update", bias_update),
        ("quant.absmax_int8", library_int8),
        ("quant.mxfp4_scale", library_mxfp4),
        ("distillation.kd", library_kd),
        ("distillation.topk", topk_kl),
        ("distillation.on_policy", library_on_policy),
    ],
)
def test_the_library_passes(id, answer):
    result = grade(CATALOGUE[id], answer)
    assert result.passed, str(result)


@pytest.mark.parametrize("id", IDS)
def test_expected_gradients_are_finite_and_reach_every_argument(id):
    exercise = CATALOGUE[id]
    for case in exercise.cases:
        if case.gradient:
            gradients = expected_gradients(exercise, case)
            assert all(np.isfinite(g).all() for g in gradients)
            # A convention may ask for none with respect to one argument, as that of the straight-through estimator does.
            reached = any if exercise.gradient else all
            assert reached(np.abs(g).max() > 1e-3 for g in gradients)
