"""Many prompts of different lengths, continued by one compiled program. Axes: P prompts, B batch, S length, V vocabulary."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from minimoe.errors import UserError
from minimoe.inference.generate import COLDEST
from minimoe.model import MoETransformer


def continue_prompts(
    model: MoETransformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop_token: int,
    temperature: int | float = 1.0,
    key: Array | None = None,
    batch_size: int = 64,
    size: int | None = None,
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
      key: of `jax.random`; the default is ``jax.random.key(0)``.
      batch_size: B, prompts at a time; the last batch is filled up with copies.
      size: S, places a sequence; the longest prompt + N if not given. Calls with one B and S share a program.
      progress: called with (prompts done, prompts in all) after each batch.

    Returns:
      The new tokens of each prompt, ``stop_token`` last where the model said it.

    Raises:
      UserError: for an empty prompt, an id outside the vocabulary, or what does not fit in the context.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> new = continue_prompts(model, [[0, 5, 6], [0]], 4, stop_token=0, temperature=0)
      >>> all(1 <= len(tokens) <= 4 for tokens in new)
      True
    """
    if not prompts:
        return []
    longest = max(len(prompt) for prompt in prompts) + max_new_tokens
    _check(model, prompts, max_new_tokens, temperature, longest)
    size = longest if size is None else max(size, longest)
    key = jax.random.key(0) if key is None else key
    graphdef, state = nnx.split(model)
    batch_size = min(batch_size, len(prompts))
    found: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        chosen = list(prompts[start : start + batch_size])
        filled = chosen + chosen[:1] * (batch_size - len(chosen))
        lengths = np.array([len(prompt) for prompt in filled], np.int32)
        rows = np.full((batch_size, size), stop_token, np.int32)
        for row, prompt in zip(rows, filled, strict=True):
            row[: len(prompt)] = prompt
        out = _continue(
            graphdef,
            state,
            jnp.asarray(rows),
            jnp.asarray(lengths),
            jnp.int32(max_new_tokens),
            jax.random.fold_in(key, start),
            jnp.float32(max(temperature, COLDEST) if temperature > 0 else 1.0),
            greedy=temperature == 0,
            stop_token=stop_token,
        )
        for row, length in zip(np.asarray(out)[: len(chosen)].tolist(), lengths.tolist(), strict=False):
            new = row[length : length + max_new_tokens]
            found.append(new[: new.index(stop_token) + 1] if stop_token in new else new)
        if progress is not None:
            progress(len(found), len(prompts))
    return found


def _check(model, prompts, max_new_tokens, temperature, longest) -> None:
    limit, vocab = model.config.context_length, model.config.vocab_size
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be a whole number of at least 1")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature} must be finite, not negative; 0 is greedy, 1 samples as trained")
    if any(len(prompt) == 0 for prompt in prompts):
        raise UserError("a prompt holds no token; begin it with the end-of-text token")
    low, high = (edge(edge(prompt) for prompt in prompts) for edge in (min, max))
    if low < 0 or high >= vocab:
        raise UserError(f"token ids {low}..{high} are outside 0..{vocab - 1}; use the model's own tokenizer")
    if longest > limit:
        raise UserError(
            f"the longest prompt has {longest - max_new_tokens} tokens; with max_new_tokens={max_new_tokens} that is "
            f"above context_length={limit}; shorten the prompts or lower max_new_tokens"
        )


@functools.partial(jax.jit, static_argnames=("graphdef", "greedy", "stop_token"))
def _continue(graphdef, state, rows, lengths, max_new_tokens, key, temperature, *, greedy, stop_token):
    """``rows [B, S]`` with everything below ``lengths [B]`` kept and the rest written."""
    model = nnx.merge(graphdef, state)
    batch, size = rows.shape
    ends = jnp.minimum(lengths + max_new_tokens, size)

    def unfinished(carry):
        step, _, done, _ = carry
        return (step < size) & ~done.all()

    def decode(carry):
        step, rows, done, cache = carry
        last = jax.lax.dynamic_slice_in_dim(rows, step - 1, 1, axis=1)
        logits, _, cache = model.extend(last, cache)
        if greedy:
            new = jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32)
        else:
            new = jax.random.categorical(jax.random.fold_in(key, step), logits[:, 0] / temperature).astype(jnp.int32)
        given = jax.lax.dynamic_slice_in_dim(rows, step, 1, axis=1)[:, 0]
        new = jnp.where((step < lengths) | done, given, new)  # rows are filled with the stop token
        done = done | ((step >= lengths) & (new == stop_token)) | (step + 1 >= ends)
        return step + 1, jax.lax.dynamic_update_slice_in_dim(rows, new[:, None], step, axis=1), done, cache

    start = (jnp.int32(1), rows, jnp.zeros(batch, bool), model.init_cache(batch, size))
    return jax.lax.while_loop(unfinished, decode, start)[1]
