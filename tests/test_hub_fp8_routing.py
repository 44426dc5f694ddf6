"""FP8 read here and in Transformers: a large difference of a logit is a changed choice of an expert, nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minimoe.data import documents, evaluation_documents, load_tokenizer
from minimoe.hub import from_transformers, load_pretrained, to_transformers
from minimoe.model import copy_model
from minimoe.model.paths import named_leaves
from minimoe.moe import routing
from minimoe.moe.selectors import SELECTORS, Choice

LENGTH = 256
SMALL, LARGE = 0.1, 1.0  # differences of logits, whose spread is 3.4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return to_transformers(load_pretrained("nano")[0], tmp_path_factory.mktemp("fp8") / "nano", dtype="fp8")


@pytest.fixture(scope="module")
def ours(folder):
    return from_transformers(folder)


@pytest.fixture(scope="module")
def tokens():
    text = "".join(one.text for one in evaluation_documents(documents()) if one.domain == "math")
    return np.array([load_tokenizer("bpe2048").encode(text)[:LENGTH]], np.int32)


@pytest.fixture(scope="module")
def wanted(ours, tokens):
    logits, routing = jax.jit(lambda model, tokens: model(tokens))(ours, jnp.asarray(tokens))
    return np.asarray(logits), routing


def changes(mine: list[Any], others: list[Any]) -> np.ndarray:
    """Where the sets of experts differ, ``[layers, T]``."""
    return np.stack([(np.sort(a) != np.sort(b)).any(axis=1) for a, b in zip(mine, others, strict=True)])


def test_rounding_the_weights_is_small_until_it_changes_a_choice(ours, tokens, wanted, monkeypatch):
    """bfloat16 as Transformers rounds; then once more with the choices of the exact weights."""
    logits, mine = wanted
    rounded = copy_model(ours)
    for name, leaf in named_leaves(rounded).items():
        if not name.endswith("router.bias"):  # stays float32 there
            leaf[...] = leaf[...].astype("bfloat16").astype("float32")
    found, others = rounded(jnp.asarray(tokens))
    changed = changes([one.experts for one in mine], [one.experts for one in others])
    assert 1 <= changed.sum() <= 20
    assert np.abs(found - logits).max() > LARGE
    layer, token = map(int, np.argwhere(changed)[0])  # nothing below has changed yet
    best = np.sort(np.asarray(mine[layer].probs) + np.asarray(ours.layers[layer].ffn.router.bias[...]), axis=1)[:, ::-1]
    gap = best[:, 1] - best[:, 2]
    assert gap[token] < 0.01 * np.median(gap)

    given = iter(mine)
    selector = dataclasses.replace(SELECTORS["topk"], choose=lambda *_, **__: Choice(jnp.asarray(next(given).experts)))
    monkeypatch.setitem(routing.SELECTORS, ours.config.moe.select, selector)
    assert np.abs(rounded(jnp.asarray(tokens))[0] - logits).max() < SMALL


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
def test_transformers_differs_by_its_choices_alone(folder, tokens, wanted, monkeypatch):
    import torch
    import transformers
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter as Gate

    logits, mine = wanted
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval().float()
    chosen = []
    plain = Gate.forward

    def kept(gate, hidden):
        found = plain(gate, hidden)
        chosen.append(found[2].numpy())
        return found

    def imposed(gate, hidden):
        scores, _, _ = plain(gate, hidden)
        experts = torch.from_numpy(np.array(next(given).experts)).long()
        weights = scores.sigmoid().gather(1, experts)
        return scores, weights / weights.sum(dim=1, keepdim=True) * gate.routed_scaling_factor, experts

    def difference(forward):
        monkeypatch.setattr(Gate, "forward", forward)
        with torch.no_grad():
            return np.abs(theirs(torch.from_numpy(tokens).long()).logits.numpy() - logits).max()

    assert difference(kept) > LARGE
    assert changes([one.experts for one in mine], chosen).any()
    given = iter(mine)
    assert difference(imposed) < SMALL
