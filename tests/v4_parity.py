"""What two tests ask of a DeepSeek-V4 of ours beside what Transformers computed: logits, text, gradients, chunks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def check(found, expected, share=1e-4):
    """Within a share of the spread."""
    np.testing.assert_allclose(found, expected, atol=share * np.std(expected), rtol=0)


def tokens_of(expected):
    return jnp.asarray(expected["token_ids"][None], jnp.int32)


def check_logits_and_text(model, expected):
    """Returns the gradient of one block, of the sum that `v4_transformers.computed` differentiates."""
    tokens, layer = tokens_of(expected), int(expected["layer"])

    def block(path, leaf):
        return path[:2] == ("layers", layer)

    graphdef, params, rest = nnx.split(model, nnx.All(nnx.Param, block), ...)

    def loss(params):
        logits = nnx.merge(graphdef, params, rest)(tokens)[0][0]
        weights = jnp.cos(jnp.arange(logits.size, dtype=jnp.float32)).reshape(logits.shape)
        return (weights * logits).sum(), logits

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    check(logits, expected["logits"])
    prompt = int(expected["prompt"])
    np.testing.assert_array_equal(logits[prompt - 1 : -1].argmax(axis=1), expected["token_ids"][prompt:])
    return gradient


def check_chunks(model, expected):
    """Decoding in the pieces that ``expected`` names."""
    step = jax.jit(lambda model, piece, cache: model.extend(piece, cache)[::2])
    tokens, start, pieces = tokens_of(expected), 0, []
    cache = model.init_cache(1, tokens.shape[1])
    for size in map(int, expected["chunks"]):
        logits, cache = step(model, tokens[:, start : start + size], cache)
        start += size
        pieces.append(logits[0])
    check(np.concatenate(pieces), expected["chunked"])
