"""Which token ends a text in a folder of Transformers: its name, wherever the folder says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minimoe.data.tokenizer import TOKENIZER_FILE
from minimoe.files import read_text
from minimoe.hub.layouts.settings import CONFIG_FILE

NAMED_IN = ("tokenizer_config.json", "special_tokens_map.json")
NUMBERED_IN = ("generation_config.json", CONFIG_FILE)


def end_token(folder: Path) -> str | None:
    """The name of the end-of-text token; None if the folder does not say, or not in a form that is known.

    It stands by name in ``tokenizer_config.json``, or by id, one or several, in the configs of the model. An id counts only
    if it is a special token: configs have ids by default, whatever the tokenizer is.
    """
    for name in NAMED_IN:
        token = _values(folder / name).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    added = _values(folder / TOKENIZER_FILE).get("added_tokens")
    added = [one for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    special = {one.get("id"): one.get("content") for one in added if one.get("special") and type(one.get("id")) is int}
    for name in NUMBERED_IN:
        ids = _values(folder / name).get("eos_token_id")
        for token in ids if isinstance(ids, list) else [ids]:
            if type(token) is int and isinstance(special.get(token), str):
                return special[token]
    return None


def _values(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it is missing or broken."""
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
