"""Ids outside the vocabulary, as input and as label: an error where their values are known, NaN where they are not.

Under `jax.jit` no error can leave the program, so a wrong id must not look like a right one: whatever depends on it is
NaN. Float and quantized models, generation, hash routing and all losses keep this one rule.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from minimoe.errors import UserError

TokenIds = Any  # what a caller may give: a JAX or NumPy array of any integer dtype, or nested lists of equal length


def as_token_ids(tokens: TokenIds, vocab_size: int, *, name: str = "tokens") -> Int[Array, "..."]:
    """Ids as int32, checked if their values are known.

    Args:
      tokens: an array of any integer dtype, or nested lists of equal length.
      vocab_size: V; ids are 0..V-1. name: of the argument, for messages.

    Raises:
      UserError: for ids that are not whole numbers, for lists of unequal length, and for an id outside the vocabulary,
        naming it and its place.
    """
    if isinstance(tokens, jax.core.Tracer):
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise UserError(f"{name} has dtype {tokens.dtype}; give token ids as integers")
        return _as_int32(tokens, vocab_size)
    try:
        values = np.asarray(tokens)
    except ValueError as error:
        raise UserError(
            f"{name} has rows of unequal length; minimoe.inference.continue_prompts takes such lists"
        ) from error
    if values.dtype.kind not in "iu" and values.size:
        raise UserError(f"{name} has dtype {values.dtype}; give token ids as integers")
    wrong = (values < 0) | (values >= vocab_size)
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise UserError(
            f"{name}{list(place) if place else ''} is {values[place]}, outside the vocabulary 0..{vocab_size - 1}; use the "
            "tokenizer that belongs to the model"
        )
    return tokens if isinstance(tokens, jax.Array) and tokens.dtype == jnp.int32 else jnp.asarray(values, jnp.int32)


def known_ids(tokens: Int[Array, "*T"], vocab_size: int) -> tuple[Int[Array, "*T"], Bool[Array, "*T"]]:
    """Ids that may be looked up, and which of the given ones were in the vocabulary."""
    known = (tokens >= 0) & (tokens < vocab_size)
    return jnp.where(known, tokens, 0), known


def as_labels(
    labels: TokenIds, vocab_size: int, where: Bool[Array, "*N"], *, owner: str
) -> tuple[Int[Array, "*N"], Bool[Array, "*N"]]:
    """Labels that may be looked up, and which positions must become NaN; see `spoil`.

    Where ``where`` is False, a label may be anything: -100, as other libraries mark padding, or the tokenizer's.

    Args:
      labels: of any integer dtype, or nested lists; in the shape of ``where``.
      vocab_size: V; ids are 0..V-1. where: which positions count. owner: who asks, for messages.

    Returns:
      int32 ids in 0..V-1, 0 where the label is no id; and True where a position counts although its label is no id.
      The second can be True only under `jax.jit`.

    Raises:
      UserError: for labels that are not integers, and, where values are known, for a label outside the vocabulary at a
        position that counts.

    Example:
      >>> labels, kept = jnp.array([3, -100]), jnp.array([True, True])
      >>> as_labels(labels, 8, labels >= 0, owner="lm_loss")[0].tolist()
      [3, 0]
      >>> as_labels(labels, 8, kept, owner="lm_loss")
      Traceback (most recent call last):
      minimoe.errors.UserError: lm_loss: the label at [1] is -100, not in 0..7; leave it out, as in where=(labels >= 0)
    """
    labels = labels if isinstance(labels, jax.core.Tracer) else np.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise UserError(f"{owner}: labels have dtype {labels.dtype}; give token ids as integers")
    if isinstance(labels, jax.core.Tracer):
        ids, known = known_ids(_as_int32(labels, vocab_size), vocab_size)
        return ids, where & ~known
    known = (labels >= 0) & (labels < vocab_size)
    ids, wrong = jnp.asarray(np.where(known, labels, 0), jnp.int32), where & ~known
    if not isinstance(wrong, jax.core.Tracer) and wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise UserError(
            f"{owner}: the label at {list(place)} is {labels[place]}, not in 0..{vocab_size - 1}; leave it out, as in "
            "where=(labels >= 0)"
        )
    return ids, wrong


def spoil(losses: Float[Array, "*N"], wrong: Bool[Array, "*N"]) -> Float[Array, "*N"]:
    """NaN where ``wrong``, in value and gradient; the others keep every bit."""
    return losses * jnp.where(wrong, jnp.nan, 1.0).astype(losses.dtype)


def _as_int32(ids: Integer[Array, "*T"], vocab_size: int) -> Int[Array, "*T"]:
    """As int32; a wide integer that is no id stays none, where a plain cast could wrap it into the vocabulary."""
    limits = jnp.iinfo(ids.dtype)
    if limits.max > jnp.iinfo(jnp.int32).max:
        ids = jnp.clip(ids, jnp.asarray(max(limits.min, -1), ids.dtype), jnp.asarray(vocab_size, ids.dtype))
    return ids.astype(jnp.int32)
