"""Impossible settings are refused when they are made, and every message names the value and the repair."""

from __future__ import annotations

import collections
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from minimoe import GroupedQueryConfig, LayerConfig, ModelConfig, MoEConfig, UserError
from minimoe.config import DISPATCHES, PRESETS, SCORES, SELECTORS, MTPConfig, from_fields
from minimoe.cost import count_params
from minimoe.data import ByteTokenizer
from minimoe.training import RECIPES, Recipe
from minimoe.training.new_run import make_run

MOE = {"d_model": 8, "d_expert": 6, "num_experts": 4, "top_k": 2}
SIZES = {"vocab_size": 19, "d_model": 8, "num_layers": 2, "d_ff": 16}
HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
MODEL = SIZES | {"attention": GroupedQueryConfig(**HEADS)}
SPARSE = ModelConfig(**MODEL | {"moe": MoEConfig(**MOE), "d_ff": None})

# changed fields -> what the message must contain: the value, and the repair
MOE_ERRORS = [
    *(({name: 0}, (f"{name}=0", "at least 1")) for name in MOE),
    ({"d_expert": 2.5}, ("d_expert=2.5", "whole number")),
    ({"num_experts": "8"}, ("num_experts='8'", "whole number")),
    ({"top_k": True}, ("top_k=True", "whole number")),
    ({"top_k": 9}, ("top_k=9", "1..num_experts=4", "lower top_k or raise num_experts")),
    ({"num_shared_experts": -1}, ("num_shared_experts=-1", "use 0 for none")),
    ({"routed_scaling_factor": 0.0}, ("routed_scaling_factor=0.0", "use 1.0 for no scaling")),
    ({"routed_scaling_factor": float("nan")}, ("routed_scaling_factor=nan", "use 1.0")),
    ({"score": "relu"}, ("score='relu'", "softmax, sigmoid, sqrtsoftplus")),
    ({"select": "top"}, ("select='top'", "topk")),
    ({"dispatch": "fast"}, ("dispatch='fast'", "loop, dense, capacity, ragged, dropless")),
    ({"capacity_factor": 0}, ("capacity_factor=0", "1.25 is usual", "dropless")),
    ({"capacity_factor": -1.0}, ("capacity_factor=-1.0", "1.25 is usual")),
    ({"capacity_factor": float("inf")}, ("capacity_factor=inf", "1.25 is usual")),
    ({"num_groups": 0}, ("num_groups=0", "at least 1")),
    ({"num_groups": 3}, ("num_experts=4", "multiple of num_groups=3", "change one")),
    ({"num_groups": 2, "top_k_groups": 3}, ("top_k_groups=3", "1..num_groups=2", "lower top_k_groups")),
    ({"num_groups": 4}, ("top_k=2", "top_k_groups=1 groups of 1 experts", "raise top_k_groups or lower top_k")),
    ({"select": "hash"}, ("hash_vocab_size=None", "set hash_vocab_size")),
    ({"select": "hash", "hash_vocab_size": 0}, ("hash_vocab_size=0", "at least 1")),
    ({"dtype": "float64"}, ("dtype='float64'", "float32, bfloat16, float16")),
    ({"param_dtype": "float16"}, ("param_dtype='float16'", "float32, bfloat16")),
    ({"param_dtype": "int8"}, ("param_dtype='int8'", "float32, bfloat16")),
]
MODEL_ERRORS = [
    *(({name: -1}, (f"{name}=-1", "at least 1")) for name in SIZES),
    ({"context_length": 0}, ("context_length=0", "1..2147483647")),
    ({"dropout": 1.0}, ("dropout=1.0", "[0, 1)", "use 0")),
    ({"dropout": -0.1}, ("dropout=-0.1", "[0, 1)")),
    ({"norm_eps": 0.0}, ("norm_eps=0.0", "1e-5 is usual")),
    ({"dtype": "float64"}, ("dtype='float64'", "float32, bfloat16")),
    ({"dtype": "float16"}, ("dtype='float16'", "gradients vanish", "does not scale the loss", "use bfloat16")),
    ({"moe": MoEConfig(**MOE, dtype="float16"), "d_ff": None}, ("moe.dtype='float16'", "use bfloat16")),
    ({"param_dtype": "fp8"}, ("param_dtype='fp8'", "float32, bfloat16")),
    ({"d_ff": None}, ("moe=None, d_ff=None", "give either moe (sparse) or d_ff (dense)")),
    ({"moe": MoEConfig(**MOE)}, ("moe=given, d_ff=16", "give either moe (sparse) or d_ff (dense)")),
    ({"moe": MoEConfig(**MOE | {"d_model": 9}), "d_ff": None}, ("moe.d_model=9", "d_model=8", "make them the same")),
    (
        {"moe": MoEConfig(**MOE, select="hash", hash_vocab_size=18), "d_ff": None},
        ("moe.hash_vocab_size=18", "vocab_size=19", "make them the same"),
    ),
    ({"attention": None}, ("attention=None", "GroupedQueryConfig", "ModelConfig.from_dict")),
    ({"attention": HEADS}, ("attention={'num_heads': 4", "ModelConfig.from_dict reads plain values")),
    ({"residual": "add"}, ("residual='add'", "AddConfig", "ModelConfig.from_dict")),
    ({"first_layers": LayerConfig()}, ("first_layers=LayerConfig(", "tuple of LayerConfig", "use ()")),
    ({"pattern": (None,)}, ("pattern=(None,)", "tuple of LayerConfig")),
    ({"first_layers": (LayerConfig(d_ff=4),) * 3}, ("first_layers holds 3", "num_layers=2", "shorten it or raise")),
    (
        {"pattern": (LayerConfig(moe=MoEConfig(**MOE)),)},
        ("moe=None", "give moe, and d_ff to the layers that are dense"),
    ),
    (
        {"moe": MoEConfig(**MOE), "d_ff": None, "pattern": (LayerConfig(moe=MoEConfig(**MOE | {"d_model": 9})),)},
        ("moe.d_model=9", "d_model=8"),
    ),
]
ATTENTION_ERRORS = [
    *(({name: 0}, (f"{name}=0", "at least 1")) for name in HEADS),
    ({"num_heads": 3}, ("num_heads=3", "multiple of num_kv_heads=2", "change one")),
    ({"head_dim": 5}, ("head_dim=5", "even", "use 6")),
    ({"rope_theta": 0.0}, ("rope_theta=0.0", "10000.0 is usual")),
]
LAYER_ERRORS = [
    ({"d_ff": 0}, ("d_ff=0", "at least 1")),
    ({"moe": MOE}, ("must be a MoEConfig",)),
    ({"attention": 4}, ("attention=4", "GroupedQueryConfig")),
    ({"moe": MoEConfig(**MOE), "d_ff": 4}, ("moe=given, d_ff=4", "give either")),
]
RECIPE_ERRORS = [
    *(({name: 0}, (f"{name}=0", "at least 1")) for name in ("steps", "batch_size", "log_every")),
    *(({name: -1}, (f"{name}=-1", "use 0")) for name in ("warmup_steps", "eval_every", "checkpoint_every", "seed")),
    ({"learning_rate": 0.0}, ("learning_rate=0.0", "0.003 suits")),
    ({"optimizer": "sgd"}, ("optimizer='sgd'", "adamw, muon")),
    ({"beta1": 1.0}, ("beta1=1.0", "0.9 and 0.95")),
    ({"final_fraction": -1.0}, ("final_fraction=-1.0", "0.05 is usual")),
    ({"learning_rate": float("inf")}, ("learning_rate=inf", "0.003 suits")),
    ({"learning_rate": float("nan")}, ("learning_rate=nan", "0.003 suits")),
    ({"clip_norm": -1.0}, ("clip_norm=-1.0", "1.0 is usual")),
    *(
        ({name: -0.5}, (f"{name}=-0.5", "0 switches it off"))
        for name in ("weight_decay", "router_bias_rate", "balance_weight", "z_weight", "sequence_balance_weight")
    ),
]


MOE_OF_2 = MoEConfig(**MOE | {"num_experts": 2})
HASHED = MoEConfig(**MOE, select="hash", hash_vocab_size=19)
WIDE = GroupedQueryConfig(num_heads=2, num_kv_heads=2, head_dim=8)
PATTERNS = {
    "first dense": SPARSE.replace(first_layers=(LayerConfig(d_ff=16),)),
    "first hashed": SPARSE.replace(first_layers=(LayerConfig(moe=HASHED),)),
    "every second dense": SPARSE.replace(num_layers=5, pattern=(LayerConfig(d_ff=16), LayerConfig())),
    "two attentions": SPARSE.replace(
        num_layers=6, pattern=(LayerConfig(), LayerConfig(attention=WIDE), LayerConfig(attention=WIDE))
    ),
    "two sizes": SPARSE.replace(
        num_layers=4, first_layers=(LayerConfig(d_ff=4),), pattern=(LayerConfig(moe=MOE_OF_2),)
    ),
}


def table(cls, base, errors):
    return [pytest.param(cls, base | changes, parts, id=f"{cls.__name__}-{changes}"[:60]) for changes, parts in errors]


@pytest.mark.parametrize(
    ("cls", "values", "parts"),
    [
        *table(MoEConfig, MOE, MOE_ERRORS),
        *table(ModelConfig, MODEL, MODEL_ERRORS),
        *table(GroupedQueryConfig, HEADS, ATTENTION_ERRORS),
        *table(LayerConfig, {}, LAYER_ERRORS),
        *table(Recipe, {}, RECIPE_ERRORS),
    ],
)
def test_every_refusal_names_value_and_repair(cls, values, parts):
    # Through from_fields, so that the run-time type checker of the tests does not speak first.
    with pytest.raises(UserError) as caught:
        unchecked(cls, values)
    message = str(caught.value)
    assert message.startswith(cls.__name__)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


def unchecked(cls, values):
    """Builds ``cls`` as a user without a type checker does."""
    made = object.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(made, field.name, values.get(field.name, field.default))
    made.__post_init__()
    return made


def test_the_names_in_configs_are_the_registered_ones():
    from minimoe import moe

    assert (*moe.AFFINITIES,) == SCORES
    assert (*moe.SELECTORS,) == (*SELECTORS,)
    assert (*moe.DISPATCHERS,) == DISPATCHES


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, jnp.dtype("bfloat16"), np.dtype(jnp.bfloat16)], ids=repr)
def test_a_dtype_is_given_as_to_flax_and_stored_as_a_name(dtype):
    moe = unchecked(MoEConfig, MOE | {"dtype": dtype, "param_dtype": dtype})
    assert (moe.dtype, moe.param_dtype) == ("bfloat16", "bfloat16")
    assert moe == MoEConfig(**MOE, dtype="bfloat16", param_dtype="bfloat16")
    model = unchecked(ModelConfig, MODEL | {"moe": moe, "d_ff": None, "dtype": dtype, "param_dtype": np.float32})
    assert (model.dtype, model.param_dtype) == ("bfloat16", "float32")
    assert ModelConfig.from_dict(json.loads(json.dumps(model.to_dict()))) == model


@pytest.mark.parametrize("factor", [1, 2, 6])
def test_fine_grained_experts_keep_the_parameters(factor):
    """All but the router's, which has a column an expert."""
    model = ModelConfig(**MODEL | {"moe": MoEConfig(**MOE, num_shared_experts=1), "d_ff": None})
    fine = model.replace(moe=model.moe.fine_grained(factor))
    assert (fine.moe.num_experts, fine.moe.top_k, fine.moe.d_expert) == (4 * factor, 2 * factor, 6 // factor)
    before, after = vars(count_params(model)), vars(count_params(fine))
    assert after == before | {"router": factor * before["router"]}


@pytest.mark.parametrize(("factor", "part"), [(4, "d_expert=6"), (0, "at least 1"), (1.5, "whole number")])
def test_fine_grained_refuses_what_does_not_divide(factor, part):
    fine_grained = getattr(MoEConfig.fine_grained, "__wrapped__", MoEConfig.fine_grained)
    with pytest.raises(UserError, match=part):
        fine_grained(MoEConfig(**MOE), factor)


def test_good_values_pass():
    assert unchecked(MoEConfig, MOE) == MoEConfig(**MOE)
    assert unchecked(ModelConfig, MODEL) == ModelConfig(**MODEL)
    assert unchecked(Recipe, {}) == Recipe()
    assert MoEConfig(**MOE | {"top_k": 4}).active_fraction == 1.0


@pytest.mark.parametrize(("cls", "known"), [(ModelConfig, PRESETS), (Recipe, RECIPES)])
def test_unknown_preset_lists_the_known(cls, known):
    with pytest.raises(UserError, match="'nanoo'") as caught:
        cls.preset("nanoo")
    assert all(name in str(caught.value) for name in known)
    assert all(isinstance(cls.preset(name), cls) for name in known)


def test_presets_and_recipes_go_together():
    assert set(PRESETS) == set(RECIPES)
    assert Recipe.preset("nano", steps=3).steps == 3


@pytest.mark.parametrize("config", [*PRESETS.values(), ModelConfig(**MODEL), *PATTERNS.values()])
def test_dict_round_trip_through_json(config):
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_recipe_round_trip_through_json():
    recipe = Recipe(steps=7, learning_rate=1e-4)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_unknown_and_missing_keys_are_reported_together():
    with pytest.raises(UserError, match=r"ModelConfig: unknown keys \['width'\], missing keys \['d_model'\]"):
        ModelConfig.from_dict({**{k: v for k, v in MODEL.items() if k != "d_model"}, "width": 8})
    with pytest.raises(UserError, match=r"MoEConfig: unknown keys \[\], missing keys \['top_k'\].*another version"):
        ModelConfig.from_dict(MODEL | {"moe": {k: v for k, v in MOE.items() if k != "top_k"}})
    with pytest.raises(UserError, match=r"Recipe: unknown keys \['lr'\]"):
        from_fields(Recipe, {"lr": 1.0})


def test_files_from_before_a_field_existed_are_read():
    """Fields with a default may be missing: that is how old checkpoints stay readable."""
    config = ModelConfig(**MODEL | {"moe": MoEConfig(**MOE), "d_ff": None})
    old = config.to_dict()
    for name in ("capacity_factor", "num_groups", "top_k_groups", "hash_vocab_size"):
        del old["moe"][name]
    assert ModelConfig.from_dict(old) == config
    recipe = Recipe().to_dict()
    del recipe["sequence_balance_weight"]
    assert Recipe.from_dict(recipe) == Recipe()


OLD = {
    "vocab_size": 2048, "d_model": 128, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32,
    "context_length": 256,
    "moe": {"d_model": 128, "d_expert": 128, "num_experts": 8, "top_k": 2, "num_shared_experts": 1, "score": "sigmoid",
            "select": "topk", "dispatch": "dropless", "normalize_weights": True, "routed_scaling_factor": 1.0,
            "dtype": "float32", "param_dtype": "float32"},
    "d_ff": None, "rope_theta": 500.0, "norm_eps": 1e-05, "tie_embeddings": True, "dropout": 0.0, "dtype": "float32",
    "param_dtype": "float32",
}  # fmt: skip


def test_files_from_before_attention_was_a_part_are_read():
    """A folder that version 0.1 wrote: the sizes of attention stand among those of the model."""
    assert ModelConfig.from_dict(OLD) == PRESETS["nano"].replace_attention(rope_theta=500.0)
    assert ModelConfig.from_dict({k: v for k, v in OLD.items() if k != "rope_theta"}) == PRESETS["nano"]
    with pytest.raises(UserError, match=r"GroupedQueryConfig: unknown keys \[\], missing keys \['head_dim'\]"):
        ModelConfig.from_dict({k: v for k, v in OLD.items() if k != "head_dim"})
    new = ModelConfig.from_dict(OLD).to_dict()
    with pytest.raises(UserError, match=r"ModelConfig: unknown keys \['num_heads'\]"):
        ModelConfig.from_dict(new | {"num_heads": 4})


def test_every_kind_in_a_file_is_named_and_known():
    values = SPARSE.to_dict()
    others = {"rope_theta": 10000.0, "rope_dim": None, "qk_norm": False, "bias": False, "norm_eps": 1e-6}
    assert values["attention"] == {"kind": "grouped_query", **HEADS, **others}
    assert values["residual"] == {"kind": "add"}
    for name, known in (("attention", "grouped_query"), ("residual", "add, hyper")):
        with pytest.raises(UserError, match=f"{name}: kind='nosuch' is not known; choose one of {known}"):
            ModelConfig.from_dict(values | {name: {"kind": "nosuch"}})
    with pytest.raises(UserError, match="attention: kind=None is not known"):
        ModelConfig.from_dict(values | {"attention": HEADS})
    with pytest.raises(UserError, match="must be a table of keys and values"):
        ModelConfig.from_dict(values | {"pattern": [3]})


def test_the_layers_of_a_pattern():
    """First the layers of their own, then the pattern in turn; None stands for what the model says."""
    dense = [16, None]
    assert [layer.d_ff for layer in PATTERNS["first dense"].layers] == dense
    assert [layer.d_ff for layer in PATTERNS["every second dense"].layers] == [*dense, *dense, 16]
    assert [layer.moe is None for layer in SPARSE.dense_equivalent().layers] == [True, True]
    assert [layer.attention.num_heads for layer in PATTERNS["two attentions"].layers] == [4, 2, 2, 4, 2, 2]
    assert [layer.moe and layer.moe.num_experts for layer in PATTERNS["two sizes"].layers] == [None, 2, 2, 2]
    assert [layer.moe.select for layer in PATTERNS["first hashed"].layers] == ["hash", "topk"]


@pytest.mark.parametrize("config", [*PRESETS.values(), *PATTERNS.values()])
def test_counts_of_layers_are_those_of_the_layers(config):
    assert config.layer_counts == collections.Counter(config.layers)


def test_counting_layers_takes_no_time():
    """A file may claim any number of layers; what they would weigh is known before any is built."""
    config = PATTERNS["every second dense"].replace(num_layers=10**15)
    assert sorted(config.layer_counts.values()) == [5 * 10**14] * 2
    assert count_params(config).total > 10**17


def test_experts_are_changed_in_every_layer():
    config = PATTERNS["first hashed"].replace_moe(dispatch="loop", top_k=1)
    assert {(layer.moe.dispatch, layer.moe.top_k) for layer in config.layers} == {("loop", 1)}
    assert [layer.moe.select for layer in config.layers] == ["hash", "topk"]
    for config in PATTERNS.values():
        dense = config.dense_equivalent()
        widths = [layer.d_ff or layer.moe.top_k * layer.moe.d_expert for layer in config.layers]
        assert [layer.d_ff for layer in dense.layers] == widths


@pytest.mark.parametrize("config", [*PRESETS.values(), *PATTERNS.values()], ids=[*PRESETS, *PATTERNS])
def test_tables_of_hash_routing_follow_the_vocabulary(config):
    larger = config.with_vocabulary(3001)
    assert larger.vocab_size == 3001
    hashed = [layer.moe for layer in larger.layers if layer.moe is not None and layer.moe.select == "hash"]
    assert {moe.hash_vocab_size for moe in hashed} <= {3001}
    assert larger.with_vocabulary(config.vocab_size) == config


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_of_any_preset_takes_any_tokenizer_and_keeps_its_own_head(name):
    options = {"dense": False, "dropout": None, "tokenizer": ByteTokenizer(), "data": {}}
    plain, drafts = (make_run(name, {}, **options, mtp=mtp).model for mtp in (False, True))
    assert plain.vocab_size == 257
    assert drafts == (plain.replace(mtp=MTPConfig()) if plain.mtp is None else plain)


def test_replace_validates_again():
    config = ModelConfig.preset("nano")
    assert config.replace_moe(top_k=3).moe.top_k == 3
    with pytest.raises(UserError, match="top_k=9"):
        config.replace_moe(top_k=9)
    assert config.replace_attention(rope_theta=500.0).attention.rope_theta == 500
    with pytest.raises(UserError, match="head_dim=7"):
        config.replace_attention(head_dim=7)
    with pytest.raises(UserError, match=r"dense \(moe=None\).*start from a sparse preset"):
        ModelConfig(**MODEL).replace_moe(top_k=1)


def test_configs_are_frozen_and_hashable():
    config = ModelConfig.preset("nano")
    assert hash(config) == hash(ModelConfig.from_dict(config.to_dict()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.d_model = 3


def test_user_errors_are_value_errors():
    assert issubclass(UserError, ValueError)
