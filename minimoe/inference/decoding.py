"""The one loop that decodes, and how a next token is picked. Axes: B batch, S places of a row, V vocabulary."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from minimoe import checks
from minimoe.errors import UserError
from minimoe.model import MoETransformer
from minimoe.moe import experts_choose, without_drops

NO_TOKEN = -1  # where the logits are NaN there is no next token; every function refuses this id
COLDEST = 1e-4  # temperatures above 0 but below this would overflow the logits; they sample as this one does


def filter_logits(
    logits: Float[Array, "B V"], top_k: int | None = None, top_p: Float[Array, ""] | float | None = None
) -> Float[Array, "B V"]:
    """Sets all but the likeliest tokens to -inf.

    Args:
      logits: already divided by the temperature.
      top_k: keep the k largest (ties with the k-th are kept too).
      top_p: keep the smallest set of largest tokens whose probability reaches p, at least one token; computed after
        top_k (Holtzman et al., `nucleus sampling <https://arxiv.org/abs/1904.09751>`_).
    """
    if top_k is not None and top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits >= kth, logits, -jnp.inf)
    if top_p is not None:
        order = jnp.argsort(-logits, axis=-1)
        probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        keep_sorted = jnp.cumsum(probs, axis=-1) - probs < top_p  # the mass before this token is still short of p
        keep_sorted = keep_sorted.at[:, 0].set(True)
        keep = jnp.take_along_axis(keep_sorted, jnp.argsort(order, axis=-1), axis=-1)
        logits = jnp.where(keep, logits, -jnp.inf)
    return logits


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a next token is picked: the parts that decide the program are static, numbers are arrays.

    Attributes:
      greedy: the likeliest token, equal logits going to the lower id. top_k: as in `filter_logits`.
      use_top_p: whether ``top_p`` cuts anything off. temperature, top_p: float32 scalars.
    """

    greedy: bool = dataclasses.field(metadata={"static": True})
    top_k: int | None = dataclasses.field(metadata={"static": True})
    use_top_p: bool = dataclasses.field(metadata={"static": True})
    temperature: Float[Array, ""]
    top_p: Float[Array, ""]

    def pick(self, logits: Float[Array, "B V"], keys: Array) -> Int[Array, "B"]:
        """One token id a row, each drawn with its own key; `NO_TOKEN` where logits are NaN."""
        draw = jax.vmap(jax.random.categorical)
        picked = jnp.argmax(logits, axis=-1) if self.greedy else draw(keys, self._kept(logits))
        return jnp.where(jnp.isnan(logits).any(axis=-1), NO_TOKEN, picked.astype(jnp.int32))

    def probabilities(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """What `pick` draws from, if it draws; NaN where logits are."""
        return jax.nn.softmax(self._kept(logits), axis=-1)

    def _kept(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        return filter_logits(logits / self.temperature, self.top_k, self.top_p if self.use_top_p else None)


jax.tree_util.register_dataclass(Sampling)


def sampling(temperature: Any, top_k: Any = None, top_p: Any = None) -> Sampling:
    """`Sampling` from what a caller gives: Python, NumPy and JAX numbers.

    Raises:
      UserError: for a temperature that is negative or not finite, ``top_k`` below 1, ``top_p`` outside (0, 1].
    """
    hint = "0 is greedy, 1 samples as trained"
    heat = checks.number("temperature", temperature, 0, float("inf"), hint=hint)
    if top_k is not None:
        top_k = checks.whole("top_k", top_k, hint="leave it out to sample from all tokens")
    if top_p is not None:
        top_p = checks.number("top_p", top_p, 0, 1, ends="(]", hint="leave it out to sample from all tokens")
    warm = jnp.float32(max(heat, COLDEST) if heat > 0 else 1.0)
    share = jnp.float32(1.0 if top_p is None else top_p)
    return Sampling(heat == 0, top_k, top_p is not None and top_p < 1, warm, share)


def check_stop_token(stop_token: Any, vocab_size: int) -> int:
    """A stop token as an int.

    Raises:
      UserError: if it is no id of the vocabulary.
    """
    return checks.whole("stop_token", stop_token, 0, vocab_size - 1, hint="use the tokenizer's end-of-text id")


def check_key(key: Any) -> Array:
    """A key of `jax.random`; ``jax.random.key(0)`` if there is none.

    Raises:
      UserError: for anything else, such as a seed.
    """
    if key is None:
        return jax.random.key(0)
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.shape == ()
    raw = dtype == jnp.uint32 and key.ndim == 1  # as jax.random.PRNGKey gives
    if not typed and not raw:
        seed = key if isinstance(key, int) else 0
        raise UserError(f"key={key!r} must be one key of jax.random, not a seed; write key=jax.random.key({seed})")
    return key


def keys_of_rows(key: Array, rows: Int[Array, "B"]) -> Array:
    """One key a row, from its number in the call alone: what a row draws does not depend on the rows beside it."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def decode(model, rows, cache, first, ends, lengths, done, keys, sampling, stop_token):
    """Writes the rows on from place ``first``; the loop of `generate` and of `continue_prompts`.

    A turn feeds the token at place ``step - 1`` and fills place ``step``: with what stands there as long as a prompt goes
    on or once its row is done, else with a new token. It ends when every row is done or full.

    Args:
      model: a `MoETransformer`. cache: holds all tokens before place ``first - 1``.
      rows: ``[B, S]``: prompts, behind them what a row that is done is filled with.
      first: int32 scalar, 1..S. ends: place behind the last token that a row may get, ``[B]`` or a scalar.
      lengths: of the prompts, likewise. done: rows that get nothing more, ``[B]``.
      keys: of the rows, see `keys_of_rows`. sampling: a `Sampling`. stop_token: ends a row, if given.

    Returns:
      ``rows``.
    """
    size = rows.shape[1]

    def unfinished(carry):
        step, _, done, _ = carry
        return (step < size) & ~done.all()

    def turn(carry):
        step, rows, done, cache = carry
        last = jax.lax.dynamic_slice_in_dim(rows, step - 1, 1, axis=1)
        logits, _, cache = model.extend(last, cache)
        new = sampling.pick(logits[:, 0], keys_at(keys, step, lengths))
        rows, done = write(rows, done, step, new, ends, lengths, stop_token)
        return step + 1, rows, done, cache

    return jax.lax.while_loop(unfinished, turn, (first, rows, done, cache))[1]


def keys_at(keys: Array, step: Int[Array, ""], lengths: Int[Array, "..."]) -> Array:
    """The keys of the draws for place ``step``: each depends on how many new tokens its row has."""
    count = jnp.broadcast_to(jnp.maximum(step - lengths, 0), keys.shape[:1])
    return jax.vmap(jax.random.fold_in)(keys, count)


def write(rows, done, step, new, ends, lengths, stop_token):
    """``rows`` with new tokens at place ``step`` where their prompt is over, and which rows are done after it."""
    given = jax.lax.dynamic_slice_in_dim(rows, step, 1, axis=1)[:, 0]
    new = jnp.where((step < lengths) | done, given, new)
    if stop_token is not None:
        done = done | ((step >= lengths) & (new == stop_token))
    done = done | (step + 1 >= ends)
    return jax.lax.dynamic_update_slice_in_dim(rows, new[:, None], step, axis=1), done


def for_decoding(model: MoETransformer) -> MoETransformer:
    """The model as it decodes: see `minimoe.moe.without_drops`.

    Raises:
      UserError: for expert choice, where experts choose among all tokens of a batch, the future ones included.
    """
    if experts_choose(model):
        raise UserError(
            'select="expert_choice" cannot generate: what a token gets would depend on the other sequences of the batch and '
            'on tokens that are not written yet; train a model with select="topk"'
        )
    return without_drops(model)
