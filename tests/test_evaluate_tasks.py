"""The reasoning exam: a model that knows the answers gets them right, one that errs is told how often."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe import GroupedQueryConfig, ModelConfig, MoETransformer, UserError
from minimoe.data import ByteTokenizer, problem
from minimoe.training import evaluate_tasks

TOKENIZER = ByteTokenizer()
CONFIG = ModelConfig(
    vocab_size=257,
    d_model=4,
    num_layers=1,
    attention=GroupedQueryConfig(num_heads=1, num_kv_heads=1, head_dim=4),
    context_length=256,
    d_ff=4,
)
LEVELS, NUM = (1, 3), 6


class Oracle(MoETransformer):
    """Goes on with the first text of a table that begins as what it has read."""

    def __init__(self, texts):
        super().__init__(CONFIG, rngs=nnx.Rngs(0))
        table = np.full((len(texts), CONFIG.context_length), TOKENIZER.eot_id, np.int32)
        for row, text in zip(table, texts, strict=True):
            row[1 : 1 + len(text)] = TOKENIZER.encode(text)
        self.table = nnx.Variable(jnp.asarray(table))

    def init_cache(self, batch, size, make=None):
        return (jnp.zeros((batch, CONFIG.context_length), jnp.int32), jnp.int32(0))

    def extend(self, tokens, cache, *, last_only=False):
        read, count = cache
        read = read.at[:, count].set(tokens[:, 0])
        table = self.table[...]
        unread = jnp.arange(table.shape[1]) > count
        fits = ((read[:, None] == table[None]) | unread[None, None]).all(axis=-1)
        following = table[jnp.argmax(fits, axis=-1), count + 1]
        return nnx.one_hot(following, CONFIG.vocab_size)[:, None], (), (read, count + 1)


def asked(form, levels=LEVELS):
    return [problem(index, level, "val") for level in levels for index in range(NUM)]


@pytest.mark.parametrize("form", ["worked", "direct"])
def test_an_oracle_gets_everything_right(form):
    oracle = Oracle([one.text(form) for one in asked(form)])
    seen = []
    found = evaluate_tasks(
        oracle, TOKENIZER, levels=LEVELS, num=NUM, form=form, batch_size=5, progress=lambda *now: seen.append(now)
    )
    assert found.exact_match == {1: 1.0, 3: 1.0}
    assert found.mean_exact_match == 1.0
    assert found.step_validity == found.right_ways == dict.fromkeys(LEVELS, 1.0 if form == "worked" else 0.0)
    assert seen[-1] == (12, 12)
    assert found.to_record()["mean_exact_match"] == 1.0


def test_slips_are_counted_where_they_are():
    """At level 3 two answers of six are wrong after right steps, and one more has a wrong step and the right answer."""
    texts = [one.text() for one in asked("worked")]
    for index in (NUM, NUM + 1):
        texts[index] = texts[index].replace("\nA: ", "\nA: 1")
    head, steps, rest = texts[NUM + 2].partition("Steps: ")
    texts[NUM + 2] = head + steps + rest.replace("=", "=9", 1)
    found = evaluate_tasks(Oracle(texts), TOKENIZER, levels=LEVELS, num=NUM)
    assert found.exact_match == {1: 1.0, 3: pytest.approx(4 / 6)}
    assert found.step_validity == {1: 1.0, 3: pytest.approx(17 / 18)}
    assert found.right_ways == {1: 1.0, 3: pytest.approx(5 / 6)}


def test_refusals():
    model = MoETransformer(CONFIG.replace(context_length=64), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="at least one level"):
        evaluate_tasks(model, TOKENIZER, levels=())
    with pytest.raises(UserError, match="above context_length=64"):
        evaluate_tasks(model, TOKENIZER, num=1)
    with pytest.raises(UserError, match="form='spoken'"):
        evaluate_tasks(model, TOKENIZER, num=1, form="spoken")
