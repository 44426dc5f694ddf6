"""Every config takes NumPy and JAX scalars for plain numbers, stores plain Python, and refuses what is not a number."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, UserError, checks
from minimoe.distill import DistillRecipe
from minimoe.distill.cached import CacheHeader
from minimoe.quant.specs import Block, Group, Tile
from minimoe.training import Recipe

WHOLE = (np.int64, np.uint16, np.array, jnp.int32, jnp.array)
REAL = (np.float64, np.float32, np.array, jnp.float32, jnp.array)
NOT_WHOLE = (True, np.bool_(True), 2.0, np.float32(2), "2", None, np.array([2]), jnp.array([2]), jnp.array(True))
NOT_REAL = (True, np.bool_(True), "0.5", 1j, np.complex64(1), np.array([0.5]), jnp.array([0.5]), jnp.array(True))
NAN = (float("nan"), np.float32("nan"), np.array(np.nan), jnp.array(jnp.nan), jnp.bfloat16(jnp.nan))

MOE = {"d_model": 8, "d_expert": 6, "num_experts": 4, "top_k": 2}
HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
MODEL = {"vocab_size": 19, "d_model": 8, "num_layers": 2, "d_ff": 16}
ATTENTION = GroupedQueryConfig(**HEADS)
HEADER = {"teacher": "t", "tokenizer": "b", "data": "d", "vocab_size": 9, "k": 2, "seed": 0, "batch_size": 2}

# A config class, values that make one, its whole numbers, its real numbers.
CONFIGS = {
    "moe": (MoEConfig, MOE, (*MOE, "num_shared_experts", "num_groups"), ("capacity_factor", "routed_scaling_factor")),
    "model": (ModelConfig, MODEL | {"attention": ATTENTION}, (*MODEL, "context_length"), ("dropout", "norm_eps")),
    "attention": (GroupedQueryConfig, HEADS, (*HEADS,), ("rope_theta",)),
    "recipe": (
        Recipe,
        {},
        ("steps", "batch_size", "seed", "warmup_steps", "log_every", "eval_every", "checkpoint_every"),
        ("learning_rate", "final_fraction", "weight_decay", "beta1", "beta2", "clip_norm", "router_bias_rate",
         "balance_weight", "z_weight", "sequence_balance_weight"),
    ),
    "distil": (
        DistillRecipe,
        {"top_k": 4},
        ("top_k", "max_new_tokens"),
        ("temperature", "alpha", "sample_temperature", "on_policy_fraction"),
    ),
    "header": (CacheHeader, HEADER | {"length": 8}, ("vocab_size", "k", "seed", "batch_size"), ("temperature",)),
    "tile": (Tile, {}, ("size",), ()),
    "group": (Group, {}, ("size",), ()),
    "block": (Block, {}, ("rows", "columns"), ()),
}  # fmt: skip
FIELDS = [
    pytest.param(cls, values, name, kind, id=f"{key}-{name}")
    for key, (cls, values, whole, real) in CONFIGS.items()
    for kind, names in (("whole", whole), ("real", real))
    for name in names
]


def made(cls, values):
    """Builds ``cls`` as a user without a type checker does."""
    new = object.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(new, field.name, values.get(field.name, field.default))
    new.__post_init__()
    return new


@pytest.mark.parametrize(("cls", "values", "name", "kind"), FIELDS)
def test_numbers_of_every_library_are_taken_and_stored_plainly(cls, values, name, kind):
    plain = made(cls, values)
    value = getattr(plain, name)
    for make in WHOLE if kind == "whole" else REAL:
        new = made(cls, values | {name: make(value)})
        assert type(getattr(new, name)) is (int if kind == "whole" else float)
        if kind == "whole":
            assert (new, hash(new)) == (plain, hash(plain))
        else:
            np.testing.assert_allclose(getattr(new, name), value, rtol=1e-6)


@pytest.mark.parametrize(("cls", "values", "name", "kind"), FIELDS)
def test_what_is_not_a_number_is_refused_and_named(cls, values, name, kind):
    wrong = NOT_WHOLE if kind == "whole" else (*NOT_REAL, *NAN)
    for value in wrong:
        if value is None and name == "top_k" and cls is DistillRecipe:
            continue  # None is its default
        if name == "d_ff" and value is None:
            continue  # another error: neither experts nor a width
        with pytest.raises(UserError) as caught:
            made(cls, values | {name: value})
        message = str(caught.value)
        assert message.startswith(f"{cls.__name__}: {name}={value!r} must be a ")
        assert "whole number" in message if kind == "whole" else "number in" in message


@pytest.mark.parametrize("ends", ["[)", "(]", "[]", "()"])
def test_the_ends_of_an_interval(ends):
    for value, end in ((1, ends[0]), (2, ends[1])):
        if end in "[]":
            assert checks.number("x", value, 1, 2, ends=ends) == value
        else:
            with pytest.raises(UserError, match=r"x=\d must be a number in .1, 2."):
                checks.number("x", value, 1, 2, ends=ends)


def test_real_numbers_of_other_kinds():
    assert checks.number("x", Fraction(1, 4), 0, 1) == 0.25
    assert checks.number("x", jnp.bfloat16(0.5), 0, 1) == 0.5
    with pytest.raises(UserError, match=r"must be a number in \[0, inf\); use less"):
        checks.number("x", 10**400, 0, float("inf"), hint="use less")


def test_a_traced_value_is_refused_not_guessed():
    def inside(x):
        with pytest.raises(UserError, match="must be a number"):
            checks.number("x", x, 0, 1)
        with pytest.raises(UserError, match="must be a whole number"):
            checks.whole("n", x.astype(jnp.int32))
        return x

    jax.jit(inside)(jnp.float32(0.5))


def test_whole_numbers_in_a_range():
    assert checks.whole("n", 3, 0, 3) == 3
    with pytest.raises(UserError, match=r"^Recipe: seed=4294967296 must be a whole number in 0\.\.4294967295; use 0"):
        made(Recipe, {"seed": 2**32})
    with pytest.raises(UserError, match=r"^n=-1 must be a whole number of at least 0$"):
        checks.whole("n", -1, 0)


@pytest.mark.parametrize("value", [jnp.bfloat16, jnp.dtype("bfloat16"), "bfloat16"])
def test_dtypes_are_taken_as_jax_writes_them(value):
    assert made(MoEConfig, MOE | {"dtype": value}).dtype == "bfloat16"
    assert made(ModelConfig, MODEL | {"attention": ATTENTION, "param_dtype": value}).param_dtype == "bfloat16"
    assert checks.dtype_name("dtype", np.float32) == "float32"
    for wrong in (np.float64, None, 4, jnp.int8):
        with pytest.raises(UserError, match=r"dtype=.* is not known; choose one of float32, bfloat16"):
            checks.dtype_name("dtype", wrong)


def test_flags_and_choices():
    assert checks.flag("tie", np.bool_(False)) is False
    for wrong in (1, "yes", None, np.array([True])):
        with pytest.raises(UserError, match=r"tie=.* must be True or False"):
            checks.flag("tie", wrong)
    assert type(checks.choice("level", np.int64(2), (1, 2))) is int
    assert type(checks.choice("form", np.str_("a"), ("a", "b"))) is str
    for wrong in (None, "c", 1.0, ["a"], np.array(["a", "b"])):
        with pytest.raises(UserError, match=r"form=.* is not known; choose one of a, b"):
            checks.choice("form", wrong, ("a", "b"))
