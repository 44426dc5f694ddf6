"""Many prompts of different lengths, continued by one compiled program. Axes: P prompts, B batch, S length, V vocabulary."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minimoe import checks
from minimoe.errors import UserError
from minimoe.inference.decoding import (
    NO_TOKEN,
    check_key,
    check_stop_token,
    decode,
    for_decoding,
    keys_of_rows,
    sampling,
)
from minimoe.layers.token_ids import TokenIds, as_token_ids
from minimoe.model import MoETransformer


def continue_prompts(
    model: MoETransformer,
    prompts: Sequence[TokenIds],
    max_new_tokens: Any,
    *,
    stop_token: Any,
    temperature: Any = 1.0,
    key: Any = None,
    batch_size: Any = 64,
    size: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continues each prompt until ``stop_token``, by ``max_new_tokens`` tokens at most.

    `minimoe.inference.generate` wants prompts of one length and is compiled for each length anew. Here a sequence is fed
    token by token from its first, and what the model says is ignored as long as the prompt goes on: a few more decoding
    steps, one program, and no padding that a model would see.

    Args:
      model: any `MoETransformer`.
      prompts: token ids, at least one each, the end-of-text token first if a document begins there.
      max_new_tokens: N, at least 1; prompt + N at most the model's context length.
      stop_token: ends a sequence.
      temperature: 0 is greedy, equal logits going to the lower id.
      key: of `jax.random`; the default is ``jax.random.key(0)``. What a prompt draws depends on the key and the prompt's
        place in the list, not on ``batch_size``; it is what `minimoe.inference.generate` draws for a row of that number.
      batch_size: B, prompts at a time; the last batch is filled up with copies.
      size: S, places a sequence, at most the context length; the longest prompt + N if not given. Calls with one B and S
        share a program.
      progress: called with (prompts done, prompts in all) after each batch.

    Returns:
      The new tokens of each prompt, ``stop_token`` last where the model said it.

    Raises:
      UserError: for an empty prompt, an id outside the vocabulary, what does not fit in the context, or a model whose
        logits are NaN.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> new = continue_prompts(model, [[0, 5, 6], [0]], 4, stop_token=0, temperature=0)
      >>> all(1 <= len(tokens) <= 4 for tokens in new)
      True
    """
    new_tokens, batch_size = checks.whole("max_new_tokens", max_new_tokens), checks.whole("batch_size", batch_size)
    stop = check_stop_token(stop_token, model.config.vocab_size)
    how = sampling(temperature)
    if not len(prompts):
        return []
    ids = _checked(model, prompts, new_tokens)
    longest = max(map(len, ids)) + new_tokens
    limit = model.config.context_length
    hint = "that is the model's context_length"
    size = longest if size is None else max(checks.whole("size", size, most=limit, hint=hint), longest)
    key = check_key(key)
    model = for_decoding(model)
    batch_size = min(batch_size, len(ids))
    found: list[list[int]] = []
    for start in range(0, len(ids), batch_size):
        chosen = ids[start : start + batch_size]
        rows, lengths = _filled(chosen, batch_size, size, stop)
        keys = keys_of_rows(key, start + jnp.arange(batch_size, dtype=jnp.int32))
        out = _continue(model, rows, lengths, jnp.int32(new_tokens), keys, how, stop_token=stop)
        for row, prompt in zip(np.asarray(out).tolist(), chosen, strict=False):
            new = row[len(prompt) : len(prompt) + new_tokens]
            if NO_TOKEN in new:
                raise UserError(f"the model's logits for prompt {len(found)} are NaN; check its weights")
            found.append(new[: new.index(stop) + 1] if stop in new else new)
        if progress is not None:
            progress(len(found), len(ids))
    return found


def _filled(prompts: list[np.ndarray], batch_size: int, size: int, fill: int) -> tuple[jax.Array, jax.Array]:
    """``[B, S]``: a prompt a row, then ``fill``; the last rows copy the first prompt. And the prompts' lengths, ``[B]``."""
    prompts = prompts + prompts[:1] * (batch_size - len(prompts))
    rows = np.full((batch_size, size), fill, np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.asarray(rows), jnp.array([len(prompt) for prompt in prompts], jnp.int32)


def _checked(model: MoETransformer, prompts: Sequence[TokenIds], new: int) -> list[np.ndarray]:
    """The prompts as arrays of ids; none is empty, and each has room for ``new`` tokens more."""
    limit, vocab = model.config.context_length, model.config.vocab_size
    checked = [
        np.asarray(as_token_ids(np.asarray(prompt), vocab, name=f"prompt {number}"))
        for number, prompt in enumerate(prompts)
    ]
    for number, prompt in enumerate(checked):
        if prompt.ndim != 1 or not prompt.size:
            what = "holds no token" if not prompt.size else f"has shape {prompt.shape}, not that of a list of ids"
            raise UserError(f"prompt {number} {what}; begin it with the end-of-text token")
    longest = max(map(len, checked))
    if longest + new > limit:
        raise UserError(
            f"the longest prompt has {longest} tokens; with max_new_tokens={new} that is "
            f"above context_length={limit}; shorten the prompts or lower max_new_tokens"
        )
    return checked


@functools.partial(jax.jit, static_argnames=("stop_token",))
def _continue(model, rows, lengths, max_new_tokens, keys, sampling, *, stop_token):
    """``rows [B, S]`` with everything below ``lengths [B]`` kept and the rest written."""
    batch, size = rows.shape
    ends = jnp.minimum(lengths + max_new_tokens, size)
    none, cache = jnp.zeros(batch, bool), model.init_cache(batch, size)
    return decode(model, rows, cache, jnp.int32(1), ends, lengths, none, keys, sampling, stop_token)
