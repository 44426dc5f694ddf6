"""The run-time checks of annotations, made cheaper where a function takes and returns no arrays.

jaxtyping wraps every function of the package: it binds the arguments, opens a table of axis sizes, and has beartype check
the arguments once before the call and once more after it. That is needed where axes are named. A function without arrays
needs beartype alone, which checks the same arguments and the same result: 0.3 against 24 microseconds for a method that takes
two numbers. Both raise `jaxtyping.TypeCheckError`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping._decorator import _destring_annotation
from jaxtyping._import_hook import Typechecker

by_jaxtyping = jaxtyping.jaxtyped
by_beartype = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
CHECKED = "_minimoe_checked"  # marks an ``__init__`` that has its check, as jaxtyping does


def install() -> None:
    """From now on the import hook of jaxtyping wraps functions with `jaxtyped` of this file."""
    jaxtyping.jaxtyped = jaxtyped


def jaxtyped(thing: Any = None, *, typechecker: Any = None) -> Any:
    """`jaxtyping.jaxtyped`, with beartype alone for functions without arrays."""
    if thing is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if not is_beartype(typechecker):
        return by_jaxtyping(thing, typechecker=typechecker)
    if inspect.isclass(thing):
        return _dataclass(thing, typechecker)
    if isinstance(thing, classmethod | staticmethod):
        return type(thing)(jaxtyped(thing.__func__, typechecker=typechecker))
    if isinstance(thing, property):
        parts = (thing.fget, thing.fset, thing.fdel)
        return property(*(part and jaxtyped(part, typechecker=typechecker) for part in parts))
    return _function(thing, typechecker)


def is_beartype(typechecker: Any) -> bool:
    """beartype itself, or what the import hook has made of its name."""
    return typechecker is beartype or (
        typechecker is not None and typechecker is Typechecker.lookup.get(hashlib.md5(b"beartype.beartype").hexdigest())
    )


def _dataclass(cls: type, typechecker: Any) -> type:
    """Only ``__init__`` is checked, and an inherited one has been."""
    if dataclasses.is_dataclass(cls) and not getattr(cls.__init__, CHECKED, False):
        cls.__init__ = jaxtyped(cls.__init__, typechecker=typechecker)
        setattr(cls.__init__, CHECKED, True)
    return cls


def _function(function: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    plain = inspect.isfunction(function) and not (
        inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function)
    )
    if not plain:
        return by_jaxtyping(function, typechecker=typechecker)
    found = {name: _destring_annotation(one, function.__globals__) for name, one in function.__annotations__.items()}
    if any(has_arrays(one) for one in found.values()):
        return by_jaxtyping(function, typechecker=typechecker)
    function.__annotations__ = found  # what is known only to type checkers is Any by now, as in jaxtyping
    return by_beartype(function)


def has_arrays(annotation: Any) -> bool:
    """Whether a type of jaxtyping is in it, however deep."""
    if isinstance(annotation, list | tuple):
        return any(map(has_arrays, annotation))
    known = (type(annotation).__module__, getattr(annotation, "__module__", None) or "")
    return any(one.startswith("jaxtyping") for one in known) or any(map(has_arrays, typing.get_args(annotation)))
