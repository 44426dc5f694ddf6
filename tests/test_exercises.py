"""The graders, graded: every wrong answer is told its mistake, every right one passes however it is written."""

from __future__ import annotations

import threading
import time

import exercise_answers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exercise_answers_01 import params_formula
from exercise_answers_02 import topk_lax
from exercise_answers_03 import normalised, switch_dot, used

from minimoe.exercises.grade import grade
from minimoe.exercises.limits import Raised, TimeLimitExceeded, run_limited
from minimoe.exercises.numeric import Tolerance, difference, numerical_gradient
from minimoe.exercises.registry import CATALOGUE
from minimoe.exercises.values import expected_outputs

IDS = list(CATALOGUE)


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


# Answers that are wrong in ways that have nothing to do with the exercise.


def nothing(*args):
    return None


def unfilled(affinities, bias, k):
    raise NotImplementedError


def divides(affinities, bias, k):
    return affinities / 0 + 1 // 0


class Speechless(Exception):
    def __str__(self):
        raise AttributeError("text")

    __repr__ = __str__


def raises_what_has_no_message(affinities, bias, k):
    raise Speechless


@pytest.mark.parametrize(
    ("answer", "aspect", "words"),
    [
        (raises_what_has_no_message, "error", "raised Speechless on case 'first shape'"),
        (unfilled, "unwritten", "not written yet: routing.topk"),
        (None, "unwritten", "not written yet"),
        (..., "unwritten", "not written yet"),
        (3, "unwritten", "pass the function itself"),
        (nothing, "structure", "returned None"),
        (jax.jit(topk_lax), "error", "no values yet"),
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
    return switch_dot(probs, experts) if probs.sum() > 0 else jnp.zeros(())


def counts_in_a_list(probs, experts):
    load = [0.0] * probs.shape[1]
    for e in experts.ravel():
        load[e] += 1.0
    return probs.shape[1] * (jnp.array(load) * normalised(probs).mean(0)).sum() / experts.size


def cuts_with_a_mask(probs, experts):
    mean = jnp.stack([normalised(probs)[probs[:, e] >= 0, e].mean() for e in range(probs.shape[1])])
    return probs.shape[1] * (used(experts, probs.shape[1]).sum(0) * mean).sum() / experts.size


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


def test_a_printing_answer_passes_quietly(capsys):
    def prints(*args):
        print("hello")
        return params_formula(*args)

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
