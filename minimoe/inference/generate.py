"""Generation: prefill and decode in one compiled program. Axes: B batch, L prompt length, V vocabulary."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from minimoe import checks
from minimoe.attention import Cache, KVCache
from minimoe.errors import UserError
from minimoe.inference.decoding import (
    check_key,
    check_stop_token,
    decode,
    for_decoding,
    keys_at,
    keys_of_rows,
    sampling,
    write,
)
from minimoe.layers.token_ids import TokenIds, as_token_ids
from minimoe.model import MoETransformer


def generate(
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
) -> Int[Array, "B S"]:
    """Continues each prompt by ``max_new_tokens`` tokens.

    One compiled program per shape: prefill, then a loop that decodes one token a turn from the key/value cache. It
    ends early only when every sequence has produced ``stop_token``; places after it are filled with ``stop_token``.

    Args:
      model: any `MoETransformer`.
      tokens: prompts of equal length, ids ``[B, L]`` of any integer dtype, or lists; L at least 1. For prompts of different
        lengths there is `minimoe.inference.continue_prompts`.
      max_new_tokens: N, at least 1; L + N at most the model's context length. Numbers may be Python's, NumPy's or JAX's.
      temperature: divides the logits; 0 is greedy, equal logits going to the lower id.
      top_k: sample among the k likeliest. top_p: among the likeliest that reach this probability, in (0, 1].
      stop_token: the id that ends a sequence.
      key: `jax.random.key`; the default is ``jax.random.key(0)``, so equal calls give equal text. What a row draws depends
        on the key and the row's number, not on the rows beside it.
      cache: builds the empty cache of a layer from (batch, size, kv_heads, head_dim, dtype); it must be hashable, and
        one that compares equal to an earlier one reuses the compiled program.

    Returns:
      Prompt and continuation, ``[B, L + N]`` int32. Inside an outer `jax.jit`, where ids cannot be checked, a row with
      an id outside the vocabulary goes on with -1, and so does every row of a model whose logits are NaN.

    Raises:
      UserError: for a prompt that is empty or too long, an id outside the vocabulary, or a setting outside its range.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> generate(model, jnp.array([[1, 2, 3]]), 5, temperature=0.0).shape
      (1, 8)
    """
    new = checks.whole("max_new_tokens", max_new_tokens)
    tokens = check_prompts(model, tokens, new)
    stop_token = None if stop_token is None else check_stop_token(stop_token, model.config.vocab_size)
    how = sampling(temperature, top_k, top_p)
    key = check_key(key)
    model = for_decoding(model)
    return _generate(model, tokens, key, how, max_new_tokens=new, stop_token=stop_token, make_cache=cache)


def check_prompts(model: MoETransformer, tokens: TokenIds, max_new_tokens: int) -> Int[Array, "B L"]:
    """Prompts of one length as an array of ids, with room for what is to follow.

    Raises:
      UserError: for a prompt that is empty or too long, or an id outside the vocabulary.
    """
    limit, vocab = model.config.context_length, model.config.vocab_size
    tokens = as_token_ids(tokens, vocab)
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 1:
        raise UserError(f"tokens has shape {tuple(tokens.shape)}; give prompts [B, L] with at least one token each")
    if tokens.shape[1] + max_new_tokens > limit:
        raise UserError(
            f"prompt of {tokens.shape[1]} tokens + max_new_tokens={max_new_tokens} is above context_length={limit}; "
            f"shorten the prompt or ask for at most {max(0, limit - tokens.shape[1])} new tokens"
        )
    return tokens


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "stop_token", "make_cache"))
def _generate(model, tokens, key, sampling, *, max_new_tokens, stop_token, make_cache):
    batch, prompt = tokens.shape
    size = prompt + max_new_tokens
    rows = jnp.full((batch, size), 0 if stop_token is None else stop_token, jnp.int32)
    rows = jax.lax.dynamic_update_slice(rows, tokens, (0, 0))
    cache = model.init_cache(batch, size, make_cache)
    logits, _, cache = model.extend(tokens, cache, last_only=True)
    first, ends, lengths = jnp.int32(prompt), jnp.int32(size), jnp.int32(prompt)
    keys = keys_of_rows(key, jnp.arange(batch, dtype=jnp.int32))
    new = sampling.pick(logits[:, -1], keys_at(keys, first, lengths))
    rows, done = write(rows, jnp.zeros(batch, bool), first, new, ends, lengths, stop_token)
    return decode(model, rows, cache, first + 1, ends, lengths, done, keys, sampling, stop_token)
