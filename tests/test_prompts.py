"""Prompts of different lengths, continued together: each as `generate` would continue it alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe import MoETransformer, UserError, generate
from minimoe.inference import continue_prompts

PROMPTS = [[0, 3, 5, 7, 2], [0], [0, 9, 4, 4, 2], [1]]
STOP = 0


@pytest.fixture(scope="module")
def model(tiny_config):
    """Dense, which compiles fastest; logits that differ by more than rounding."""
    made = MoETransformer(tiny_config.dense_equivalent().replace(num_layers=1), rngs=nnx.Rngs(3))
    nnx.update(made, jax.tree.map(lambda p: p * 3, nnx.state(made, nnx.Param)))
    return made


def alone(model, prompt, num):
    out = generate(model, jnp.array([prompt], jnp.int32), num, temperature=0.0)
    return np.asarray(out)[0, len(prompt) :].tolist()


def test_greedy_is_what_generate_says_of_each_alone(model):
    unstopped = [alone(model, prompt, 6) for prompt in PROMPTS]
    # a word that ends some of them early, and others not
    stop = next(w for new in unstopped for w in new[:-1] if not all(w in other for other in unstopped))
    done = []
    found = continue_prompts(
        model, PROMPTS, 6, stop_token=stop, temperature=0, batch_size=3, progress=lambda *now: done.append(now)
    )
    want = [new[: new.index(stop) + 1] if stop in new else new for new in unstopped]
    assert found == want
    assert min(map(len, want)) < 6 == max(map(len, want))
    assert done == [(3, 4), (4, 4)]


def test_sampling_is_a_function_of_the_key_and_follows_the_model(model):
    prompts = [[0, 3]] * 600
    first, again, other = (
        continue_prompts(model, prompts, 1, stop_token=STOP, key=jax.random.key(seed), batch_size=600)
        for seed in (0, 0, 1)
    )
    assert first == again != other
    expected = jax.nn.softmax(
        nnx.jit(lambda model, tokens: model(tokens)[0])(model, jnp.array([[0, 3]], jnp.int32))[0, -1]
    )
    counts = np.bincount([new[0] for new in first], minlength=19)
    np.testing.assert_allclose(counts / 600, expected, atol=4 * 0.5 / 600**0.5)


def test_what_a_prompt_draws_depends_on_the_key_and_its_place_alone(model):
    prompts = [[0, 3], [5], [0, 3], [0, 3, 7], [2, 2]]
    options = {"stop_token": 18, "key": jax.random.key(7), "temperature": 1.0}
    want = continue_prompts(model, prompts, 6, batch_size=5, **options)
    assert want[0] != want[2], "equal prompts at two places draw differently"
    for batch_size in (1, 2, 3, 64):
        assert continue_prompts(model, prompts, 6, batch_size=batch_size, **options) == want
    assert continue_prompts(model, prompts, 6, batch_size=2, size=20, **options) == want
    assert continue_prompts(model, [[9, 9, 9], *prompts[1:]], 6, batch_size=2, **options)[1:] == want[1:]


def test_it_draws_what_generate_draws_for_that_row(model):
    prompts = [[0, 3], [5, 1], [0, 3]]
    key = jax.random.key(3)
    rows = np.asarray(generate(model, jnp.array(prompts), 6, key=key, temperature=1.0))[:, 2:]
    found = continue_prompts(model, prompts, 6, stop_token=18, key=key, temperature=1.0, batch_size=2)
    for new, row in zip(found, rows.tolist(), strict=True):
        assert new == row[: len(new)]
    first = np.asarray(generate(model, jnp.array(prompts[:1]), 6, key=key, temperature=1.0))[:, 2:]
    np.testing.assert_array_equal(first[0], rows[0])


def test_a_model_of_nan_is_named(model):
    broken = nnx.clone(model)
    broken.norm.scale[...] = jnp.full_like(broken.norm.scale[...], jnp.nan)
    with pytest.raises(UserError, match="logits for prompt 0 are NaN; check its weights"):
        continue_prompts(broken, PROMPTS, 2, stop_token=STOP)


def test_nothing_to_do(model):
    assert continue_prompts(model, [], 3, stop_token=STOP) == []


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[0], []], {}, "holds no token"),
        ([[0, 19]], {}, r"prompt 0\[1\] is 19, outside the vocabulary 0\.\.18"),
        ([[0] * 20], {"max_new_tokens": 5}, "20 tokens; with max_new_tokens=5 that is above context_length=24"),
        ([[0]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[0]], {"temperature": -1.0}, "temperature=-1.0"),
        ([[0]], {"max_new_tokens": 2**40}, f"max_new_tokens={2**40} that is above context_length=24"),
        ([[0]], {"size": 2**40}, rf"size={2**40} must be a whole number in 1\.\.24"),
        ([[0]], {"size": 25}, r"size=25 must be a whole number in 1\.\.24"),
        ([[0]], {"key": 0}, r"key=0 must be one key of jax.random, not a seed; write key=jax.random.key\(0\)"),
    ],
)
def test_what_cannot_be_continued_is_refused(model, prompts, options, message):
    with pytest.raises(UserError, match=message):
        continue_prompts(model, prompts, **{"max_new_tokens": 2, "stop_token": STOP} | options)
