"""Token ids outside the vocabulary: an error where their values are known, NaN where they are not.

Under `jax.jit` no error can leave the program, so a wrong id must not look like a right one: whatever depends on it is
NaN. Float and quantized models, generation and hash routing keep this one rule.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

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
        return tokens.astype(jnp.int32)
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
