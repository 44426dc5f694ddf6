"""Speculative decoding writes what plain decoding writes: the same tokens if greedy, else the same distribution."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array, Float

from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, MoETransformer, UserError, generate
from minimoe.attention import (
    CompressedSparseConfig,
    HeavilyCompressedConfig,
    MultiHeadLatentConfig,
    SlidingWindowConfig,
)
from minimoe.config import LayerConfig, MTPConfig
from minimoe.inference import generate_speculative, speculative
from minimoe.layers import HyperConnectionConfig
from minimoe.quant import kv_cache, quantize_model

V, LIMIT = 7, 16
MOE = MoEConfig(d_model=8, d_expert=6, num_experts=4, top_k=2, num_shared_experts=1, score="sigmoid", dispatch="dense")
CONFIG = ModelConfig(
    vocab_size=V, d_model=8, num_layers=1, attention=GroupedQueryConfig(num_heads=2, num_kv_heads=1, head_dim=4),
    context_length=LIMIT, moe=MOE, mtp=MTPConfig(),
)  # fmt: skip
WINDOW = {"num_heads": 2, "head_dim": 4, "rope_dim": 2, "q_rank": 4, "window": 3, "out_groups": 1, "out_rank": 4}
V4 = CONFIG.replace(
    num_layers=2,
    pattern=(
        LayerConfig(CompressedSparseConfig(**WINDOW, ratio=2, index_heads=2, index_dim=4, index_top_k=2)),
        LayerConfig(HeavilyCompressedConfig(**WINDOW, ratio=4)),
    ),
    mtp=MTPConfig(LayerConfig(SlidingWindowConfig(**WINDOW))),
)
LATENT = MultiHeadLatentConfig(num_heads=2, kv_rank=6, nope_dim=4, rope_dim=4, v_dim=4)


def build(config: ModelConfig = CONFIG) -> MoETransformer:
    """Weights scaled up, so that logits differ by more than rounding."""
    model = MoETransformer(config, rngs=nnx.Rngs(1))
    nnx.update(model, jax.tree.map(lambda p: p * 3, nnx.state(model, nnx.Param)))
    return model


@pytest.fixture(scope="module")
def model() -> MoETransformer:
    return build()


def prompts(rows: int, length: int, seed: int = 0) -> Array:
    return jnp.asarray(np.random.default_rng(seed).integers(V, size=(rows, length)), jnp.int32)


@pytest.mark.parametrize(("length", "new"), [(1, LIMIT - 1), (5, 9), (11, 1), (11, 2)])
def test_greedy_text_is_that_of_plain_decoding(length, new, model):
    """Of 40 random prompts at once, up to the end of the context; drafts are taken and refused."""
    tokens = prompts(40, length)
    found = generate_speculative(model, tokens, new, temperature=0.0)
    np.testing.assert_array_equal(found.tokens, generate(model, tokens, new, temperature=0.0))
    np.testing.assert_array_equal(found.new_tokens, new)
    drafted, accepted = int(found.drafted.sum()), int(found.accepted.sum())
    if new > 2:
        assert 0 < accepted < drafted
        assert found.acceptance_rate == accepted / drafted
        assert found.tokens_per_forward == 40 * new / (40 + drafted) > 1
    if new == 1:
        assert (drafted, found.acceptance_rate, found.tokens_per_forward) == (0, None, 1.0)


KINDS = {
    "latent": (CONFIG.replace(attention=LATENT), {}),
    "another attention in the head": (CONFIG.replace(mtp=MTPConfig(LayerConfig(LATENT, d_ff=6))), {}),
    "streams": (CONFIG.replace(residual=HyperConnectionConfig(streams=2)), {}),
    "capacity": (CONFIG.replace_moe(dispatch="capacity", capacity_factor=0.5), {}),
    "codes, and a cache of codes": (CONFIG, {"cache": kv_cache("int8")}),
    "rings and compressed entries, which cannot be shortened": (V4, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_the_same_for_every_kind(kind):
    config, settings = KINDS[kind]
    model, tokens = build(config), prompts(12, 3)
    model = quantize_model(model, "int8") if "codes" in kind else model
    found = generate_speculative(model, tokens, LIMIT - 3, temperature=0.0, **settings)
    np.testing.assert_array_equal(found.tokens, generate(model, tokens, LIMIT - 3, temperature=0.0, **settings))
    assert 0 < int(found.accepted.sum()) < int(found.drafted.sum())


def test_rows_end_at_the_stop_token_and_are_filled_with_it(model):
    tokens, stop = prompts(40, 5), 0
    found = generate_speculative(model, tokens, 9, temperature=0.0, stop_token=stop)
    want = np.asarray(generate(model, tokens, 9, temperature=0.0, stop_token=stop))
    np.testing.assert_array_equal(found.tokens, want)
    stops = want[:, 5:] == stop
    ends = np.where(stops.any(axis=1), stops.argmax(axis=1) + 1, 9)
    np.testing.assert_array_equal(found.new_tokens, ends)
    assert len(set(ends.tolist())) > 2
    assert (np.asarray(found.drafted + found.accepted) >= ends - 1).all()
    assert (np.asarray(found.drafted) <= ends - 1).all(), "a row that is done drafts no more"


def chances(model, prompt, new: int, pick) -> np.ndarray:
    """The probability of each of the V^new continuations, in their order: one full forward pass of all of them."""
    continuations = np.array(list(itertools.product(range(V), repeat=new)), np.int32)
    rows = np.concatenate([np.repeat(prompt, len(continuations), axis=0), continuations], axis=1)
    logits = np.asarray(nnx.jit(lambda model, rows: model(rows)[0])(model, jnp.asarray(rows)), np.float64)
    product = np.ones(len(rows))
    for place in range(prompt.shape[1], rows.shape[1]):
        scores = pick(logits[:, place - 1])
        probs = np.exp(scores - scores.max(axis=1, keepdims=True))
        product *= (probs / probs.sum(axis=1, keepdims=True))[np.arange(len(rows)), rows[:, place]]
    assert product.sum() == pytest.approx(1)
    return product


def surprise(found, chance) -> float:
    """Chi-square of counts, in standard deviations from its mean; rare outcomes are one cell."""
    counts = np.bincount((np.asarray(found) * V ** np.arange(found.shape[1])[::-1]).sum(axis=1), minlength=len(chance))
    expected = chance * len(found)
    often = expected >= 5
    assert (counts[expected == 0] == 0).all()
    seen, want = (np.append(values[often], values[~often].sum()) for values in (counts, expected))
    seen, want = seen[want > 0], want[want > 0]
    degrees = len(want) - 1
    return float((np.square(seen - want) / want).sum() - degrees) / (2 * degrees) ** 0.5


SAMPLES, NEW = 6000, 3


@pytest.mark.parametrize("setting", [{"temperature": 1.0}, {"temperature": 0.6, "top_k": 3}], ids=str)
def test_samples_have_the_distribution_of_the_model(setting, model, monkeypatch):
    """6,000 continuations against the exact probability of each; a rule that takes every draft is found out."""
    prompt = prompts(1, 3, seed=2)

    def pick(logits):
        kth = np.sort(logits, axis=1)[:, -setting.get("top_k", V)][:, None]
        return np.where(logits >= kth, logits, -np.inf) / setting["temperature"]

    chance = chances(model, np.asarray(prompt), NEW, pick)
    sample = functools.partial(generate_speculative, model, jnp.repeat(prompt, SAMPLES, axis=0), NEW, **setting)
    found = sample(key=jax.random.key(3))
    assert 0.2 < found.acceptance_rate < 0.9
    assert abs(surprise(found.tokens[:, 3:], chance)) < 4
    if "top_k" in setting:
        return

    def gullible(self, logits: Float[Array, "V"], draft, key):
        return draft.token, jnp.ones((), bool)

    monkeypatch.setattr(speculative.RowDecoder, "_verify", gullible)
    speculative._run.clear_cache()
    wrong = sample(key=jax.random.key(3))
    speculative._run.clear_cache()
    assert wrong.acceptance_rate == 1
    assert surprise(wrong.tokens[:, 3:], chance) > 20


def test_what_a_row_draws_depends_on_the_key_and_its_number_alone(model):
    tokens = prompts(3, 4)
    runs = [np.asarray(generate_speculative(model, t, 8, key=jax.random.key(5)).tokens) for t in (tokens, tokens[:1])]
    np.testing.assert_array_equal(runs[0][:1], runs[1])
    other = np.asarray(generate_speculative(model, tokens, 8, key=jax.random.key(6)).tokens)
    assert (other != runs[0]).any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_under_an_outer_jit_an_unknown_id_shows_in_what_is_written(temperature, model):
    run = jax.jit(lambda tokens: generate_speculative(model, tokens, 4, temperature=temperature).tokens)
    tokens = prompts(2, 4)
    out = np.asarray(run(tokens.at[1, 1].set(V)))
    np.testing.assert_array_equal(out[0], np.asarray(run(tokens))[0])
    assert (out[1, 4:] == -1).all()


def test_a_head_of_nan_drafts_and_spoils_nothing(model):
    broken = nnx.clone(model)
    broken.mtp.norm.scale[...] = jnp.full_like(broken.mtp.norm.scale[...], jnp.nan)
    tokens = prompts(2, 4)
    found = generate_speculative(broken, tokens, 8, temperature=0.0)
    np.testing.assert_array_equal(found.tokens, generate(model, tokens, 8, temperature=0.0))


def test_what_cannot_be_is_refused(model):
    plain = build(CONFIG.replace(mtp=None))
    with pytest.raises(UserError, match=r"no head for multi-token prediction.*config\.mtp=MTPConfig\(\), or use"):
        generate_speculative(plain, prompts(1, 3), 4)
    with pytest.raises(UserError, match="above context_length=16"):
        generate_speculative(model, prompts(1, 3), LIMIT - 2)
    with pytest.raises(UserError, match="init_mtp_cache"):
        plain.init_mtp_cache(1, 4)
