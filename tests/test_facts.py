"""The book of facts, and what it says of a model that knows it, half of it, or nothing."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe.config import ModelConfig
from minimoe.data import ByteTokenizer, FactBook
from minimoe.errors import UserError
from minimoe.model import MoETransformer
from minimoe.training import RecallFacts, Recipe, RunConfig, evaluate_facts, train

TINY = ModelConfig.preset("nano").replace(vocab_size=257, d_model=128, num_layers=1)


class Knower(MoETransformer):
    """A stand-in for a model: sure of the entries it knows, and of the digit 0 in all others."""

    def __init__(self, book: FactBook, known: np.ndarray, sure: float):
        self.book, self.known, self.sure = nnx.static(book), nnx.static(tuple(known.tolist())), sure
        self.weight = nnx.Param(jnp.zeros(7))

    def __call__(self, tokens):
        entries = jnp.asarray(self.book.entries)
        letters = self.book.letters
        which = (tokens[:, None, :letters] == entries[None, :, :letters]).all(-1).argmax(1)
        knows = jnp.asarray(self.known)[which]
        said = jnp.where(knows[:, None], entries[which, 1:], ord("0"))
        digit = jnp.isin(jnp.arange(257), jnp.arange(ord("0"), ord("9") + 1))
        chosen = jax.nn.one_hot(said, 257, dtype=bool)
        others = jnp.where(digit, jnp.log((1 - self.sure) / 9), -jnp.inf)
        sure = jnp.where(chosen, jnp.log(self.sure), others)
        guess = jnp.where(digit, -jnp.log(10.0), -jnp.inf)
        return jnp.where(knows[:, None, None], sure, guess), ()


def test_a_book_is_a_function_of_its_arguments():
    assert (FactBook(50, 3).entries == FactBook(50, 3).entries).all()
    assert (FactBook(50, 3).entries != FactBook(50, 4).entries).any()
    assert FactBook(50, 3).fingerprint != FactBook(50, 4).fingerprint


@pytest.mark.parametrize(("size", "letters", "digits"), [(1, 1, 1), (26, 1, 3), (5000, 3, 3), (100, 13, 18)])
def test_names_differ_and_symbols_are_letters_and_digits(size, letters, digits):
    book = FactBook(size, letters=letters, digits=digits)
    assert book.entries.shape == (size, letters + digits)
    assert book.length == letters + digits - 1
    names = {book.text(index)[:letters] for index in range(size)}
    assert len(names) == size
    assert all(name.isalpha() and name.islower() for name in names)
    assert all(book.text(index)[letters:].isdigit() for index in range(size))
    assert book.asked.sum() == digits
    assert book.bits == pytest.approx(size * digits * math.log2(10))


def test_every_digit_is_as_likely_as_any_other():
    digits = FactBook(20_000).entries[:, 4:] - ord("0")
    share = np.bincount(digits.reshape(-1), minlength=10) / digits.size
    assert np.abs(share - 0.1).max() < 0.005  # 4.7 standard deviations


@pytest.mark.parametrize("batch_size", [1, 7, 12, 30])
def test_every_entry_once_an_epoch_whatever_the_batch(batch_size):
    book = FactBook(12, seed=5)
    steps = 60 // math.gcd(60, batch_size) if 60 % batch_size else 60 // batch_size
    rows = [book.batch(1, step, batch_size, book.length) for step in range(steps)]
    tokens = np.concatenate([batch.tokens for batch in rows])
    seen = [bytes(row.astype(np.uint8)) for row in tokens]
    for epoch in range(len(seen) // 12):
        assert len(set(seen[12 * epoch : 12 * epoch + 12])) == 12
    assert seen[:12] != seen[12:24]  # another order


def test_a_batch_is_entries_and_their_next_tokens():
    book = FactBook(9, letters=2, digits=3)
    batch = book.batch(0, 3, 4, 4)
    rows = np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)
    known = {tuple(entry) for entry in book.entries}
    assert all(tuple(row) in known for row in rows)
    assert batch.where.all()
    assert (batch.tokens[:, 1:] == batch.targets[:, :-1]).all()


def test_errors_name_the_repair():
    with pytest.raises(UserError, match="raise letters to 2"):
        FactBook(27, letters=1)
    with pytest.raises(UserError, match="context_length=7"):
        FactBook(5).batch(0, 0, 2, 256)
    for wrong in ({"size": 0}, {"size": 2, "letters": 14}, {"size": 2, "digits": 0}, {"size": 2, "seed": -1}):
        with pytest.raises(UserError):
            FactBook(**wrong)


@pytest.mark.parametrize(("known", "sure"), [(0, 0.99), (10, 0.99), (5, 0.5), (10, 0.999999)])
def test_recall_and_bits_of_a_model_that_knows_some(known, sure):
    book = FactBook(10, letters=2, digits=2)
    model = Knower(book, np.arange(10) < known, sure)
    found = evaluate_facts(model, book, batch_size=4)
    lucky = sum(entry.endswith("00") for entry in (book.text(i) for i in range(known, 10)))
    assert found.recalled == (known + lucky) / 10
    bits = known * 2 * (math.log2(10) + math.log2(sure))
    assert found.bits == pytest.approx(bits, rel=1e-4, abs=1e-4)
    assert found.bits_per_param == pytest.approx(bits / 7, rel=1e-4, abs=1e-4)
    assert found.right[:known].all()


def test_a_model_below_chance_holds_nothing():
    book = FactBook(3, letters=2, digits=2)
    model = Knower(book, np.ones(3, bool), 0.01)  # nearly sure of the wrong digits
    assert evaluate_facts(model, book).bits == 0.0


def test_a_small_book_is_learned_by_heart_and_names_cost_nothing():
    book = FactBook(64, letters=2, digits=2)
    run = RunConfig(
        TINY.replace(context_length=book.length),
        Recipe(steps=120, batch_size=64, warmup_steps=10),
        {"name": "facts"},
        "byte",
    )
    result = train(run, book, [], ByteTokenizer(), method=RecallFacts())
    assert evaluate_facts(result.model, book).recalled == 1.0
    assert result.records[-1]["loss"] < 0.1  # the letters of a name are random: their loss would be 3
    other = evaluate_facts(result.model, FactBook(64, seed=1, letters=2, digits=2))
    assert other.recalled < 0.2
    assert other.bits == 0.0
    assert result.run.method == {"name": "recall-facts"}


def test_recall_needs_a_book():
    from minimoe.data import TrainingData

    data = TrainingData(("a",), (np.arange(50, dtype=np.int32),), 0)
    run = RunConfig(TINY.replace(context_length=7), Recipe(steps=1, batch_size=1), {"name": "facts"}, "byte")
    with pytest.raises(UserError, match="pass one as data"):
        train(run, data, [], ByteTokenizer(), method=RecallFacts())
