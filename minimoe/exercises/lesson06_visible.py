"""Lesson 06, second exercise: which tokens and which compressed entries a query may see.

Axes: T tokens, N = T + T // ratio: the tokens, then the compressed entries.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool

from minimoe.exercises.record import Case, Exercise, Mistake, Output


def visible_oracle(length: int, ratio: int, window: int) -> Bool[np.ndarray, "T N"]:
    """Query by query: the last tokens, itself included, and the entries whose tokens have all come."""
    rows = []
    for query in range(length):
        recent = [query - window < token <= query for token in range(length)]
        entries = [ratio * entry + ratio - 1 <= query for entry in range(length // ratio)]
        rows.append(recent + entries)
    return np.array(rows)


Rule = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # of query [T, 1], position [1, N] and ratio or window


def seeing(
    recent: Rule = lambda query, token, window: (token <= query) & (token > query - window),
    complete: Rule = lambda query, entry, ratio: entry < (query + 1) // ratio,
    uncovered: bool = False,
) -> Callable[..., np.ndarray]:
    """A mistaken mask: another rule for recent tokens or for entries; or no recent token that an entry covers."""

    def outputs(length: int, ratio: int, window: int) -> np.ndarray:
        query, token = np.arange(length)[:, None], np.arange(length)[None]
        mask = recent(query, token, window)
        if uncovered:
            mask &= token >= (query + 1) // ratio * ratio
        return np.concatenate([mask, complete(query, np.arange(length // ratio)[None], ratio)], axis=1)

    return outputs


VISIBLE = Exercise(
    id="cache.visible",
    lesson=6,
    title="What a query sees of a compressed cache",
    signature="visible(length, ratio, window)",
    task=(
        "Write the mask of heavily compressed attention. The query at position t (from 0) sees the last `window` tokens, "
        "itself among them. It also sees every compressed entry that is complete. Entry i pools the tokens i*`ratio` to "
        "i*`ratio` + `ratio` - 1. An entry is complete for a query when all its tokens have come; the query's own position "
        "has come. Recent tokens stay visible when an entry covers them too.\n\n"
        "Takes three ints: `length` T, `ratio` and `window`, all at least 1. Returns a mask `[T, T + T // ratio]` of bool: "
        "tokens first, then entries, True where the query sees it."
    ),
    difficulty=2,
    minutes=15,
    points=10,
    hints=(
        "Draw it for 8 tokens, ratio 4 and window 3. At which query does entry 0 appear?",
        "Compare a column of queries, [T, 1], with a row of positions, [1, T] or [1, M].",
        "After query t, t + 1 tokens have come. How many complete blocks are in t + 1 tokens? Entries are numbered from 0.",
    ),
    outputs=(Output("mask", "bool"),),
    oracle=visible_oracle,
    cases=(
        Case("first shape", lambda: (12, 4, 3)),
        Case("a length that the ratio does not divide", lambda: (11, 3, 5)),
        Case("no entry is complete", lambda: (4, 6, 2)),
        Case("window longer than the text", lambda: (9, 2, 20)),
        Case("each token alone", lambda: (6, 1, 1)),
        Case("one token", lambda: (1, 1, 1)),
    ),
    mistakes=(
        Mistake(
            "an entry seen as soon as it begins",
            "shows an entry to queries that stand inside its block. The entry pools tokens that come after them: the model "
            "would see the future.",
            seeing(complete=lambda query, entry, ratio: entry * ratio <= query),
        ),
        Mistake(
            "an entry one token early",
            "shows an entry one query before its last token has come.",
            seeing(complete=lambda query, entry, ratio: entry < (query + 2) // ratio),
        ),
        Mistake(
            "an entry one token late",
            "hides an entry from the query that completes it. That query's own token is the last of the block, and it may "
            "see itself.",
            seeing(complete=lambda query, entry, ratio: entry < query // ratio),
        ),
        Mistake(
            "every entry visible",
            "shows all entries to all queries, future ones too.",
            seeing(complete=lambda query, entry, ratio: np.ones((len(query), entry.shape[1]), bool)),
        ),
        Mistake(
            "window one too long",
            "the window holds one token too many: the query itself counts as one of them.",
            seeing(lambda query, token, window: (token <= query) & (token >= query - window)),
        ),
        Mistake(
            "window without the query",
            "the query does not see its own token, which is the last of the window.",
            seeing(lambda query, token, window: (token < query) & (token > query - window)),
        ),
        Mistake(
            "window shifted back",
            "the window ends before the query. It holds the last tokens with the query itself among them.",
            seeing(lambda query, token, window: (token < query) & (token >= query - window)),
        ),
        Mistake(
            "no window",
            "every earlier token is visible: that is ordinary attention, and nothing can be dropped from the cache.",
            seeing(lambda query, token, window: token <= query),
        ),
        Mistake(
            "the future is visible",
            "tokens after the query are visible: the window has no upper end.",
            seeing(lambda query, token, window: token > query - window),
        ),
        Mistake(
            "the other way round",
            "rows are queries and columns are what they see; this mask has them exchanged among the tokens.",
            seeing(lambda query, token, window: (query <= token) & (query > token - window)),
        ),
        Mistake(
            "covered tokens hidden",
            "hides recent tokens whose block is complete. The window does not depend on the entries: both are kept.",
            seeing(uncovered=True),
        ),
    ),
    jit=False,
)
