"""Every Example in a docstring runs and prints what it says.

Examples may use jax, jnp, nnx and np, the public names of the package and its rooms, and what their module imports.
"""

from __future__ import annotations

import doctest
import functools
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minimoe

MODULES = sorted(
    info.name for info in pkgutil.walk_packages(minimoe.__path__, "minimoe.") if not info.name.endswith("__main__")
)


@functools.cache
def public_names() -> dict[str, object]:
    names: dict[str, object] = {}
    for room in ["minimoe", *(name for name in MODULES if name.count(".") == 1)]:
        module = importlib.import_module(room)
        names |= {name: getattr(module, name) for name in getattr(module, "__all__", [])}
    return names | {"jax": jax, "jnp": jnp, "np": np, "nnx": nnx, "minimoe": minimoe}


@functools.cache
def examples(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    found = doctest.DocTestFinder(exclude_empty=True).find(module, name, globs=public_names() | vars(module))
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    for test in examples(name):
        report: list[str] = []
        runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
        runner.run(test, out=report.append)
        assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_there_are_examples():
    assert sum(len(test.examples) for name in MODULES for test in examples(name)) > 20
