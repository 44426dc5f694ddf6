"""Names of the modules and arrays of a model, such as ``layers.0.attention.q_proj.kernel``, and what goes by them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import nnx

SHOWN = 3  # names in a complaint; a wrong config can produce hundreds


def path_name(path: Iterable[Any], separator: str = ".") -> str:
    """A path of attribute names and list positions, as `flax.nnx` gives it, in one text.

    Example:
      >>> path_name(("layers", 0, "norm"))
      'layers.0.norm'
    """
    return separator.join(map(str, path))


def named_leaves(state: Any, separator: str = ".") -> dict[str, Any]:
    """The leaves of a state by name: variables, or what stands in their place. A module is taken for its state.

    Example:
      >>> sorted(named_leaves(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
      ['bias', 'kernel']
    """
    state = nnx.state(state) if isinstance(state, nnx.Pytree) and not isinstance(state, nnx.State) else state
    return {path_name(path, separator): leaf for path, leaf in nnx.to_flat_state(state)}


def filled_state(state: Any, new: Callable[[str, Any], Any], separator: str = ".") -> Any:
    """The same state with ``new(name, leaf)`` in the place of each leaf, called one after the other."""
    leaves = nnx.to_flat_state(state)
    return nnx.from_flat_state([(path, new(path_name(path, separator), leaf)) for path, leaf in leaves])


def misfits(wanted: Mapping[str, Any], found: Mapping[str, Any], fits: Callable[[Any, Any], bool] = operator.eq) -> str:
    """What keeps the arrays of a file from being those of a model, all of it at once; "" if nothing does.

    Args:
      wanted: what the model says of each array, say its shape. found: what the file says.
      fits: whether the two, in this order, go together.

    Example:
      >>> misfits({"a": (2,), "b": (3,)}, {"b": (4,), "c": (5,)})
      'missing a; unexpected c; wrong b is (4,) instead of (3,)'
    """
    both = [name for name in wanted if name in found]
    problems = {
        "missing": sorted(set(wanted) - set(found)),
        "unexpected": sorted(set(found) - set(wanted)),
        "wrong": [f"{n} is {found[n]} instead of {wanted[n]}" for n in both if not fits(wanted[n], found[n])],
    }
    return "; ".join(f"{what} {_some(names)}" for what, names in problems.items() if names)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
