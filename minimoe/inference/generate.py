"""Generation: prefill and decode in one compiled program. Axes: B batch, L prompt length, V vocabulary."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from minimoe.attention import Cache, KVCache
from minimoe.errors import UserError
from minimoe.model import MoETransformer

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


def generate(
    model: MoETransformer,
    tokens: Int[Array, "B L"],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | None = None,
    key: Array | None = None,
    cache: Callable[..., Cache] = KVCache.zeros,
) -> Int[Array, "B L+{max_new_tokens}"]:
    """Continues each prompt by ``max_new_tokens`` tokens.

    One compiled program per shape: prefill, then a loop that decodes one token a turn from the key/value cache. It
    ends early only when every sequence has produced ``stop_token``; places after it are filled with ``stop_token``.

    Args:
      model: any `MoETransformer`.
      tokens: prompts of equal length, ids ``[B, L]`` int32, L at least 1.
      max_new_tokens: N, at least 1; L + N at most the model's context length.
      temperature: divides the logits; 0 is greedy, equal logits going to the lower id.
      top_k: sample among the k likeliest. top_p: among the likeliest that reach this probability, in (0, 1].
      stop_token: the id that ends a sequence.
      key: `jax.random.key`; the default is ``jax.random.key(0)``, so equal calls give equal text.
      cache: builds the empty cache of a layer from (batch, size, kv_heads, head_dim, dtype); it must be hashable, and
        one that compares equal to an earlier one reuses the compiled program.

    Returns:
      Prompt and continuation, ``[B, L + N]`` int32.

    Raises:
      UserError: for a prompt that is empty or too long, or a setting outside its range.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> generate(model, jnp.array([[1, 2, 3]]), 5, temperature=0.0).shape
      (1, 8)
    """
    tokens = jnp.asarray(tokens)
    _check_tokens(model, tokens, max_new_tokens, stop_token)
    _check_sampling(temperature, top_k, top_p)
    tokens = tokens.astype(jnp.int32)
    key = jax.random.key(0) if key is None else key
    graphdef, state = nnx.split(model)
    return _generate(
        graphdef,
        state,
        tokens,
        key,
        jnp.float32(max(temperature, COLDEST) if temperature > 0 else 1.0),
        jnp.float32(1.0 if top_p is None else top_p),
        max_new_tokens=max_new_tokens,
        greedy=temperature == 0,
        top_k=top_k,
        use_top_p=top_p is not None and top_p < 1,
        stop_token=stop_token,
        make_cache=cache,
    )


def _check_tokens(model: MoETransformer, tokens: Array, max_new_tokens: int, stop_token: int | None) -> None:
    limit, vocab = model.config.context_length, model.config.vocab_size
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 1:
        raise UserError(f"tokens has shape {tuple(tokens.shape)}; give prompts [B, L] with at least one token each")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise UserError(f"tokens has dtype {tokens.dtype}; give token ids as integers")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab:
        raise UserError(f"token ids {low}..{high} are outside 0..{vocab - 1}; use the model's own tokenizer")
    if stop_token is not None and not 0 <= stop_token < vocab:
        raise UserError(f"stop_token={stop_token} is outside 0..{vocab - 1}; use the tokenizer's end-of-text id")
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be a whole number of at least 1")
    if tokens.shape[1] + max_new_tokens > limit:
        raise UserError(
            f"prompt of {tokens.shape[1]} tokens + max_new_tokens={max_new_tokens} is above context_length={limit}; "
            f"shorten the prompt or ask for at most {max(0, limit - tokens.shape[1])} new tokens"
        )


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature} must be finite, not negative; 0 is greedy, 1 samples as trained")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise UserError(f"top_k={top_k} must be a whole number of at least 1; leave it out to sample from all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p} must be in (0, 1]; leave it out to sample from all tokens")


@functools.partial(
    jax.jit, static_argnames=("graphdef", "max_new_tokens", "greedy", "top_k", "use_top_p", "stop_token", "make_cache")
)
def _generate(
    graphdef,
    state,
    tokens,
    key,
    temperature,
    top_p,
    *,
    max_new_tokens,
    greedy,
    top_k,
    use_top_p,
    stop_token,
    make_cache,
):
    model = nnx.merge(graphdef, state)
    batch, prompt = tokens.shape

    def pick(logits: Float[Array, "B V"], step) -> Int[Array, "B"]:
        if greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = filter_logits(logits / temperature, top_k, top_p if use_top_p else None)
        return jax.random.categorical(jax.random.fold_in(key, step), logits).astype(jnp.int32)

    def place(out, new, done, step):
        if stop_token is not None:
            new = jnp.where(done, stop_token, new)
            done = done | (new == stop_token)
        return jax.lax.dynamic_update_slice(out, new[:, None], (jnp.int32(0), prompt + step)), new, done

    fill = 0 if stop_token is None else stop_token
    out = jnp.full((batch, prompt + max_new_tokens), fill, jnp.int32)
    out = jax.lax.dynamic_update_slice(out, tokens, (0, 0))
    cache = model.init_cache(batch, prompt + max_new_tokens, make_cache)
    logits, _, cache = model.extend(tokens, cache, last_only=True)
    out, new, done = place(out, pick(logits[:, -1], 0), jnp.zeros(batch, bool), jnp.int32(0))

    def unfinished(carry):
        step, _, _, done, _ = carry
        return (step < max_new_tokens) & ~done.all()

    def decode(carry):
        step, out, new, done, cache = carry
        logits, _, cache = model.extend(new[:, None], cache)
        out, new, done = place(out, pick(logits[:, -1], step), done, step)
        return step + 1, out, new, done, cache

    return jax.lax.while_loop(unfinished, decode, (jnp.int32(1), out, new, done, cache))[1]
