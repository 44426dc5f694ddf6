"""The loops of `v4_oracle` are DeepSeek-V4 as Transformers computes it, and the comparison sees every part of it."""

from __future__ import annotations

import json

import numpy as np
import oracles
import pytest
import v4_oracle
import v4_transformers
from safetensors.numpy import load_file


@pytest.fixture(scope="module")
def fixture():
    """``(weights, settings, expected)`` of the committed model; Transformers wrote it."""
    folder = v4_transformers.FIXTURE
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = v4_oracle.published(load_file(folder / "model.safetensors"))
    return weights, settings, np.load(folder / "expected.npz")


def check_logits(found, expected):
    """Within 1e-5 of the spread of the logits."""
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.std(), rtol=0)


def check_everything(found, expected):
    """The logits, those of cached decoding in chunks, and the greedy continuation of the prompt."""
    check_logits(found, expected["logits"])
    check_logits(found, expected["chunked"])
    prompt = int(expected["prompt"])
    np.testing.assert_array_equal(found[prompt - 1 : -1].argmax(axis=1), expected["token_ids"][prompt:])


def test_the_loops_are_what_transformers_computes(fixture):
    weights, settings, expected = fixture
    assert set(settings["layer_types"]) == {
        f"{kind}_attention" for kind in ("sliding", "compressed_sparse", "heavily_compressed")
    }
    check_everything(v4_oracle.transformer(weights, expected["token_ids"], settings), expected)


def test_the_fixture_is_small_and_says_what_wrote_it():
    files = [*v4_transformers.FIXTURE.iterdir()]
    assert sum(path.stat().st_size for path in files) < 150_000
    versions = json.loads((v4_transformers.FIXTURE / "versions.json").read_text(encoding="utf-8"))
    assert {"transformers", "torch", "written_by"} <= set(versions)


WINDOW, COMPLETE, CHOOSE, FREQUENCIES = (
    getattr(v4_oracle, name) for name in ("window", "complete", "choose", "frequencies")
)
QUERIES, TURN, COMBINE, ENTRIES = (
    getattr(v4_oracle, name) for name in ("queries", "turn", "combine_weights", "entries")
)


def without_sink(scores, sink):
    return oracles.softmax(scores)


def without_yarn(rope, dims):
    return FREQUENCIES(rope | {"rope_type": "default"}, dims)


def without_query_norm(x, weights, config):
    q, latent = QUERIES(x, weights, config)
    return v4_oracle.linear(latent, weights, "wq_b").reshape(q.shape), latent


def best_of_all(scores, visible, count):
    """The future takes places among the best, and then is left out."""
    return [i for i in oracles.best(scores, count) if i < visible]


def bias_in_the_weights(scores, bias, experts, scale):
    return COMBINE(scores if bias is None else scores + bias, bias, experts, scale)


def uniform_in_hash_layers(scores, bias, experts, scale):
    return COMBINE(np.ones_like(scores) if bias is None else scores, bias, experts, scale)


def clamped_on_both_sides(row, gate_up, down, limit, product=np.matmul):
    gate, up = np.clip(np.split(product(row, gate_up), 2), -limit, limit)
    return product(gate * oracles.sigmoid(gate) * up, down)


def other_dims_turned(x, position, freqs):
    dims = 2 * len(freqs)
    return np.concatenate([TURN(x[..., :dims], position, freqs), x[..., dims:]], axis=-1)


def halves_turned(x, position, freqs):
    """Pairs ``(i, i + R/2)`` in place of neighbours."""
    order = np.arange(x.shape[-1])
    order[-2 * len(freqs) :] = order[-2 * len(freqs) :].reshape(2, -1).T.reshape(-1)
    out = np.empty(x.shape)
    out[..., order] = TURN(x[..., order], position, freqs)
    return out


def halves_exchanged(x, weights, name, ratio, overlap, freqs, eps):
    """The part of a token in its own entry for its part in the next one."""
    changed = dict(weights)
    for part in ("wkv.weight", "wgate.weight"):
        changed[f"{name}.{part}"] = np.concatenate(np.split(weights[f"{name}.{part}"], 2)[::-1])
    return ENTRIES(x, changed if overlap else weights, name, ratio, overlap, freqs, eps)


def without_overlap(x, weights, name, ratio, overlap, freqs, eps):
    own = dict(weights)
    if overlap:
        own |= {f"{name}.{part}": np.split(weights[f"{name}.{part}"], 2)[1] for part in ("wkv.weight", "wgate.weight")}
        own[f"{name}.ape"] = np.split(weights[f"{name}.ape"], 2, axis=1)[1]
    return ENTRIES(x, own, name, ratio, False, freqs, eps)


BROKEN = {
    "no sink": {"sink_softmax": without_sink},
    "window one too wide": {"window": lambda t, width: WINDOW(t, width + 1)},
    "window one too narrow": {"window": lambda t, width: WINDOW(t, width - 1)},
    "an entry is seen one token early": {"complete": lambda t, ratio: COMPLETE(t + 1, ratio)},
    "an entry is seen one token late": {"complete": lambda t, ratio: COMPLETE(t - 1, ratio)},
    "the output is not turned back": {"turn_back": lambda x, position, freqs: x},
    "YaRN left out": {"frequencies": without_yarn},
    "queries not normed": {"queries": without_query_norm},
    "indexer without ReLU": {"hits": lambda products: products},
    "top-k over entries of the future": {"choose": best_of_all},
    "all entries read": {"choose": lambda scores, visible, count: CHOOSE(scores, visible, visible)},
    "the first dims turned": {"turn": other_dims_turned},
    "halves turned": {"turn": halves_turned},
    "halves of the compressor exchanged": {"entries": halves_exchanged},
    "entries without overlap": {"entries": without_overlap},
    "uniform weights in hash layers": {"combine_weights": uniform_in_hash_layers},
    "the bias in the weights": {"combine_weights": bias_in_the_weights},
}


def refused(fixture, settings):
    """The parity test must fail, and clearly: by a hundredth of the spread of the logits, 1,000 times its tolerance."""
    weights, _, expected = fixture
    found = v4_oracle.transformer(weights, expected["token_ids"], settings)
    assert np.abs(found - expected["logits"]).max() > 0.01 * expected["logits"].std()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_variant_is_refused(fixture, monkeypatch, name):
    for function, broken in BROKEN[name].items():
        monkeypatch.setattr(v4_oracle, function, broken)
    refused(fixture, fixture[1])


def test_other_settings_and_a_clamp_on_both_sides_are_refused(fixture, monkeypatch):
    for name, value in (("hc_sinkhorn_iters", 1), ("index_topk", 3), ("routed_scaling_factor", 1.0)):
        refused(fixture, fixture[1] | {name: value})
    monkeypatch.setattr(oracles, "swiglu_ffn", clamped_on_both_sides)
    refused(fixture, fixture[1])


def seeds():
    """Two that are the same every time, and a fresh one."""
    return [1, 2, int(np.random.SeedSequence().generate_state(1)[0])]


@pytest.mark.live
@pytest.mark.parametrize("seed", seeds(), ids=["first", "second", "fresh"])  # workers draw apart: ids must agree
def test_transformers_agrees_on_models_of_other_sizes(seed, tmp_path):
    print(f"seed {seed}")
    sizes = v4_transformers.random_sizes(seed)
    model = v4_transformers.random_model(sizes, seed)
    expected = v4_transformers.computed(model, v4_transformers.random_prompt(sizes, seed), [1, 2, 5, 1, 8], layer=0)
    settings, weights = v4_transformers.saved(model, tmp_path)
    check_everything(v4_oracle.transformer(weights, expected["token_ids"], settings), expected)
