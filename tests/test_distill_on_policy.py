"""On-policy steps: what the student writes is what it learns on, the teacher judges it, and a resumed run repeats it."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_distill_offline import (
    DATA,
    DENSE,
    SPARSE,
    TOKENIZER,
    VALIDATION,
    Crash,
    assert_same_bits,
    changes_of,
    forward,
    losses,
    make,
    run_config,
)

from minimoe import UserError
from minimoe.data import Document, problem
from minimoe.distill import DistillRecipe, Rollouts, distill, masked_mean, reverse_kl, task_prompts
from minimoe.distill.on_policy import is_on_policy
from minimoe.model import ModelOutput
from minimoe.training import init_training

PROMPTS = [Document("abc", "train", str(n), "abcdefgh"[:n]) for n in (1, 2, 4)] + [Document("sums", "train", "4", "0")]
OWN = DistillRecipe(on_policy_fraction=1.0, max_new_tokens=6)


@pytest.fixture(scope="module")
def teacher():
    return make(DENSE, 5)


def learn(teacher, recipe, run, **kwargs):
    return distill(run, recipe, teacher, DATA, VALIDATION, TOKENIZER, prompts=PROMPTS, **kwargs)


def distance_to(teacher, student, batch) -> float:
    """Mean reverse KL at the words that the student wrote; both models read the whole row, told of no mask."""
    tokens, written = jnp.asarray(batch.tokens), jnp.asarray(batch.written)
    return float(masked_mean(reverse_kl(forward(student, tokens), forward(teacher, tokens), where=written), written))


def test_a_rollout_is_the_prompt_and_what_the_student_wrote():
    run, student = run_config(DENSE), make(DENSE, 1)
    rollouts = Rollouts(PROMPTS, TOKENIZER, run, OWN, ("abc", "num", "sums"))
    batch = rollouts.batch(1, student)  # the fourth prompt, then the first two again
    assert batch.domains.tolist() == [2, 0, 0]
    for row, text in enumerate(["0", "a", "ab"]):
        tokens, targets, where, counted = (x[row] for x in (batch.tokens, batch.targets, batch.where, batch.written))
        prompt = [TOKENIZER.eot_id, *TOKENIZER.encode(text)]
        written = targets[counted].tolist()
        assert tokens[: len(prompt)].tolist() == prompt
        assert np.flatnonzero(counted).tolist() == list(range(len(prompt) - 1, len(prompt) - 1 + len(written)))
        assert np.flatnonzero(where).tolist() == list(range(len(prompt) + len(written))), "the prompt is no padding"
        assert len(written) == 6 or written[-1] == TOKENIZER.eot_id
        assert tokens[1:].tolist() == targets[:-1].tolist()
    again, later = rollouts.batch(1, student), rollouts.batch(5, student)  # step 5 has the same prompts
    assert batch.tokens.tolist() == again.tokens.tolist() != later.tokens.tolist()


def test_prompts_are_those_of_the_problems():
    prompts = task_prompts(3, levels=[1, 2], form="direct")
    assert [prompt.text for prompt in prompts] == [
        problem(n, level).prompt("direct") for n, level in enumerate((1, 2, 1))
    ]
    assert {prompt.domain for prompt in prompts} == {"reasoning"}


def test_the_share_of_steps():
    assert not any(is_on_policy(0, step, 0.0) for step in range(100))
    assert all(is_on_policy(0, step, 1.0) for step in range(100))
    assert 440 < sum(is_on_policy(3, step, 0.5) for step in range(1000)) < 560


def test_own_text_brings_the_student_to_its_teacher():
    """Reverse KL on new rollouts falls; the rollouts before and after are each of the student as it then is."""
    teacher = make(DENSE, 5, scale=6)
    run = run_config(DENSE, steps=60, learning_rate=0.06, log_every=10)
    rollouts = Rollouts(PROMPTS, TOKENIZER, run, OWN, ("abc", "num", "sums"))

    def distance(student) -> float:
        batch = rollouts.batch(1000, student)
        return distance_to(teacher, student, batch)

    before = distance(init_training(run)[0])
    result = learn(teacher, OWN, run)
    assert result.step == 60
    assert distance(result.model) < 0.7 * before, (before, distance(result.model))


def test_steps_of_both_kinds_and_a_resumed_run_repeats_them(teacher, tmp_path):
    recipe = dataclasses.replace(OWN, on_policy_fraction=0.5, alpha=0.5)
    run = run_config(DENSE, steps=4)
    kinds = [is_on_policy(0, step, 0.5) for step in range(4)]
    assert len(set(kinds)) == 2, "choose another seed"
    unbroken = learn(teacher, recipe, run)

    def die(step, metrics):
        if step == 3:
            raise Crash

    with pytest.raises(Crash):
        learn(teacher, recipe, run, out=tmp_path / "run", on_step=die)
    result = learn(teacher, recipe, run, out=tmp_path / "run", resume=True)
    assert_same_bits(result.model, unbroken.model)
    assert losses(result) == losses(unbroken)


def test_the_prompt_counts_nothing_but_is_read():
    """Two sparse layers: what a prompt's tokens get from their experts reaches the words below it, in both models."""
    run = run_config(SPARSE.replace(num_layers=2), steps=1)
    teacher, student = make(run.model, 5), make(run.model, 1)
    rollouts = Rollouts(PROMPTS, TOKENIZER, run, OWN, ("abc", "num", "sums"))
    want = distance_to(teacher, student, rollouts.batch(0, student))
    result = learn(teacher, OWN, run, model=student)
    np.testing.assert_allclose(losses(result), [want], rtol=1e-4)


def test_which_loss_a_step_lowers(teacher):
    """Offline steps: the mixture on the batch of the data. On-policy steps: reverse KL on what was written."""
    recipe = dataclasses.replace(OWN, on_policy_fraction=0.5, alpha=0.5)
    run, student = run_config(DENSE), make(DENSE, 1)
    changes = changes_of(teacher, recipe, run, prompts=PROMPTS)
    for step in range(4):
        own = is_on_policy(0, step, 0.5)
        offered = DATA.batch(0, step, 3, 12)
        batch = changes.batch_for(step, offered, student)
        assert (batch is offered) == (not own)
        extra = changes.extra_for(step, batch)
        assert bool(extra.on_policy) == own
        tokens, targets, where = (jnp.asarray(array) for array in (batch.tokens, batch.targets, batch.where))
        output = ModelOutput(forward(student, tokens), jnp.zeros((*tokens.shape, 1)), ())
        found = changes.objective(output, targets, where, extra)
        if own:
            want = distance_to(teacher, student, batch)
        else:
            plain = changes_of(teacher, DistillRecipe(alpha=0.5), run).objective
            want = plain(output, targets, where, extra)
        np.testing.assert_allclose(found, want, rtol=1e-5)


def test_the_teacher_of_the_prompt_judges(teacher):
    other = make(DENSE, 6)
    teachers = {"abc": teacher, "num": teacher, "sums": other}
    changes = changes_of(teachers, OWN, run_config(DENSE), prompts=PROMPTS)
    batch = changes.batch_for(1, DATA.batch(0, 1, 3, 12), make(DENSE, 1))
    extra = changes.extra_for(1, batch)
    tokens = jnp.asarray(batch.tokens)
    np.testing.assert_allclose(extra.teacher[0], forward(other, tokens)[0], atol=1e-5)
    np.testing.assert_array_equal(extra.counted, batch.written)
    np.testing.assert_allclose(extra.teacher[1:], forward(teacher, tokens)[1:], atol=1e-5)
    with pytest.raises(UserError, match="no teacher for sums"):
        changes_of({"abc": teacher, "num": other}, OWN, run_config(DENSE), prompts=PROMPTS)


def test_refusals(teacher):
    with pytest.raises(UserError, match="on-policy steps need prompts"):
        distill(run_config(DENSE), OWN, teacher, DATA, VALIDATION, TOKENIZER)
    with pytest.raises(UserError, match="max_new_tokens=96 that is above context_length=12"):
        learn(teacher, DistillRecipe(on_policy_fraction=1.0), run_config(DENSE))
    with pytest.raises(UserError, match="at least one prompt and one level"):
        task_prompts(0)


def test_parameters_are_all_that_training_changes(teacher):
    """The teacher is read, not written: not by scoring, and not by the student's optimiser."""
    before = nnx.clone(teacher)
    learn(teacher, OWN, run_config(DENSE, steps=1))
    assert_same_bits(before, teacher)
