"""Answers to the exercises of lesson 06, right and wrong; see `exercise_answers`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Bytes.


def bytes_loop(context, ratios, indexed, window, entry, key):
    total = 0
    for ratio, index in zip(ratios, indexed, strict=True):
        total += min(context, window) * entry
        if ratio > 0:
            total += context // ratio * (entry + index * key)
    return total


def bytes_numpy(context, ratios, indexed, window, entry, key):
    ratios, indexed = np.array(ratios, np.int64), np.array(indexed, np.int64)
    entries = np.where(ratios > 0, context // np.maximum(ratios, 1), 0)
    return entry * (len(ratios) * min(context, window) + entries.sum()) + key * (entries * indexed).sum()


def bytes_with(recent=lambda n, w, r: min(n, w), number=lambda n, r: n // r, keys=lambda n, r, i: n // r * i):
    def answer(context, ratios, indexed, window, entry, key):
        total = 0
        for r, i in zip(ratios, indexed, strict=True):
            total += entry * recent(context, window, r)
            if r:
                total += entry * number(context, r) + key * keys(context, r, i)
        return total

    return answer


BYTES_RIGHT = [bytes_loop, bytes_numpy]
BYTES_WRONG = [
    (bytes_with(lambda n, w, r: 0 if r else min(n, w)), "only ratio 0 has a window"),
    (bytes_with(lambda n, w, r: 0), "no window"),
    (bytes_with(lambda n, w, r: n), "every token kept"),
    (bytes_with(lambda n, w, r: w), "a window of tokens that do not exist"),
    (bytes_with(keys=lambda n, r, i: n * i), "a key for every token"),
    (bytes_with(keys=lambda n, r, i: n // r), "an index in every layer"),
    (bytes_with(keys=lambda n, r, i: 0), "no index keys"),
    (bytes_with(lambda n, w, r: 2 * min(n, w), lambda n, r: 2 * (n // r)), "keys and values counted apart"),
    (bytes_with(number=lambda n, r: -(-n // r), keys=lambda n, r, i: -(-n // r) * i),
     "an entry for a block that is not complete"),
    (bytes_with(number=lambda n, r: n / r, keys=lambda n, r, i: n / r * i), "parts of an entry"),
    (lambda *a: bytes_loop(*a) + 1, "aspect:values"),
    (lambda *a: float(bytes_loop(*a)), "aspect:dtype"),
    (lambda *a: (bytes_loop(*a), 0), "aspect:structure"),
]  # fmt: skip

# Visible.


def visible_compare(length, ratio, window):
    query = jnp.arange(length)[:, None]
    tokens = query - jnp.arange(length)[None]
    return jnp.concatenate([(tokens >= 0) & (tokens < window), jnp.arange(length // ratio) < (query + 1) // ratio], 1)


def visible_bands(length, ratio, window):
    """A band matrix, and a block's column from its last token on."""
    recent = np.tril(np.ones((length, length), bool)) & ~np.tril(np.ones((length, length), bool), -window)
    entries = np.zeros((length, length // ratio), bool)
    for i in range(length // ratio):
        entries[ratio * (i + 1) - 1 :, i] = True
    return np.hstack([recent, entries])


def visible_with(recent=lambda q, t, w: (t <= q) & (t > q - w), entries=lambda q, i, r: (i + 1) * r <= q + 1):
    def answer(length, ratio, window):
        q, t, i = np.arange(length)[:, None], np.arange(length)[None], np.arange(length // ratio)[None]
        return np.concatenate([recent(q, t, window), entries(q, i, ratio)], axis=1)

    return answer


def visible_disjoint(length, ratio, window):
    mask = visible_bands(length, ratio, window)
    for query in range(length):
        mask[query, : (query + 1) // ratio * ratio] = False
    return mask


VISIBLE_RIGHT = [visible_compare, visible_bands]
VISIBLE_WRONG = [
    (visible_with(entries=lambda q, i, r: i * r <= q), "an entry seen as soon as it begins"),
    (visible_with(entries=lambda q, i, r: (i + 1) * r <= q + 2), "an entry one token early"),
    (visible_with(entries=lambda q, i, r: (i + 1) * r <= q), "an entry one token late"),
    (visible_with(entries=lambda q, i, r: np.full((len(q), i.shape[1]), True)), "every entry visible"),
    (visible_with(lambda q, t, w: (t <= q) & (t >= q - w)), "window one too long"),
    (visible_with(lambda q, t, w: (t < q) & (t > q - w)), "window without the query"),
    (visible_with(lambda q, t, w: (t < q) & (t >= q - w)), "window shifted back"),
    (visible_with(lambda q, t, w: t <= q), "no window"),
    (visible_with(lambda q, t, w: t > q - w), "the future is visible"),
    (visible_with(lambda q, t, w: (q <= t) & (q > t - w)), "the other way round"),
    (visible_disjoint, "covered tokens hidden"),
    (lambda *a: visible_bands(*a).astype(np.int32), "aspect:dtype"),
    (lambda *a: visible_bands(*a).T, "aspect:shape"),
    (lambda n, r, w: visible_bands(n, r, w)[:, :n], "aspect:shape"),
    (lambda *a: visible_bands(*a).tolist(), "aspect:structure"),
    (lambda *a: ~visible_bands(*a), "aspect:values"),
]  # fmt: skip

# Compress.


def cut(x, r):
    return x[: len(x) // r * r].reshape(-1, r, x.shape[1])


def compress_softmax(values, gates, bias):
    weights = jax.nn.softmax(cut(gates, len(bias)) + bias, axis=1)
    return (weights * cut(values, len(bias))).sum(axis=1)


def compress_einsum(values, gates, bias):
    """By hand, with the largest logit taken away."""
    logits = cut(gates, len(bias)) + bias[None]
    e = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=1, keepdims=True)))
    return jnp.einsum("mrc,mrc->mc", e, cut(values, len(bias))) / e.sum(axis=1)


def compress_with(weigh=lambda g, b: jax.nn.softmax(g + b, axis=1), blocks=cut):
    def answer(values, gates, bias):
        return (weigh(blocks(gates, len(bias)), bias) * blocks(values, len(bias))).sum(axis=1)

    return answer


def pad(x, r):
    return jnp.pad(x, ((0, -len(x) % r), (0, 0))).reshape(-1, r, x.shape[1])


COMPRESS_RIGHT = [compress_softmax, compress_einsum]
COMPRESS_WRONG = [
    (compress_with(lambda g, b: jnp.full_like(g, 1 / len(b))), "plain mean"),
    (compress_with(lambda g, b: jax.nn.softmax(g + b, axis=-1)), "softmax over the channels"),
    (compress_with(lambda g, b: jax.nn.softmax((g + b).reshape(-1, g.shape[2]), axis=0).reshape(g.shape)),
     "softmax over the whole text"),
    (compress_with(lambda g, b: jax.nn.softmax(g + b, axis=0)), "softmax over the blocks"),
    (compress_with(lambda g, b: jax.nn.softmax((g + b).mean(axis=-1, keepdims=True), axis=1)),
     "one gate for all channels"),
    (compress_with(lambda g, b: jax.nn.softmax(g, axis=1)), "no bias"),
    (compress_with(lambda g, b: jax.nn.softmax(g - b, axis=1)), "bias of the wrong sign"),
    (compress_with(lambda g, b: jax.nn.softmax(g, axis=1) + b), "bias after the softmax"),
    (compress_with(lambda g, b: jax.nn.sigmoid(g + b)), "weights that do not sum to 1"),
    (compress_with(lambda g, b: g + b), "gates as weights"),
    (compress_with(blocks=lambda x, r: x[: len(x) // r * r].reshape(r, -1, x.shape[1]).swapaxes(0, 1)),
     "tokens that lie apart"),
    (compress_with(blocks=lambda x, r: x[len(x) % r :].reshape(-1, r, x.shape[1])), "blocks counted from the end"),
    (compress_with(blocks=pad), "an entry for the tail"),
    (compress_with(lambda g, b: jax.nn.softmax(jnp.clip(g + b, -4100, 4100), axis=1)), "logits clipped"),
    (compress_with(lambda g, b: jnp.exp(g + b) / jnp.exp(g + b).sum(axis=1, keepdims=True)), "exp overflows"),
    (lambda v, g, b: compress_softmax(v, jax.lax.stop_gradient(g), b), "aspect:gradient zero"),
    (lambda v, g, b: compress_softmax(v, g, b).astype(jnp.bfloat16), "aspect:dtype"),
    (lambda v, g, b: compress_softmax(v, g, b).T, "aspect:shape"),
    (lambda v, g, b: compress_softmax(np.asarray(v), g, b), "aspect:jit"),
]  # fmt: skip

RIGHT = {"cache.bytes": BYTES_RIGHT, "cache.visible": VISIBLE_RIGHT, "cache.compress": COMPRESS_RIGHT}
WRONG = {"cache.bytes": BYTES_WRONG, "cache.visible": VISIBLE_WRONG, "cache.compress": COMPRESS_WRONG}
