"""Speculative decoding: the head for multi-token prediction guesses a token, and one forward pass checks it and goes on.

::

    known       t_0 ... t_{p-1}     and a draft d for place p, drawn from q, which the head has said
    forward     [t_{p-1}, d]   ->   p_0 for place p, and p_1 for place p+1 if d stands there
    verify      d is taken with probability min(1, p_0(d) / q(d));                      (1)
                else place p is drawn from max(p_0 - q, 0), made to sum to 1            (2)
    go on       d taken: place p+1 is drawn from p_1, and both are kept; else one token, and what the
                caches hold of d is taken back
    draft       the head reads the new places and says the next q

Equations 1 and 2 together draw place p from p_0 whatever q is: the text has the distribution of the model alone. A bad
draft costs time, not quality. With temperature 0 both distributions are a single token: d is taken if it is the
likeliest, and the text is that of `minimoe.inference.generate`, up to logits that are equal but for rounding.

Each row of a batch goes on at its own pace, with caches of its own.

It is faster where two tokens go through the model in the time of one, since its weights are then read once. On a CPU a
small model computes longer for two tokens, and each turn pays for the head as well: ``minimoe bench decode`` tells.

Axes: B batch, S places of a row, V vocabulary.

References:
  Leviathan et al., `Fast Inference from Transformers via Speculative Decoding <https://arxiv.org/abs/2211.17192>`_.
  Chen et al., `Accelerating Large Language Model Decoding with Speculative Sampling <https://arxiv.org/abs/2302.01318>`_.
  DeepSeek-AI, `DeepSeek-V3 Technical Report <https://arxiv.org/abs/2412.19437>`_, section 5.4.3: drafts by this head.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from minimoe import checks
from minimoe.attention import Cache, KVCache
from minimoe.errors import UserError
from minimoe.inference.decoding import (
    NO_TOKEN,
    Sampling,
    check_key,
    check_stop_token,
    for_decoding,
    keys_of_rows,
    sampling,
)
from minimoe.inference.generate import check_prompts
from minimoe.layers.token_ids import TokenIds
from minimoe.model import MoETransformer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Speculation:
    """What `generate_speculative` wrote, and how often its drafts were right.

    Attributes:
      tokens: prompts and continuations, as `minimoe.inference.generate` returns them.
      new_tokens: written in each row, the stop token included and what fills the row after it left out.
      drafted, accepted: drafts of each row that were verified, and those that were taken.
    """

    tokens: Int[Array, "B S"]
    new_tokens: Int[Array, "B"]
    drafted: Int[Array, "B"]
    accepted: Int[Array, "B"]

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the drafts that were taken; None if there was none."""
        drafted = int(np.asarray(self.drafted).sum())
        return int(np.asarray(self.accepted).sum()) / drafted if drafted else None

    @property
    def tokens_per_forward(self) -> float:
        """New tokens of a row for each forward pass of the whole model, its prefill included; 1 without speculation."""
        forwards = int((np.asarray(self.drafted) + 1).sum())
        return int(np.asarray(self.new_tokens).sum()) / forwards


def generate_speculative(
    model: MoETransformer,
    tokens: TokenIds,
    max_new_tokens: Any,
    *,
    temperature: Any = 1.0,
    top_k: Any = None,
    top_p: Any = None,
    stop_token: Any = None,
    key: Any = None,
    cache: Callable[..., Cache] = KVCache.zeros,
) -> Speculation:
    """Continues each prompt, up to two tokens for one forward pass of the model.

    Args:
      model: with a head for multi-token prediction, ``config.mtp``; it should have been trained, or its drafts are wrong.
      tokens, max_new_tokens, temperature, top_k, top_p, stop_token, key, cache: as for `minimoe.inference.generate`. The
        same key draws another text of the same distribution. A cache without ``shortened`` costs a second forward pass.

    Returns:
      The text and the counts, see `Speculation`.

    Raises:
      UserError: as `minimoe.inference.generate` does, and for a model without the head.

    Example:
      >>> config = ModelConfig.preset("nano").replace(mtp=MTPConfig())
      >>> model, prompt = MoETransformer(config, rngs=nnx.Rngs(0)), jnp.array([[1, 2, 3]])
      >>> found = generate_speculative(model, prompt, 5, temperature=0.0)
      >>> bool((found.tokens == minimoe.generate(model, prompt, 5, temperature=0.0)).all())
      True
      >>> 1 <= found.tokens_per_forward <= 2
      True
    """
    if model.mtp is None:
        repair = "train it with config.mtp=MTPConfig(), or use minimoe.generate"
        raise UserError(f"the model has no head for multi-token prediction, which writes the drafts; {repair}")
    new = checks.whole("max_new_tokens", max_new_tokens)
    tokens = check_prompts(model, tokens, new)
    stop_token = None if stop_token is None else check_stop_token(stop_token, model.config.vocab_size)
    how = sampling(temperature, top_k, top_p)
    key, model = check_key(key), for_decoding(model)
    return _run(model, tokens, key, how, max_new_tokens=new, stop_token=stop_token, make=cache)


class Draft(NamedTuple):
    """A guess for the next place of one row, and the distribution it was drawn from."""

    token: Int[Array, ""]
    probs: Float[Array, "V"]


class Row(NamedTuple):
    """One row between two turns: ``step`` is the next place to fill, and the caches hold ``step - 1`` positions.

    ``caches`` are the arrays of both, the model's and the head's; a batch of rows has them with one axis more, which is
    no cache any more.
    """

    tokens: Int[Array, " S"]
    step: Int[Array, ""]
    done: Bool[Array, ""]
    draft: Draft
    caches: list[Array]
    drafted: Int[Array, ""]
    accepted: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "stop_token", "make"))
def _run(model, tokens, key, sampling, *, max_new_tokens, stop_token, make) -> Speculation:
    batch, prompt = tokens.shape
    size = prompt + max_new_tokens
    filled = jnp.full((batch, size), 0 if stop_token is None else stop_token, jnp.int32)
    filled = jax.lax.dynamic_update_slice(filled, tokens, (0, 0))
    keys = keys_of_rows(key, jnp.arange(batch, dtype=jnp.int32))
    turn_of = RowDecoder(model, sampling, prompt, stop_token, make)
    rows = each_row(turn_of.begin, filled, keys)
    turn = functools.partial(each_row, turn_of.turn)
    rows = jax.lax.while_loop(lambda rows: ~rows.done.all(), lambda rows: turn(rows, keys), rows)
    return Speculation(rows.tokens, rows.step - prompt, rows.drafted, rows.accepted)


@dataclasses.dataclass(frozen=True)
class RowDecoder:
    """Decodes one row. Its arrays have no batch axis; the model is called with a batch of 1."""

    model: MoETransformer
    sampling: Sampling
    prompt: int
    stop_token: int | None
    make: Callable[..., Cache]

    def begin(self, tokens: Int[Array, " S"], key: Array) -> Row:
        """Prefill: the first new token, and a draft for the one after it."""
        length = self.prompt
        trunk, head = self._empty(tokens.shape[0])
        output, trunk = self.model.extend_forward(tokens[None, :length], trunk, last_only=True)
        step = jnp.int32(length)
        new = self._pick(output.logits[0, -1], self._key(key, step))
        tokens, done = self._write(tokens, step, new)
        assert output.stream is not None  # extend_forward gives it
        logits, _, grown = self.model.look_ahead(
            output.stream, tokens[None, 1 : length + 1], cache=head, place=step - 1
        )
        draft = self._draft(logits[0, 0], self._key(key, step + 1))
        zero = jnp.zeros((), jnp.int32)
        return Row(tokens, step + 1, done, draft, jax.tree.leaves((trunk, grown)), zero, zero)

    def turn(self, row: Row, key: Array) -> Row:
        """One forward pass of two tokens: one or two new places. A row that is done stays as it is, but for its caches."""
        size = row.tokens.shape[0]
        step = jnp.minimum(row.step, size - 1)  # of a row that is full
        last = jax.lax.dynamic_slice_in_dim(row.tokens, step - 1, 1)
        fed = jnp.concatenate([last, row.draft.token[None]])[None]
        held, head_held = jax.tree.unflatten(jax.tree.structure(self._empty(size)), row.caches)
        output, trunk = self.model.extend_forward(fed, held)
        stream = output.stream
        assert stream is not None  # extend_forward gives it
        first, taken = self._verify(output.logits[0, 0], row.draft, self._key(key, step))
        second = self._pick(output.logits[0, 1], self._key(key, step + 1))

        tokens, done = self._write(row.tokens, step, first)
        both = taken & ~done
        more, over = self._write(tokens, jnp.minimum(step + 1, size - 1), second)
        tokens, done = jnp.where(both, more, tokens), jnp.where(both, over, done)
        kept = 1 + both.astype(jnp.int32)  # positions that the caches keep of the two

        trunk = _kept(trunk, held, kept, step, lambda cache: self.model.extend_forward(fed[:, :1], cache)[1])
        seen = jnp.stack([first, second])[None]
        ahead = functools.partial(self.model.look_ahead, cache=head_held)
        logits, _, head = ahead(stream, seen, place=kept - 1)
        head = _kept(head, head_held, kept, step, lambda _: ahead(stream[:, :1], seen[:, :1])[2])
        draft = self._draft(logits[0, 0], self._key(key, step + kept))

        caches = jax.tree.leaves((trunk, head))
        after = Row(tokens, step + kept, done, draft, caches, row.drafted + 1, row.accepted + taken.astype(jnp.int32))
        frozen = {name: _choose(row.done, getattr(row, name), getattr(after, name)) for name in SMALL}
        return after._replace(**frozen)

    def _empty(self, size: int) -> tuple[tuple[Cache, ...], Cache]:
        return self.model.init_cache(1, size, self.make), self.model.init_mtp_cache(1, size, self.make)

    def _key(self, key: Array, place: Int[Array, ""]) -> Array:
        """Of the draws for a place: it depends on how many new tokens stand before it."""
        return jax.random.fold_in(key, place - self.prompt)

    def _pick(self, logits: Float[Array, "V"], key: Array) -> Int[Array, ""]:
        return self.sampling.pick(logits[None], key[None])[0]

    def _draft(self, logits: Float[Array, "V"], key: Array) -> Draft:
        """A head whose logits are NaN guesses blindly: a draft must be an id, since the caches would keep its NaN."""
        logits = jnp.where(jnp.isnan(logits).any(), 0.0, logits)
        return Draft(self._pick(logits, jax.random.fold_in(key, 1)), self.sampling.probabilities(logits[None])[0])

    def _verify(self, logits: Float[Array, "V"], draft: Draft, key: Array) -> tuple[Int[Array, ""], Bool[Array, ""]]:
        """The token of the draft's place, and whether it is the draft: equations 1 and 2."""
        if self.sampling.greedy:
            token = self._pick(logits, key)
            return token, token == draft.token
        probs = self.sampling.probabilities(logits[None])[0]
        chance = jax.random.uniform(jax.random.fold_in(key, 2), ())
        taken = chance * draft.probs[draft.token] < probs[draft.token]
        rest = jnp.maximum(probs - draft.probs, 0.0)
        # Nothing is left only where both are alike but for rounding, and then the draft is taken but for rounding.
        rest = jnp.where(rest.sum() > 0, rest, probs)
        other = jax.random.categorical(jax.random.fold_in(key, 3), jnp.log(rest)).astype(jnp.int32)
        token = jnp.where(taken, draft.token, other)
        return jnp.where(jnp.isnan(logits).any(), NO_TOKEN, token), taken

    def _write(self, tokens: Int[Array, " S"], place: Int[Array, ""], new: Int[Array, ""]):
        """The row with ``new`` at ``place``, and whether it is done then."""
        full = place + 1 >= tokens.shape[0]
        stopped = jnp.zeros((), bool) if self.stop_token is None else new == self.stop_token
        return jax.lax.dynamic_update_slice_in_dim(tokens, new[None], place, axis=0), full | stopped


SMALL = ("tokens", "step", "done", "draft", "drafted", "accepted")  # what a row that is done must not change


def _choose(where: Bool[Array, ""], yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(where, a, b), yes, no)


def _kept(longer: Any, before: Any, count: Int[Array, ""], step: Int[Array, ""], one: Callable[[Any], Any]) -> Any:
    """Caches with ``count`` of the 2 positions that ``longer`` has more than ``before``, which has ``step - 1``.

    Some caches cannot give back what they held, such as a ring, whose oldest place was written over. ``one(before)``
    computes them with the first position alone: a second forward pass (of a single row, only if its draft was refused),
    and the answers are the same.
    """
    caches = jax.tree.leaves(longer, is_leaf=lambda part: isinstance(part, Cache))
    if all(hasattr(cache, "shortened") for cache in caches):
        shorten = lambda cache: cache.shortened(step - 1 + count)  # noqa: E731
        return jax.tree.map(shorten, longer, is_leaf=lambda part: isinstance(part, Cache))
    return jax.lax.cond(count == 2, lambda: longer, lambda: one(before))


def each_row(function: Callable[..., Any], *rows: Any) -> Any:
    """`jax.vmap`, but a single row is computed as it is: a condition then stays a condition, of which one side runs."""
    if jax.tree.leaves(rows)[0].shape[0] > 1:
        return jax.vmap(function)(*rows)
    only = function(*jax.tree.map(lambda array: array[0], rows))
    return jax.tree.map(lambda array: array[None], only)
