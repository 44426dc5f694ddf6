"""The one set of checks of plain values: whole numbers, numbers, switches, dtypes and choices from a list.

Each check takes the name and the value, and returns the value as a plain Python object, so that what a config holds
does not depend on who made it: ``np.int64(4)`` is stored as ``4``, a JAX scalar as a float. The functions that end in
``_fields`` do the same for fields of a frozen dataclass, in its ``__post_init__``. An error names the owner, the
field, the value and the repair. JAX and NumPy are not imported here.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

from minimoe.errors import UserError

DTYPES = ("float32", "bfloat16")
COMPUTE_DTYPES = (*DTYPES, "float16")  # of a single layer
LARGEST_COUNT = 2**53  # of tokens, sequences or chips in a sum of costs: as floats, larger counts are not exact
LARGEST_SEED = 2**32 - 1  # jax.random takes 32 bits of a seed: a larger one would repeat the keys of a smaller one


def require(condition: bool, owner: object, message: str) -> None:
    """Raises the message, behind the name of its owner, unless the condition holds.

    Args:
      condition: what must hold. message: names the value and the repair.
      owner: a text, or an object whose class is named; "" for none.
    """
    if not condition:
        raise UserError(f"{_prefix(owner)}{message}")


def whole(
    name: str, value: object, least: int = 1, most: int | None = None, *, hint: str = "", owner: object = ""
) -> int:
    """A whole number in ``least..most``, as an int.

    Everything that `operator.index` takes is one, a NumPy or JAX integer included; True and False are not.

    Args:
      name: of the field or argument. value: what was given.
      least, most: both may be reached; no upper limit if ``most`` is None.
      hint: the repair. owner: as in `require`.

    Raises:
      UserError: if it is not a whole number, or outside the range.

    Example:
      >>> whole("top_k", np.int64(2))
      2
    """
    wanted = f"at least {least}" if most is None else f"{least}..{most}"
    found = _as_int(value)
    fits = found is not None and found >= least and (most is None or found <= most)
    words = f"a whole number of {wanted}" if most is None else f"a whole number in {wanted}"
    require(fits, owner, f"{name}={value!r} must be {words}{_tail(hint)}")
    assert found is not None
    return found


def number(
    name: str,
    value: object,
    low: int | float,
    high: int | float,
    *,
    ends: str = "[)",
    hint: str = "",
    owner: object = "",
) -> float:
    """A number in an interval, as a float.

    Python and NumPy numbers are numbers, and so are arrays of no axes; a traced array, True and NaN are not.

    Args:
      name: of the field or argument. value: what was given.
      low, high: the interval; ``ends`` says which of them belong to it: "[)" the lower one, "(]" the upper one,
        "[]" both, "()" neither.
      hint: the repair. owner: as in `require`.

    Raises:
      UserError: if it is not a number, or outside the interval.

    Example:
      >>> number("dropout", np.float16(0.5), 0, 1)
      0.5
    """
    found = _as_float(value)
    above = found >= low if ends[0] == "[" else found > low
    below = found <= high if ends[1] == "]" else found < high
    interval = f"{ends[0]}{low}, {high}{ends[1]}"
    require(above and below, owner, f"{name}={value!r} must be a number in {interval}{_tail(hint)}")
    return found


def random_seed(name: str, value: object, *, owner: object = "") -> int:
    """A seed of `jax.random`, as an int.

    Raises:
      UserError: if it is not a whole number, or does not fit into 32 bits.

    Example:
      >>> random_seed("--seed", 7)
      7
    """
    return whole(name, value, 0, LARGEST_SEED, hint="use 0 if in doubt", owner=owner)


def choice(name: str, value: object, choices: Iterable[str | int], *, owner: object = "") -> Any:
    """The entry of the list that equals the value.

    Raises:
      UserError: if there is none, naming the list.

    Example:
      >>> choice("score", "relu", ("softmax", "sigmoid"))
      Traceback (most recent call last):
      minimoe.errors.UserError: score='relu' is not known; choose one of softmax, sigmoid
    """
    known = tuple(choices)
    listed = ", ".join(map(str, known))
    plain = value if isinstance(value, str) else _as_int(value)
    require(plain in known, owner, f"{name}={value!r} is not known; choose one of {listed}")
    return known[known.index(plain)]  # type: ignore[arg-type]


def flag(name: str, value: object, *, owner: object = "") -> bool:
    """True or False, as Python or NumPy write them."""
    is_flag = isinstance(value, bool) or (_kind(value) == "b" and getattr(value, "shape", None) == ())
    require(is_flag, owner, f"{name}={value!r} must be True or False")
    return bool(value)


def dtype_name(name: str, value: object, choices: tuple[str, ...] = DTYPES, *, owner: object = "") -> str:
    """The name of a dtype, given as its name or as JAX and NumPy write it.

    Example:
      >>> dtype_name("dtype", jnp.bfloat16)
      'bfloat16'
    """
    if isinstance(value, str):
        found: object = value
    else:
        holder = getattr(value, "dtype", value)  # jnp.bfloat16 holds its dtype, np.dtype is one
        found = getattr(holder, "name", None) or getattr(value, "__name__", None)
    listed = ", ".join(choices)
    require(found in choices, owner, f"{name}={value!r} is not known; choose one of {listed}")
    return str(found)


def whole_fields(record: Any, *names: str, least: int = 1, most: int | None = None, hint: str = "") -> None:
    """`whole` for these fields of a frozen dataclass, which then hold ints."""
    for name in names:
        _store(record, name, whole(name, getattr(record, name), least, most, hint=hint, owner=record))


def number_fields(
    record: Any, *names: str, low: int | float, high: int | float, ends: str = "[)", hint: str = ""
) -> None:
    """`number` for these fields of a frozen dataclass, which then hold floats."""
    for name in names:
        _store(record, name, number(name, getattr(record, name), low, high, ends=ends, hint=hint, owner=record))


def choice_fields(record: Any, *names: str, choices: Iterable[str | int]) -> None:
    """`choice` for these fields of a frozen dataclass."""
    known = tuple(choices)
    for name in names:
        _store(record, name, choice(name, getattr(record, name), known, owner=record))


def flag_fields(record: Any, *names: str) -> None:
    """`flag` for these fields of a frozen dataclass, which then hold bools."""
    for name in names:
        _store(record, name, flag(name, getattr(record, name), owner=record))


def dtype_fields(record: Any, *names: str, choices: tuple[str, ...] = DTYPES) -> None:
    """`dtype_name` for these fields of a frozen dataclass, which then hold names."""
    for name in names:
        _store(record, name, dtype_name(name, getattr(record, name), choices, owner=record))


def _store(record: Any, name: str, value: object) -> None:
    object.__setattr__(record, name, value)  # the way into a frozen dataclass, while it is being made


def _prefix(owner: object) -> str:
    said = owner if isinstance(owner, str) else type(owner).__name__
    return f"{said}: " if said else ""


def _tail(hint: str) -> str:
    return f"; {hint}" if hint else ""


def _kind(value: object) -> str | None:
    """NumPy's letter for the dtype of an array or scalar: "i" and "u" whole, "f" and "V" real (bfloat16 is a "V")."""
    return getattr(getattr(value, "dtype", None), "kind", None)


def _as_int(value: object) -> int | None:
    """None if it is not a whole number."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _as_float(value: object) -> float:
    """NaN if it is not a number."""
    is_array = getattr(value, "shape", None) == () and _kind(value) in ("i", "u", "f", "V")
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_array and not is_number:
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan
