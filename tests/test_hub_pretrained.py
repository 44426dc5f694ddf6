"""Models that come with the package: they load without a network and score what their cards say."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from minimoe import load_pretrained
from minimoe.data import DOMAINS, documents, evaluation_documents
from minimoe.errors import UserError
from minimoe.hub import card, recorded_quality, resolve, shipped
from minimoe.hub.folder import read_config, sealed
from minimoe.hub.pretrained import WEIGHTS
from minimoe.training import evaluate


def test_small_is_there():
    assert "small" in shipped()


@pytest.fixture
def optimised():
    """Here running takes longer than compiling; the suite compiles the quick way (conftest.py)."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def table_of(name: str) -> dict[str, list[float]]:
    """Bits per byte by domain, quick and full, as the card prints them."""
    rows = re.findall(r"^\| (\w+) \| (\d\.\d{4}) \| (\d\.\d{4}) \|$", card(name), re.MULTILINE)
    return {domain: [float(quick), float(full)] for domain, quick, full in rows}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_scores_what_its_card_says(name, optimised):
    """All the text for the fastest. For each of the others two domains, in turn, which are as good a proof of its weights.

    The recipe v4 rounds activations too: there the last bit of a sum, which another batch or processor adds up in another
    order, can decide a code and then a route.
    """
    model, tokenizer, config = load_pretrained(name)
    assert model.config == config
    text = evaluation_documents(documents(split="val"), "quick")
    first = sorted(shipped()).index(name)
    chosen = DOMAINS if name == "nano" else [DOMAINS[(first + i) % len(DOMAINS)] for i in (0, 3)]
    close = 2e-3 if name.startswith("v4") else 2e-4
    quick = evaluate(model, [document for document in text if document.domain in chosen], tokenizer)
    assert quick.per_domain == pytest.approx({domain: table_of(name)[domain][0] for domain in chosen}, abs=close)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_card_agrees_with_itself_and_with_the_config(name):
    table, recorded = table_of(name), recorded_quality(name)
    mean, _ = table.pop("mean"), table.pop("pooled")
    assert set(table) == set(DOMAINS)
    assert np.mean(list(table.values()), axis=0) == pytest.approx(mean, abs=1e-4)
    assert mean == [round(recorded[protocol], 4) for protocol in ("quick", "full")]


@pytest.mark.parametrize("name", sorted(shipped()))
def test_the_config_vouches_for_itself(name):
    values = read_config(WEIGHTS / name)
    assert values == sealed(values)


def test_small_is_below_the_bar():
    """The design's: the mean of the domains, all validation text."""
    assert recorded_quality("small")["full"] < 1.70


def test_a_name_is_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, tokenizer, config, description = resolve("small")
    assert description == "shipped model small"
    assert tokenizer.vocab_size == config.vocab_size == model.config.vocab_size


@pytest.mark.parametrize("call", [load_pretrained, card])
def test_unknown_name_lists_the_known(call):
    with pytest.raises(UserError, match=r"no model 'smal' comes with the package; choose one of .*small"):
        call("smal")
