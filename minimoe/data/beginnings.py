"""Prompts of one length from the beginnings of documents. Axes: B prompts, L tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from minimoe.data.corpus import Document
from minimoe.data.tokenizer import Tokenizer
from minimoe.errors import UserError

LETTERS = 16  # of a document for each token wanted: more than a token has


def beginnings(documents: Sequence[Document], tokenizer: Tokenizer, count: int, length: int) -> Int[np.ndarray, "B L"]:
    """The first ``length`` tokens of ``count`` documents, the end-of-text token first, one of each domain in turn.

    Raises:
      UserError: if there are not that many documents of that length.

    Example:
      >>> text = [Document("a", "val", "1", "hello"), Document("a", "val", "2", "world"), Document("b", "val", "3", "!!!")]
      >>> beginnings(text, ByteTokenizer(), 2, 3)[:, 1:].tolist()
      [[104, 101], [33, 33]]
    """
    by_domain: dict[str, list[list[int]]] = {}
    for document in documents:
        ids = [tokenizer.eot_id, *tokenizer.encode(document.text[: LETTERS * length])]
        if len(ids) >= length:
            by_domain.setdefault(document.domain, []).append(ids[:length])
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_domain.values()))
    found = [ids for ids in in_turn if ids is not None][:count]
    if len(found) < count:
        raise UserError(f"{len(found)} documents have {length} tokens, not {count}; ask for fewer or shorter prompts")
    return np.array(found, np.int32)
