"""One softmax over a window of tokens, compressed entries and a sink; keys and values are the same rows.

    query at t, window of W = 4:

        entries 0 1 2 ...            tokens  t-3  t-2  t-1  t          sink
        [those that `visible` names] [the last W, itself included]    [a number a head: weight on nothing]
        `------------------------------- one softmax -----------------------------------'

    z_s = q . e_s / sqrt(H)          a_s = exp(z_s) / (sum_r exp(z_r) + exp(sink))          o = sum_s a_s e_s

Section 2.3 of the report on `DeepSeek-V4 <https://arxiv.org/abs/2606.19348>`_. The numbers of the equations that make
entries and choose among them are in `minimoe.attention.csa` and `minimoe.attention.hca`.

Tokens are cut in blocks of c queries. A block multiplies the rows before it and its own, not the whole sequence.

Axes: B batch, L queries, N heads, H head width, W window, S rows of tokens, E entries, J blocks of c queries.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def in_window(query: Int[Array, "..."], key: Int[Array, "..."], window: int) -> Bool[Array, "..."]:
    """Whether a query at one position sees a token at another: itself and the ``window - 1`` tokens before it."""
    return (key >= 0) & (key <= query) & (key > query - window)


def visible_entries(positions: Int[Array, "L"], entries: int, ratio: int) -> Bool[Array, "L E"]:
    """Entry i stands for tokens up to ``(i + 1) * ratio - 1``: the query at that position is the first to see it."""
    return jnp.arange(entries, dtype=jnp.int32)[None, :] < ((positions + 1) // ratio)[:, None]


def sink_softmax(
    close: Float[Array, "... N S"], far: Float[Array, "... N E"], sink: Float[Array, "N"] | None
) -> tuple[Float[Array, "... N S"], Float[Array, "... N E"], Float[Array, "... N 1"]]:
    """One softmax over S + E scores, not yet divided: ``e^(z - max z)`` of both, and their sum with that of the sink.

    The sink is one more score a head, whose weight goes to nothing; None has none. What the weights multiply is smaller
    than they are and is divided in their place, see `minimoe.attention.core`.
    """
    highest = jnp.maximum(close.max(axis=-1, keepdims=True), far.max(axis=-1, keepdims=True, initial=-jnp.inf))
    if sink is not None:
        sink = jnp.broadcast_to(sink.astype(jnp.float32)[:, None], highest.shape)
        highest = jnp.maximum(highest, sink)
    highest = jax.lax.stop_gradient(highest)
    close, far = jnp.exp(close - highest), jnp.exp(far - highest)
    total = close.sum(axis=-1, keepdims=True) + far.sum(axis=-1, keepdims=True)
    return close, far, total if sink is None else total + jnp.exp(sink - highest)


def attend(
    q: Float[Array, "B L N H"],
    rows: Float[Array, "B S H"],
    start: Int[Array, ""],
    window: int,
    sink: Float[Array, "N"] | None,
    entries: Float[Array, "B E H"] | Float[Array, "B L E H"],
    visible: Bool[Array, "B L E"],
) -> tuple[Float[Array, "B L N H"], Float[Array, "B L N E"]]:
    """What each query makes of its window and of the entries it may see, and the weight that it gives each entry.

    Args:
      q: queries at positions ``start .. start + L - 1``.
      rows: of the R tokens before them and of the L tokens themselves; R at least W, or all that came before.
      start: position of the first query. window: W. sink: a score a head, None for none.
      entries: compressed, the same for all queries or its own for each; E may be 0. visible: which each query sees.
    """
    batch, length, heads, width = q.shape
    before = rows.shape[1] - length
    block = max(1, min(before, length))
    blocks = -(-length // block)
    pad = blocks * block - length
    q = jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))).reshape(batch, blocks, block, heads, width)
    place = jnp.arange(blocks, dtype=jnp.int32)[:, None] * block + jnp.arange(before + block, dtype=jnp.int32)[None]
    near = jnp.pad(rows, ((0, 0), (0, pad), (0, 0)))[:, place]  # [B, J, R+c, H]
    at = start + jnp.arange(blocks * block, dtype=jnp.int32).reshape(blocks, block)
    seen = in_window(at[:, :, None], (start - before + place)[:, None, :], window)
    chosen = jnp.pad(visible, ((0, 0), (0, pad), (0, 0))).reshape(batch, blocks, block, visible.shape[2])

    each = "beh" if entries.ndim == 3 else "bjceh"
    if entries.ndim == 4:
        entries = jnp.pad(entries, ((0, 0), (0, pad), (0, 0), (0, 0))).reshape(*chosen.shape, width)

    def scores(equation: str, keys: Array, mask: Array) -> Array:
        found = jnp.einsum(equation, q, keys, preferred_element_type=jnp.float32) * width**-0.5
        return jnp.where(mask, found, -jnp.inf)

    close = scores("bjcnh,bjkh->bjcnk", near, seen[None, :, :, None, :])
    far = scores(f"bjcnh,{each}->bjcne", entries, chosen[:, :, :, None, :])
    close, far, total = sink_softmax(close, far, sink)
    out = jnp.einsum("bjcnk,bjkh->bjcnh", close.astype(rows.dtype), near, preferred_element_type=jnp.float32)
    out += jnp.einsum(f"bjcne,{each}->bjcnh", far.astype(rows.dtype), entries, preferred_element_type=jnp.float32)
    far /= total
    whole = ((out / total).astype(rows.dtype), far)
    out, far = (x.reshape(batch, blocks * block, heads, x.shape[-1])[:, :length] for x in whole)
    return out, far
