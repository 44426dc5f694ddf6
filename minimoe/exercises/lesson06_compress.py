"""Lesson 06, third exercise: one entry out of a block of tokens, by a learnt weighted mean.

Axes: T tokens, C channels, M = T // r entries of r tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from minimoe.exercises.record import Arguments, Case, Exercise, Mistake, Output


def compress_oracle(
    values: Float[np.ndarray, "T C"], gates: Float[np.ndarray, "T C"], bias: Float[np.ndarray, "r C"]
) -> Float[np.ndarray, "M C"]:
    """Block by block and channel by channel."""
    ratio, channels = bias.shape
    entries = []
    for block in range(len(values) // ratio):
        entry = []
        for channel in range(channels):
            logits = [gates[block * ratio + place, channel] + bias[place, channel] for place in range(ratio)]
            weights = [np.exp(logit - max(logits)) for logit in logits]
            mean = sum(weights[place] * values[block * ratio + place, channel] for place in range(ratio)) / sum(weights)
            entry.append(mean)
        entries.append(entry)
    return np.array(entries).reshape(len(values) // ratio, channels)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def no_shift(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x.astype(np.float32))
    return e / e.sum(axis=axis, keepdims=True)


def pooling(
    weigh: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda gates, bias: softmax(gates + bias, 1),
    blocks: Callable[[np.ndarray, int], np.ndarray] = lambda x, ratio: x[: len(x) // ratio * ratio].reshape(
        -1, ratio, x.shape[1]
    ),
) -> Callable[..., Any]:
    """A mistaken pooling: other weights [M, r, C], or other blocks."""

    def outputs(values: np.ndarray, gates: np.ndarray, bias: np.ndarray) -> np.ndarray:
        values, gates, bias = (np.asarray(x, np.float64) for x in (values, gates, bias))
        ratio = len(bias)
        return np.asarray((weigh(blocks(gates, ratio), bias) * blocks(values, ratio)).sum(axis=1))

    return outputs


def padded(x: np.ndarray, ratio: int) -> np.ndarray:
    """The block that is not complete, filled with zeros."""
    return np.pad(x, ((0, -len(x) % ratio), (0, 0))).reshape(-1, ratio, x.shape[1])


def last_tokens(x: np.ndarray, ratio: int) -> np.ndarray:
    """Blocks counted from the end, so that the first tokens are left out."""
    return x[len(x) % ratio :].reshape(-1, ratio, x.shape[1])


def strided(x: np.ndarray, ratio: int) -> np.ndarray:
    """Tokens that lie far apart in one block."""
    return x[: len(x) // ratio * ratio].reshape(ratio, -1, x.shape[1]).swapaxes(0, 1)


def whole_text(gates: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return softmax((gates + bias).reshape(-1, gates.shape[2]), 0).reshape(gates.shape)


def pool_arguments(seed: int, tokens: int, channels: int, ratio: int) -> Arguments:
    rng = np.random.default_rng(seed)
    shapes = ((tokens, channels), (tokens, channels), (ratio, channels))
    values, gates, bias = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return values, gates, bias


def extreme_arguments() -> Arguments:
    """Gates near 10,000 in the first channel, near -10,000 in the second, and both in the third.

    They differ by little, so that several tokens of a block count. Logits are quarters: float32 adds without an error.
    """
    rng = np.random.default_rng(606)
    values = rng.normal(size=(8, 3))
    small = rng.integers(0, 5, (8, 3)) / 2
    gates = np.stack([1e4 - small[:, 0], small[:, 1] - 1e4, 1e4 - small[:, 2]], axis=1)
    gates[::2, 2] = -1e4
    bias = rng.integers(-4, 5, (4, 3)) / 4
    return values.astype(np.float32), gates.astype(np.float32), bias.astype(np.float32)


COMPRESS = Exercise(
    id="cache.compress",
    lesson=6,
    title="One cache entry out of a block of tokens",
    signature="compress(values, gates, bias)",
    task=(
        "The compressor of heavily compressed attention. Every r neighbouring tokens become one entry, a weighted mean. "
        "Each *channel* c has weights of its own, a softmax over the r places of the block:\n\n"
        "$$e_{ic}=\\sum_{p=0}^{r-1} w_{ipc}\\,v_{ir+p,\\,c},\\qquad "
        "w_{ipc}=\\frac{\\exp(g_{ir+p,\\,c}+b_{pc})}{\\sum_{q}\\exp(g_{ir+q,\\,c}+b_{qc})}$$\n\n"
        "`values` and `gates` `[T, C]` float32, computed from the tokens by two matrices; `bias` `[r, C]` float32, learnt, "
        "one number for each place in a block and each channel, so r is `len(bias)`. Gates may be as large as 10,000 in "
        "magnitude. Tokens after the last complete block are left out. Returns entries `[T // r, C]` float32."
    ),
    difficulty=3,
    minutes=20,
    points=10,
    hints=(
        "Three axes make it simple: block, place in the block, channel. Which one is summed?",
        "Cut to T // r * r tokens first, then reshape to [T // r, r, C]. Neighbours must end up in one block.",
        "The bias [r, C] is added to every block by broadcasting. jax.nn.softmax takes an axis and is safe for large "
        "numbers.",
    ),
    outputs=(Output("entries", "float32"),),
    oracle=compress_oracle,
    cases=(
        Case("first shape", lambda: pool_arguments(601, 8, 3, 4), gradient=True),
        Case("a tail that is left out", lambda: pool_arguments(602, 11, 4, 3), gradient=True),
        Case("blocks of one token", lambda: pool_arguments(603, 3, 2, 1)),
        Case("one block", lambda: pool_arguments(604, 6, 5, 6)),
        Case("no complete block", lambda: pool_arguments(605, 2, 3, 4)),
        Case("extreme inputs", extreme_arguments),
    ),
    mistakes=(
        Mistake(
            "plain mean",
            "all tokens of a block weigh the same. The gates decide what is worth keeping; without them a rare important "
            "token is drowned by its neighbours.",
            pooling(lambda gates, bias: np.full(gates.shape, 1 / len(bias))),
        ),
        Mistake(
            "softmax over the channels",
            "the weights of one *token* sum to 1 over its channels. They must sum to 1 over the places of a block, in each "
            "channel.",
            pooling(lambda gates, bias: softmax(gates + bias, 2)),
        ),
        Mistake(
            "softmax over the whole text",
            "the weights sum to 1 over all tokens. An entry would then depend on tokens outside its block, future ones too.",
            pooling(whole_text),
        ),
        Mistake(
            "softmax over the blocks",
            "tokens of different blocks compete for weight. The softmax runs over the places within one block.",
            pooling(lambda gates, bias: softmax(gates + bias, 0) if len(gates) else gates),
        ),
        Mistake(
            "one gate for all channels",
            "averages the gates over the channels. Each channel chooses its tokens for itself.",
            pooling(lambda gates, bias: softmax((gates + bias).mean(axis=2, keepdims=True), 1)),
        ),
        Mistake(
            "no bias",
            "leaves the bias out. It tells the first place of a block from the last.",
            pooling(lambda gates, bias: softmax(gates, 1)),
        ),
        Mistake(
            "bias of the wrong sign",
            "subtracts the bias.",
            pooling(lambda gates, bias: softmax(gates - bias, 1)),
        ),
        Mistake(
            "bias after the softmax",
            "adds the bias to the weights, which then no longer sum to 1. It is added to the gates.",
            pooling(lambda gates, bias: softmax(gates, 1) + bias),
        ),
        Mistake(
            "weights that do not sum to 1",
            "uses a sigmoid for each token alone. An entry is a mean: its weights sum to 1, whatever r is.",
            pooling(lambda gates, bias: 1 / (1 + np.exp(-(gates + bias)))),
        ),
        Mistake(
            "gates as weights",
            "multiplies by the gates themselves. A softmax makes weights of them.",
            pooling(lambda gates, bias: gates + bias),
        ),
        Mistake(
            "tokens that lie apart",
            "puts every (T // r)-th token into one block. Neighbours belong together: reshape to [T // r, r, C].",
            pooling(blocks=strided),
        ),
        Mistake(
            "blocks counted from the end",
            "drops the first tokens. Then every new token moves all blocks, and the cache would have to be made anew.",
            pooling(blocks=last_tokens),
        ),
        Mistake(
            "an entry for the tail",
            "makes an entry of the tokens after the last complete block. They wait until their block is complete.",
            pooling(blocks=padded),
        ),
        Mistake(
            "logits clipped",
            "cuts large logits off, and then tokens whose gates differ weigh the same. Only the differences within a "
            "block matter, however large the gates are.",
            pooling(lambda gates, bias: softmax(np.clip(gates + bias, -4100, 4100), 1)),
        ),
        Mistake(
            "exp overflows",
            "exp of a large gate is infinity, and infinity over infinity is NaN. A softmax does not change when the largest "
            "logit is subtracted first.",
            pooling(lambda gates, bias: no_shift(gates + bias, 1)),
        ),
    ),
    wrt=("values", "gates"),
)
