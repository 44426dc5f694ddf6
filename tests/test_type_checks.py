"""Annotations are checked at run time: arrays by their axes, everything else by its type."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import jaxtyping
import pytest
import type_checks
from beartype import beartype
from jaxtyping import Array, Float, Int, TypeCheckError
from type_checks import has_arrays

Alias = Float[Array, "A"]


def checked(thing: Any) -> Any:
    return jaxtyping.jaxtyped(typechecker=beartype)(thing)


def by_jaxtyping(function: Callable[..., Any]) -> bool:
    return function.__globals__["__name__"] == "jaxtyping._decorator"


def test_the_package_is_checked_this_way(request):
    assert request.config.getoption("jaxtyping_packages") == "minimoe,beartype.beartype"
    assert jaxtyping.jaxtyped is type_checks.jaxtyped


def test_axes_must_agree():
    @checked
    def add(a: Alias, b: Float[Array, "A"]) -> Float[Array, "A"]:
        return a + b[:1]

    assert by_jaxtyping(add)
    assert add(jnp.ones(1), jnp.ones(1)) == 2
    for wrong in ((jnp.ones(2), jnp.ones(3)), (jnp.ones(2), jnp.ones(2, int)), (jnp.ones(2), 1.0)):
        with pytest.raises(TypeCheckError):
            add(*wrong)
    with pytest.raises(TypeCheckError, match="return value"):
        checked(lambda_of_two)(jnp.ones(2))


def lambda_of_two(a: Float[Array, "A"]) -> Float[Array, "A"]:
    return a[:1]


def test_what_is_no_array_is_checked_by_its_type():
    @checked
    def repeat(text: str, times: int = 2, *, unknown: OnlyForTypeCheckers = None) -> str:  # noqa: F821
        return text * times if times else None

    assert not by_jaxtyping(repeat)
    assert repeat("a", unknown=1) == "aa"
    for arguments in ((1,), ("a", "b"), ("a", 0)):  # the last one's result is None
        with pytest.raises(TypeCheckError):
            repeat(*arguments)


def test_methods_properties_and_fields_are_checked():
    class Counter:
        @checked
        @classmethod
        def of(cls, count: int) -> int:
            return count

        @checked
        @staticmethod
        def twice(count: int) -> int:
            return 2 * count

        @checked
        @property
        def broken(self) -> int:
            return "one"

    assert (Counter.of(2), Counter.twice(2)) == (2, 4)
    for call in (lambda: Counter.of("2"), lambda: Counter.twice("2"), lambda: Counter().broken):
        with pytest.raises(TypeCheckError):
            call()

    @checked
    @dataclasses.dataclass
    class Record:
        name: str
        values: Float[Array, "A"] | None = None

    @checked
    class Child(Record):
        pass

    for cls in (Record, Child):
        assert cls("a", jnp.ones(3)).name == "a"
        for wrong in ((1,), ("a", jnp.ones((3, 3)))):
            with pytest.raises(TypeCheckError):
                cls(*wrong)


@pytest.mark.parametrize(
    ("annotation", "arrays"),
    [
        (Float[Array, "A"] | None, True),
        (dict[str, tuple[Int[Array, "A"], ...]], True),
        (Callable[[Float[Array, "A"]], int], True),
        (jaxtyping.PyTree[int], True),
        (Array, False),
        (dict[str, list[int]] | None, False),
        (Iterator[int], False),
        (Any, False),
    ],
    ids=str,
)
def test_arrays_are_found_however_deep(annotation, arrays):
    assert has_arrays(annotation) == arrays


def test_functions_of_the_package_are_checked_either_way():
    from minimoe.data.task_families import Draw
    from minimoe.moe import max_violation

    assert by_jaxtyping(max_violation)
    with pytest.raises(TypeCheckError):
        max_violation(jnp.ones((2, 2, 2), int))
    assert not by_jaxtyping(Draw.between)
    with pytest.raises(TypeCheckError):
        Draw("key").between("1", 2)
