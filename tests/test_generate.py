"""Generation: the cached program against a plain loop over the model, and the filters against theirs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe import UserError, generate
from minimoe.inference import filter_logits

V, NEW = 19, 6
PROMPTS = jnp.asarray(np.random.default_rng(1).integers(V, size=(2, 9)), jnp.int32)


@nnx.jit
def forward(model, tokens):
    return model(tokens)[0]


def greedy_by_hand(model, tokens) -> np.ndarray:
    """One full forward pass a token; the places not yet written cannot matter, since the model is causal."""
    length = tokens.shape[1]
    out = np.zeros((2, 9 + NEW), np.int32)
    out[:, :length] = tokens
    for position in range(length, length + NEW):
        out[:, position] = np.asarray(forward(model, jnp.asarray(out)))[:, position - 1].argmax(axis=-1)
    return out[:, : length + NEW]


@pytest.fixture(scope="module")
def greedy(tiny_model):
    """Ours, by prompt length."""
    return functools.cache(lambda length: np.asarray(generate(tiny_model, PROMPTS[:, :length], NEW, temperature=0.0)))


@pytest.mark.parametrize("length", [1, 4, 9])
def test_greedy_is_the_argmax_of_the_uncached_model(length, tiny_model, greedy):
    """Prefill of 9 takes the batched dispatch, decoding the one for few tokens."""
    np.testing.assert_array_equal(greedy(length), greedy_by_hand(tiny_model, PROMPTS[:, :length]))


def test_generation_is_not_one_token_over_and_over(greedy):
    assert all(len(set(row.tolist())) > 2 for row in greedy(4))


def test_stop_token_ends_a_sequence_and_pads(tiny_model, greedy):
    plain = greedy(4)
    stop = int(plain[0, 6])
    stopped = np.asarray(generate(tiny_model, PROMPTS[:, :4], NEW, temperature=0.0, stop_token=stop))
    for row, full in zip(stopped, plain, strict=True):
        ends = [i for i in range(4, 4 + NEW) if full[i] == stop]
        end = ends[0] if ends else 4 + NEW
        np.testing.assert_array_equal(row[:end], full[:end])
        assert (row[end:] == stop).all()
    assert (stopped[0, 6:] == stop).all()
    twins = jnp.concatenate([PROMPTS[:1, :4]] * 2)  # both end at once, so the loop ends early: the rest is padding too
    ended = np.asarray(generate(tiny_model, twins, NEW, temperature=0.0, stop_token=stop))
    np.testing.assert_array_equal(ended, [stopped[0]] * 2)


@pytest.mark.parametrize("setting", [{"top_k": 1}, {"top_p": 1e-6}], ids=str)
def test_the_narrowest_filters_are_greedy(setting, tiny_model, greedy):
    out = generate(tiny_model, PROMPTS[:, :4], NEW, key=jax.random.key(5), **setting)
    np.testing.assert_array_equal(out, greedy(4))


def test_the_key_decides_the_text(tiny_model):
    keys = (None, *map(jax.random.key, (0, 1)))
    runs = [np.asarray(generate(tiny_model, PROMPTS[:, :4], NEW, top_p=0.99, key=key)) for key in keys]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[1] != runs[2]).any()
    assert all((run[:, :4] == np.asarray(PROMPTS[:, :4])).all() for run in runs)
    assert (runs[2] < V).all()


def test_samples_follow_the_temperature():
    """The distribution of the filter and `jax.random.categorical` together, on logits known by hand."""
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]])) / 0.5
    draws = jax.random.categorical(jax.random.key(0), filter_logits(logits, 3)[0], shape=(4000,))
    squares = np.array([0.25, 0.09, 0.0225, 0.0])
    np.testing.assert_allclose(np.bincount(draws, minlength=4) / 4000, squares / squares.sum(), atol=0.02)


@pytest.mark.parametrize(("top_k", "top_p"), [(1, None), (3, None), (99, None), (None, 0.3), (None, 0.9), (4, 0.7)])
def test_filters_match_the_loops(top_k, top_p):
    logits = np.random.default_rng(0).normal(size=(8, 7)).astype(np.float32) * 2
    logits[0] = 1.0  # all alike
    logits[1, :3] = 9.0  # a tie at the top
    found = filter_logits(jnp.asarray(logits), top_k, top_p)
    want = [oracles.filter_logits(row, top_k, top_p) for row in logits]
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_nucleus_reaches_p_and_not_more():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.125, 0.125]]))
    for p, kept in ((0.4, 1), (0.6, 2), (0.8, 3), (0.95, 4), (1e-9, 1)):
        assert int(jnp.isfinite(filter_logits(logits, top_p=p)).sum()) == kept


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a whole number of at least 1"),
        ({"max_new_tokens": 21}, "prompt of 4 tokens .* max_new_tokens=21 .* context_length=24.* at most 20"),
        ({"temperature": -0.5}, r"temperature=-0.5 must be a number in \[0, inf\); 0 is greedy"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0 must be a whole number of at least 1; leave it out"),
        ({"top_p": 0.0}, r"top_p=0.0 must be a number in \(0, 1\]; leave it out"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, parts, tiny_model):
    with pytest.raises(UserError, match=parts):
        generate(tiny_model, PROMPTS[:, :4], **{"max_new_tokens": NEW} | settings)


@pytest.mark.parametrize("key", [0, 7, 1.5, "key", jax.random.split(jax.random.key(0), 2)], ids=str)
def test_a_key_that_is_none_is_refused(tiny_model, key):
    with pytest.raises(UserError, match=r"must be one key of jax.random, not a seed; write key=jax.random.key\(\d\)"):
        generate(tiny_model, PROMPTS[:, :4], NEW, key=key)


def test_a_raw_key_is_a_key(tiny_model):
    runs = [generate(tiny_model, PROMPTS[:, :4], NEW, key=make(3)) for make in (jax.random.key, jax.random.PRNGKey)]
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_under_an_outer_jit_an_unknown_id_shows_in_what_is_written(tiny_model, temperature):
    run = jax.jit(lambda tokens: generate(tiny_model, tokens, NEW, temperature=temperature, stop_token=0))
    tokens = jnp.stack([PROMPTS[0, :4], PROMPTS[1, :4].at[1].set(V)])
    out = np.asarray(run(tokens))
    np.testing.assert_array_equal(out[0], np.asarray(run(tokens.at[1].set(PROMPTS[1, :4])))[0])
    assert (out[0] >= 0).all()
    assert (out[1, 4:] == -1).all()
    with pytest.raises(UserError, match=r"tokens\[1, 1\] is 19"):
        tiny_model(out)


def test_an_empty_prompt_is_refused(tiny_model):
    with pytest.raises(UserError, match=r"tokens has shape \(2, 0\); give prompts \[B, L\]"):
        generate(tiny_model, PROMPTS[:, :0], NEW)


def test_one_program_serves_every_prompt_key_and_temperature(tiny_model):
    from minimoe.inference.generate import _generate

    def sample(tokens, seed, temperature):
        generate(tiny_model, tokens, NEW, temperature=temperature, top_p=0.9, key=jax.random.key(seed))
        return _generate._cache_size()

    once = sample(PROMPTS, 0, 1.0)
    assert sample(PROMPTS, 1, 0.5) == sample(PROMPTS[:, ::-1], 2, 2.0) == once
    assert sample(PROMPTS[:, :5], 0, 1.0) == once + 1, "another length is another program"
