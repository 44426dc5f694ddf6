"""The graders, graded: every wrong answer is told its mistake, every right one passes however it is written."""

from __future__ import annotations

import json
import re
import threading
import time

import exercise_answers
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracles
import pytest

from minimoe import ModelConfig, MoEConfig, UserError
from minimoe import exercises as ex
from minimoe.cost import count_params, moe_layer_flops
from minimoe.distill import hinton_kd, masked_mean, reverse_kl, topk_kl
from minimoe.exercises import front
from minimoe.exercises.grade import grade
from minimoe.exercises.gradients import expected_gradients
from minimoe.exercises.limits import Raised, TimeLimitExceeded, run_limited
from minimoe.exercises.numeric import Tolerance, difference, numerical_gradient
from minimoe.exercises.registry import CATALOGUE
from minimoe.exercises.submission import load_answers
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


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    monkeypatch.setattr(front, "_results", {})
    monkeypatch.setattr(front, "_hints_given", {})


@pytest.mark.parametrize(("id", "answer"), [(id, a) for id in IDS for a in exercise_answers.RIGHT[id]])
def test_right_answers_pass(id, answer):
    result = grade(CATALOGUE[id], answer)
    assert result.passed, str(result)
    assert result.points == CATALOGUE[id].points > 0
    assert result.mistake is None
    assert result.aspect == ""


@pytest.mark.parametrize(
    ("id", "answer", "named"), [(id, *wrong) for id in IDS for wrong in exercise_answers.WRONG[id]]
)
def test_wrong_answers_are_told_why(id, answer, named):
    result = grade(CATALOGUE[id], answer)
    assert not result.passed
    assert result.points == 0
    expected = (None, named.removeprefix("aspect:")) if named.startswith("aspect:") else (named, result.aspect)
    assert (result.mistake, result.aspect) == expected, str(result)
    if result.mistake:
        assert result.message.startswith(result.mistake)


@pytest.mark.parametrize("id", IDS)
def test_every_known_mistake_has_an_answer_that_makes_it(id):
    named = [name for _, name in exercise_answers.WRONG[id] if not name.startswith("aspect:")]
    assert set(named) == {mistake.name for mistake in CATALOGUE[id].mistakes}
    assert len(set(named)) >= 4
    assert len(exercise_answers.RIGHT[id]) >= 2


@pytest.mark.parametrize("id", IDS)
def test_every_exercise_is_complete(id):
    exercise = CATALOGUE[id]
    assert exercise.id == id
    assert 1 <= exercise.difficulty <= 5
    assert exercise.minutes > 0
    assert len(set(exercise.hints)) == 3
    assert len(exercise.cases) >= 3
    assert len({case.name for case in exercise.cases}) == len(exercise.cases)
    assert exercise.name in exercise.starter
    assert set(exercise.wrt) <= set(exercise.parameters)
    assert all(len(case.arguments) == len(exercise.parameters) for case in exercise.cases)
    assert all(f"`{name}" in exercise.task or name in "d_expert" for name in exercise.parameters if exercise.wrt)
    assert (not exercise.wrt) or sum(case.gradient for case in exercise.cases) >= 2
    for case in exercise.cases:
        for expected in expected_outputs(exercise, case):
            assert np.isfinite(expected).all()
    text = exercise._repr_markdown_()
    assert id in text
    assert exercise.task in text


# The oracles here against the tests' own loops and against the library.


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
    sizes = {"vocab_size": 5, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 2, "context_length": 4}
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


# Answers that are wrong in ways that have nothing to do with the exercise.


def nothing(*args):
    return None


def unfilled(affinities, bias, k):
    raise NotImplementedError


def divides(affinities, bias, k):
    return affinities / 0 + 1 // 0


@pytest.mark.parametrize(
    ("answer", "aspect", "words"),
    [
        (unfilled, "unwritten", "not written yet: routing.topk"),
        (None, "unwritten", "not written yet"),
        (..., "unwritten", "not written yet"),
        (3, "unwritten", "pass the function itself"),
        (nothing, "structure", "returned None"),
        (jax.jit(exercise_answers.topk_lax), "error", "no values yet"),
        (lambda affinities, bias: None, "signature", "topk(affinities, bias, k)"),
        (divides, "error", "`return affinities / 0 + 1 // 0`: "),
        (lambda a, b, k: exit(), "error", "raised SystemExit"),
        (lambda a, b, k: a.at[0].set(b)[0] and 1, "error", "raised"),
        (lambda a, b, k: a.__setitem__(0, 1.0), "error", "raised"),
        (lambda a, b, k: ("experts", "weights"), "structure", "must be an array or a number"),
        (lambda a, b, k: (a.tolist(), a), "structure", "return one array"),
        (lambda a, b, k: (np.array([["a"] * k] * len(a)), a), "dtype", "not numbers"),
        (lambda a, b, k: {"experts": a}, "structure", "returned a dict"),
    ],
)
def test_generic_faults(answer, aspect, words):
    result = grade(CATALOGUE["routing.topk"], answer)
    assert result.aspect == aspect
    assert words in result.message
    assert result.attempted == (aspect != "unwritten")


def branches_on_a_value(probs, experts):
    return exercise_answers.switch_dot(probs, experts) if probs.sum() > 0 else jnp.zeros(())


def counts_in_a_list(probs, experts):
    load = [0.0] * probs.shape[1]
    for e in experts.ravel():
        load[e] += 1.0
    return probs.shape[1] * (jnp.array(load) * exercise_answers.normalised(probs).mean(0)).sum() / experts.size


def cuts_with_a_mask(probs, experts):
    mean = jnp.stack([exercise_answers.normalised(probs)[probs[:, e] >= 0, e].mean() for e in range(probs.shape[1])])
    return probs.shape[1] * (exercise_answers.used(experts, probs.shape[1]).sum(0) * mean).sum() / experts.size


def uses_numpy(probs, experts):
    load = np.bincount(np.asarray(experts).ravel(), minlength=probs.shape[1])
    return np.float32(
        probs.shape[1] * (load * np.asarray(probs / probs.sum(1, keepdims=True)).mean(0)).sum() / load.sum()
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (branches_on_a_value, "cannot look at them. Use jnp.where"),
        (counts_in_a_list, "cannot index a list"),
        (cuts_with_a_mask, "unknown length"),
        (uses_numpy, "NumPy cannot work on them"),
    ],
)
def test_what_cannot_be_traced_is_explained(answer, words):
    result = grade(CATALOGUE["balance.switch_loss"], answer)
    assert result.aspect == "jit", str(result)
    assert words in result.message
    assert "under jax.jit" in result.message


def test_a_loop_without_end_is_stopped():
    def forever(bias, load, rate):
        while True:
            pass

    before, began = threading.active_count(), time.monotonic()
    result = grade(CATALOGUE["balance.bias_update"], forever, time_limit=0.3)
    assert time.monotonic() - began < 10
    assert result.aspect == "time"
    assert "took longer than 0.3 s" in result.message
    while threading.active_count() > before and time.monotonic() - began < 10:
        time.sleep(0.01)
    assert threading.active_count() == before  # the thread has ended, not only been left alone


def test_run_limited():
    assert run_limited(lambda: 5, 5) == 5
    with pytest.raises(Raised, match="KeyError"):
        run_limited(lambda: {}["x"], 5)
    with pytest.raises(TimeLimitExceeded):
        run_limited(lambda: time.sleep(1), 0.05)


def test_inputs_stay_as_they_were_and_prints_are_kept(capsys):
    def mutates(bias, load, rate):
        print("bias is", bias)
        bias += np.float32(rate) * np.sign(load.mean() - load)
        bias -= bias.mean()
        return bias

    result = ex.check("balance.bias_update", mutates)
    assert result.aspect == "mutation"
    assert "changes its argument bias in place" in result.message
    assert result.printed.count("bias is") == 1  # of the deciding call only
    assert "| bias is" in capsys.readouterr().out
    assert grade(CATALOGUE["balance.bias_update"], exercise_answers.bias_numpy).passed  # the case is unharmed


def test_a_printing_answer_passes_quietly(capsys):
    def prints(*args):
        print("hello")
        return exercise_answers.params_formula(*args)

    result = grade(CATALOGUE["sparse.params"], prints)
    assert result.passed
    assert "your function prints" in result.message
    assert capsys.readouterr().out == ""


def test_settings_of_the_process_do_not_matter():
    """The suite runs strict; answers are judged under JAX's defaults, and leave the suite's settings alone."""

    def mixes(bias, load, rate):
        moved = jnp.asarray(bias) + jnp.sign(jnp.asarray(load).mean() - load) * jnp.asarray(rate, jnp.bfloat16)
        return moved - jnp.mean(moved)

    result = grade(CATALOGUE["balance.bias_update"], mixes)
    assert result.aspect == "values"  # the rate is rounded; but no promotion error
    with pytest.raises(jax.errors.TypePromotionError if hasattr(jax.errors, "TypePromotionError") else Exception):
        jnp.ones(2, jnp.bfloat16) + jnp.ones(2, jnp.float32)


# Tolerances and differences.


def test_tolerance():
    allowed = Tolerance(1e-5, 1e-6)
    right = np.array([1.0, 1e-3, np.inf, np.nan])
    assert allowed.close(right, right.astype(np.float32)).all()
    assert allowed.close(right[:2], np.array([1 + 1.05e-5, 1e-3 + 0.9e-6])).all()
    assert not allowed.close(right, np.array([1 + 1.2e-5, 1e-3 + 1.2e-6, 1e30, 0.0])).any()
    assert allowed.close(np.array([3, 4]), np.array([3, 5])).tolist() == [True, False]
    assert difference("y", right[:2], right[:2] + np.array([0, 1e-3]), allowed).startswith(
        "y[1]: expected 0.001, got 0.002"
    )
    assert difference("y", np.array(1.0), np.array(2.0), allowed) == "y: expected 1, got 2"
    exact = Tolerance(0.0, 0.0)
    assert difference("y", np.array(4.0), np.array(4.0), exact) is None
    assert difference("y", np.array(1.0), np.array(1 + 2e-9), exact) == "y: expected 1, got 1.000000002"


def test_numerical_gradient_weighs_outputs():
    x = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    (gradient,) = numerical_gradient(lambda x: (np.zeros(2, int), x / x.sum(1, keepdims=True)), (x,), (0,))

    def scalar(x):
        return (x / x.sum(1, keepdims=True) * jnp.cos(jnp.arange(4.0)).reshape(2, 2)).sum()

    np.testing.assert_allclose(gradient, jax.grad(scalar)(jnp.asarray(x)), rtol=1e-5, atol=1e-6)


# The front end.


def test_check_hint_status(capsys):
    result = ex.check("balance.bias_update", exercise_answers.bias_numpy)
    assert result
    out = capsys.readouterr().out
    assert out.startswith("PASSED   balance.bias_update  5 of 5 points")
    assert repr(result) == "Result('balance.bias_update', passed, 5 of 5 points)"
    ex.check("balance.bias_update", nothing)  # a later failure does not undo it
    ex.check("routing.topk", nothing)
    ex.check("sparse.params", None)
    out = capsys.readouterr().out
    assert "NOT YET" in out
    assert 'minimoe.exercises.hint("routing.topk")' in out
    text = str(ex.status())
    assert re.search(r"balance.bias_update +done +03 +1/5 +10 +5/5", text)
    assert re.search(r"routing.topk +not yet +02 ", text)
    assert re.search(r"sparse.params +01 ", text)
    assert "1 of 15 done, 5 of 155 points" in text
    assert "<td" in ex.status()._repr_html_()


def test_hints_come_one_by_one(capsys):
    for _ in range(4):
        ex.hint("routing.topk")
    ex.hint("routing.topk", 1)
    levels = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert levels == [f"routing.topk, hint {n} of 3" for n in (1, 2, 3, 3, 1)]
    with pytest.raises(UserError, match="hint level 4 does not exist; choose 1 to 3"):
        ex.hint("routing.topk", 4)


def test_unknown_ids_name_the_close_ones():
    for call in (ex.hint, lambda id: ex.check(id, nothing), lambda id: ex.exercises()[id]):
        with pytest.raises(UserError, match=r"no exercise 'routing.top'; did you mean routing.topk"):
            call("routing.top")
    with pytest.raises(UserError, match=r"did you mean .*balance.switch_loss"):
        ex.hint("switch")
    with pytest.raises(UserError, match=r"known are sparse.params, "):
        ex.hint("%%%")
    assert "routing.topk" in repr(ex.exercises())
    assert ex.exercises().get("nothing") is None


# Files of answers.

GOOD = """
from helper import half
def params(d_model, d_expert, num_experts, top_k, num_shared_experts):
    print("counting")
    router, one = d_model * num_experts, 6 * half * d_model * d_expert
    return router + (num_experts + num_shared_experts) * one, router + (top_k + num_shared_experts) * one
def bias_update(bias, load, rate):
    raise NotImplementedError
print("loaded")
ANSWERS = {"sparse.params": params, "balance.bias_update": bias_update}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "helper.py").write_text("half = 1 / 2\nhalf = 1 // 2 + 1\nhalf = 0.5 if False else 1\n")
    (tmp_path / "answers.py").write_text(GOOD.replace("6 * half", "3 * half"))
    return tmp_path


def cli(*arguments):
    import typer

    from minimoe.cli import app, exercises

    whole = typer.Typer()
    whole.add_typer(exercises.app, name="exercises")
    try:
        code = whole(["exercises", *map(str, arguments)], standalone_mode=False)
    except UserError as error:
        return app._complain(str(error))
    return code if isinstance(code, int) else 0


def test_grade_a_file(folder, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert cli("grade", folder / "answers.py", "--json") == 0  # what is not written is not attempted
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert "loaded" in captured.err
    assert record["points"] == 5
    assert record["max_points"] == sum(e.points for e in CATALOGUE.values())
    assert [(e["id"], e["attempted"], e["passed"]) for e in record["exercises"]] == [
        ("sparse.params", True, True),
        ("balance.bias_update", False, False),
    ]
    (folder / "answers.py").write_text(GOOD.replace("6 * half", "2 * half"))
    assert cli("grade", folder / "answers.py") == 1
    captured = capsys.readouterr()
    assert re.search(r"sparse.params +not passed +0/5 +two matrices an expert", captured.out)
    assert re.search(r"balance.bias_update +not written", captured.out)
    (folder / "answers.py").write_text("ANSWERS = {'sparse.params': None}")
    assert cli("grade", folder / "answers.py") == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "cannot read"),
        (b"def f(:", "is not valid Python in line 1"),
        (b"# coding: utf-8\nx = '\xff'", "is not valid Python"),
        (b"x = 1", "ANSWERS is missing"),
        (b"ANSWERS = {}", "ANSWERS is empty"),
        (b"ANSWERS = [1]", "ANSWERS is a list"),
        (b"ANSWERS = {'routing.top': len}", "did you mean routing.topk"),
        (b"import sys; sys.exit(0)", "raised SystemExit"),
        (b"1 / 0", "raised ZeroDivisionError when run: division by zero"),
    ],
)
def test_files_of_no_use(tmp_path, capsys, source, words):
    path = tmp_path / "answers.py"
    if source is not None:
        path.write_bytes(source)
    assert cli("grade", path) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_files_that_do_not_end_and_notebooks(tmp_path):
    path = tmp_path / "answers.py"
    path.write_text("while True:\n    pass\n")
    with pytest.raises(UserError, match=r"did not finish within 0.2 s"):
        load_answers(path, time_limit=0.2)
    with pytest.raises(UserError, match="is a notebook"):
        load_answers(tmp_path / "answers.ipynb")


def test_cli_list_show_hint(capsys):
    assert cli("list") == 0
    assert "routing.group_limited" in capsys.readouterr().out
    assert cli("list", "--json") == 0
    assert [e["id"] for e in json.loads(capsys.readouterr().out)["exercises"]] == IDS
    assert cli("show", "balance.switch_loss") == 0
    assert "def switch_loss(probs, experts):" in capsys.readouterr().out
    assert cli("hint", "balance.switch_loss", "--level", "2") == 0
    assert "hint 2 of 3" in capsys.readouterr().out
    assert cli("hint", "balance.switch") == 2
    for command in ("list", "show", "hint", "grade"):
        assert cli(command, "--help") == 0
        assert f"minimoe exercises {command}" in " ".join(capsys.readouterr().out.split())
