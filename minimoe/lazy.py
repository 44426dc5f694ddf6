"""Names of a package that are loaded on first use, so that a config or a formula does not wait for JAX (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    A name that has been asked for is kept in the package. No name may be that of a file of the package: Python would put
    the file in its place.

    Args:
      package: its ``__name__``.
      homes: the public names that each of its files defines, with spaces between.

    Raises:
      AttributeError: by ``__getattr__``, for any other name.
    """
    home = {name: file for file, names in homes.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, found)
        return found

    return find, lambda: sorted({*vars(sys.modules[package]), *home})
