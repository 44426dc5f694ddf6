"""The config.json of a Transformers model: its values, and one clear line for each that is missing or not supported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minimoe.errors import UserError
from minimoe.files import read_text

CONFIG_FILE = "config.json"
_REQUIRED = object()
COPY = "copy the whole folder again"


class Settings:
    """The values of one config.json.

    Args:
      values: the content. source: what an error names, such as the path of the file.

    Example:
      >>> settings = Settings({"hidden_act": "gelu"}, "config.json")
      >>> settings.only("hidden_act", "silu")
      Traceback (most recent call last):
      minimoe.errors.UserError: config.json: hidden_act='gelu' is not supported, only 'silu' is; choose another model
    """

    def __init__(self, values: Mapping[str, Any], source: str):
        self.values, self.source = dict(values), source

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Of a folder.

        Raises:
          UserError: if there is no config.json, or it is broken.
        """
        path = folder / CONFIG_FILE
        if not path.is_file():
            raise UserError(f"{folder} holds no {CONFIG_FILE}; name a folder made by save_pretrained of Transformers")
        try:
            values = json.loads(read_text(path))
        except (OSError, ValueError, RecursionError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{path} is broken ({reason[:200]}); {COPY}") from error
        if not isinstance(values, dict):
            raise UserError(f"{path} is broken (no table of keys and values); {COPY}")
        return cls(values, str(path))

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value; ``default`` if it is not there (null counts as there).

        Raises:
          UserError: if it is not there and has no default.
        """
        if name not in self.values and default is _REQUIRED:
            raise UserError(f"{self.source} lacks {name}; {COPY}")
        return self.values.get(name, default)

    def only(self, name: str, *supported: Any, because: str = "") -> Any:
        """The value, which must be one of ``supported``; the first of them where it is not there.

        Raises:
          UserError: naming the value and what is supported.
        """
        value = self.get(name, supported[0])
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in supported):
            self.refuse(f"{name}={value!r}", f"only {' and '.join(map(repr, supported))} is", because)
        return value

    def refuse(self, what: str, supported: str, repair: str = "") -> None:
        """Raises a `UserError`: ``what`` is not supported."""
        raise UserError(f"{self.source}: {what} is not supported, {supported}; {repair or 'choose another model'}")

    def rope(self) -> dict[str, Any]:
        """The rotary settings, from the place where Transformers 5 has them or from those of version 4.

        Returns:
          A dictionary that holds at least ``rope_type`` and ``rope_theta``.

        Raises:
          UserError: if no ``rope_theta`` is there: families have different ones where it is left out.
        """
        found = self.get("rope_parameters", None)
        if found is None:
            found = self.get("rope_scaling", None) or {}
        if not isinstance(found, Mapping):
            self.refuse(f"rope_parameters={found!r}", "a table of keys and values is")
        found = dict(found)
        if "partial_rotary_factor" in self.values:
            found.setdefault("partial_rotary_factor", self.values["partial_rotary_factor"])
        found.setdefault("rope_type", found.pop("type", "default"))
        if "rope_theta" not in found:
            found["rope_theta"] = self.get("rope_theta")
        return found

    def one_rope(self) -> None:
        """Refuses rotary settings in both places: Transformers mixes them, and which one was meant is not said.

        Raises:
          UserError: naming the second.
        """
        new, old = self.get("rope_parameters", None), self.get("rope_scaling", None)
        if new is not None and old is not None and new != old:
            self.refuse(
                f"rope_scaling={old!r} beside rope_parameters", "one of the two is", "delete the one not trained with"
            )

    def plain_rope(self) -> dict[str, Any]:
        """`rope`, refused if it is scaled for contexts longer than those of training."""
        found = self.rope()
        if found["rope_type"] != "default":
            kind = f"rope_type={found['rope_type']!r}"
            self.refuse(kind, "only 'default' is", "choose a model without scaled rotary positions")
        return found

    def head_dim(self) -> Any:
        """H, which older files leave to be ``hidden_size / num_attention_heads``."""
        found = self.get("head_dim", None)
        return self.get("hidden_size") // self.get("num_attention_heads") if found is None else found
