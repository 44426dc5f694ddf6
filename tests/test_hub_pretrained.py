"""Models that come with the package: they load without a network and score what their cards say."""

from __future__ import annotations

import pytest

from minimoe import load_pretrained
from minimoe.data import documents, evaluation_documents
from minimoe.errors import UserError
from minimoe.hub import card, recorded_quality, resolve, shipped
from minimoe.training import evaluate


def test_small_is_there():
    assert "small" in shipped()


@pytest.mark.parametrize("name", sorted(shipped()))
def test_scores_what_its_card_says(name):
    model, tokenizer, config = load_pretrained(name)
    assert model.config == config
    quick = evaluate(model, evaluation_documents(documents(split="val"), "quick"), tokenizer)
    assert quick.bits_per_byte == pytest.approx(recorded_quality(name)["quick"], abs=2e-4)
    assert f"| mean | {recorded_quality(name)['quick']:.4f} | {recorded_quality(name)['full']:.4f} |" in card(name)


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
