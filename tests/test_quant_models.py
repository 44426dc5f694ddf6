"""Whole models: what a recipe makes of them, and what it refuses."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe import MoETransformer, UserError, generate
from minimoe.model import check_trainable, copy_model
from minimoe.moe import Experts
from minimoe.quant.dequantize import dequantize_model, is_quantized
from minimoe.quant.layers import QuantLinear
from minimoe.quant.models import quantize_model, routing_changes, size_report
from minimoe.quant.recipes import RECIPES, QuantRecipe, Rule, get_recipe
from minimoe.quant.report import STORED
from minimoe.quant.specs import FP8_TILE, INT4_GROUP32, INT8_CHANNEL, INT8_TOKEN, MXFP4, Spec
from minimoe.quant.tensor import QTensor, quantize
from minimoe.training import Recipe, make_optimizer, train_step

TOKENS = jnp.asarray(
    np.random.default_rng(1).integers(19, size=(2, 13)), jnp.int32
)  # one shape for all, so that a model is compiled once
traces = []


@nnx.jit
def forward(model, tokens):
    traces.append(model)
    return model(tokens)


def logits_of(model):
    return forward(model, TOKENS)[0]


@pytest.fixture(scope="module")
def models(tiny_model, tiny_config):
    """Sparse and tied; sparse, untied, without shared experts; dense."""
    plain = tiny_config.replace_moe(num_shared_experts=0).replace(tie_embeddings=False, num_layers=1)
    return {
        "sparse": tiny_model,
        "untied": MoETransformer(plain, rngs=nnx.Rngs(0)),
        "dense": MoETransformer(tiny_config.replace(moe=None, d_ff=12, num_layers=1), rngs=nnx.Rngs(0)),
    }


@pytest.fixture(scope="module")
def quantized(tiny_model):
    return functools.cache(lambda name: quantize_model(tiny_model, name))


def abstract(model: MoETransformer, name: str) -> MoETransformer:
    """Shapes and formats alone, which nothing needs to be compiled for."""
    return nnx.eval_shape(lambda: quantize_model(model, name))


def test_weight_only_is_the_float_model_with_decoded_weights(tiny_model, quantized):
    got, want = logits_of(quantized("int4")), logits_of(dequantize_model(quantized("int4")))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(got - logits_of(tiny_model)).max()) > 1e-3, "and not the float model itself"


def test_the_way_back_is_a_plain_model(tiny_model, quantized):
    back = dequantize_model(quantized("v4"))
    assert not is_quantized(back)
    assert is_quantized(quantized("v4"))
    shapes = [jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(model))) for model in (back, tiny_model)]
    assert shapes[0] == shapes[1]
    copy = dequantize_model(tiny_model)
    np.testing.assert_array_equal(logits_of(copy), logits_of(tiny_model))
    copy.norm.scale[...] = copy.norm.scale[...] + 1
    assert float(jnp.abs(copy.norm.scale[...] - tiny_model.norm.scale[...]).min()) == 1, "a copy, not a view"


def test_rounded_activations_stay_near(tiny_model, quantized):
    """In the middle: a token that lands at another expert may end up anywhere."""
    want = logits_of(tiny_model)
    for name, limit in (("int8-w8a8", 0.1), ("v4", 0.5)):
        error = np.median(np.abs(np.asarray(logits_of(quantized(name)) - want)))
        assert 0 < error < limit * np.median(np.abs(want)), name


@pytest.mark.parametrize("kind", ["sparse", "untied", "dense"])
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_fit_all_models(name, kind, models):
    report = size_report(abstract(models[kind], name))
    assert report.bytes < size_report(models[kind]).bytes
    formats = {row.path: row.format for row in report.rows}
    first = "layers.0.ffn.down_proj.weight" if kind == "dense" else "layers.0.ffn.experts.down"
    rule = get_recipe(name).rule_for(first.rpartition(".")[0])
    assert formats[first] == rule.weight.format
    rest = "bfloat16" if name == "v4" else "float32"
    assert {formats[path] for path in formats if "norm" in path or ("kernel" in path and "router" in path)} == {rest}


def test_the_original_is_untouched(tiny_model):
    copy = nnx.clone(tiny_model)
    before = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(nnx.state(tiny_model))]
    router = QuantRecipe("r", (Rule("router", INT8_CHANNEL), Rule("experts|proj", INT8_CHANNEL)), rest="bfloat16")
    quantize_model(tiny_model, router)
    assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(nnx.state(tiny_model))] == before
    assert nnx.graphdef(tiny_model) == nnx.graphdef(copy)
    assert isinstance(tiny_model.layers[0].ffn.experts, Experts)
    assert all(STORED not in leaf.get_metadata() for _, leaf in nnx.to_flat_state(nnx.state(tiny_model)))


def test_v4_rounds_what_is_left(quantized, tiny_model):
    model = quantized("v4")
    attention, ffn = model.layers[0].attention, model.layers[0].ffn
    assert ffn.experts.down.spec == MXFP4
    assert (attention.q_proj.weight.spec.format, attention.q_proj.weight.spec.scale_format) == ("fp8_e4m3", "ue8m0")
    assert ffn.shared.down_proj.weight.spec == attention.o_proj.weight.spec
    for rounded, exact in [
        (model.embed.embedding, tiny_model.embed.embedding),
        (ffn.router.kernel, tiny_model.layers[0].ffn.router.kernel),
        (model.norm.scale, tiny_model.norm.scale),
    ]:
        assert rounded[...].dtype == jnp.float32
        np.testing.assert_array_equal(rounded[...], exact[...].astype(jnp.bfloat16).astype(jnp.float32))
    rows = {row.path: row for row in size_report(model).rows}
    assert rows["embed.embedding"].bytes == 2 * 19 * 8
    assert rows["layers.0.ffn.router.bias"].format == "float32"


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_add_up(name, tiny_model):
    model = abstract(tiny_model, name)
    report, bits = size_report(model), 0
    for _, module in nnx.iter_modules(model):
        for value in vars(module).values():
            if isinstance(value, QTensor):
                bits += 8 * -(-value.bits // 8)
            elif isinstance(value, nnx.Variable):
                bits += value.get_value().size * (16 if STORED in value.get_metadata() else 32)
    assert 8 * report.bytes == bits
    assert report.bytes == sum(row.bytes for row in report.rows) == sum(report.by_format().values())
    values = sum(int(np.prod(row.shape)) for row in report.rows)
    biases = 2 * 4
    assert report.bfloat16_bytes == 2 * (values - biases) + 4 * biases
    assert report.bits_per_value == pytest.approx(bits / values)
    assert report.over_bfloat16 == report.bytes / report.bfloat16_bytes


def test_size_of_one_matrix(quantized):
    row = next(row for row in size_report(quantized("mxfp4")).rows if row.path.endswith("experts.gate_up"))
    assert (row.shape, row.format, row.bits_per_value) == ((4, 12, 8), "fp4_e2m1", 4 + 8 / 8)
    assert row.bytes == 4 * 12 * (4 + 1)


def test_generation(quantized):
    """Prefill takes the way for many assignments, decoding the one for few: as the uncached model does."""
    model = quantized("int8-w8a8")
    text = np.asarray(generate(model, TOKENS[:, :9], 4, temperature=0.0))
    for step in range(9, 13):
        padded = np.zeros((2, 13), np.int32)
        padded[:, :step] = text[:, :step]
        want = np.asarray(forward(model, jnp.asarray(padded))[0])[:, step - 1].argmax(axis=-1)
        np.testing.assert_array_equal(text[:, step], want)


def test_compiled_once(tiny_model):
    first, second = (quantize_model(tiny_model, "int8-w8a8") for _ in range(2))
    forward(first, TOKENS)
    count = len(traces)
    forward(first, TOKENS + 0)
    forward(second, TOKENS)
    assert len(traces) == count


def test_first_rule_wins_and_none_keeps(tiny_model):
    recipe = QuantRecipe(
        "mine", (Rule(r"layers\.0\.attention"), Rule("q_proj", INT4_GROUP32), Rule("_proj$", INT8_CHANNEL, INT8_TOKEN))
    )
    model = quantize_model(tiny_model, recipe)
    assert isinstance(model.layers[0].attention.q_proj, nnx.Linear)
    assert model.layers[1].attention.q_proj.weight.spec == INT4_GROUP32
    assert model.layers[1].attention.k_proj.weight.spec == INT8_CHANNEL
    assert model.layers[0].ffn.shared.down_proj.activations == INT8_TOKEN
    assert isinstance(model.layers[0].ffn.experts, Experts)


def test_a_router_can_be_rounded_for_an_experiment(tiny_model):
    model = quantize_model(
        tiny_model, QuantRecipe("bad idea", (Rule("router", Spec("int4", INT8_CHANNEL.granularity)),))
    )
    kernel = tiny_model.layers[0].ffn.router.kernel[...]
    want = quantize(kernel.T, Spec("int4", INT8_CHANNEL.granularity)).dequantize().T
    np.testing.assert_array_equal(model.layers[0].ffn.router.kernel[...], want)
    assert 0 < routing_changes(tiny_model, model, TOKENS) < 0.5
    with pytest.raises(UserError, match=r"layers\.0\.ffn\.router: the router reads float32; .*activations=None"):
        quantize_model(tiny_model, QuantRecipe("worse", (Rule("router", INT8_CHANNEL, INT8_TOKEN),)))


def test_routing_changes_counts_sets(tiny_model, models):
    assert routing_changes(tiny_model, tiny_model, TOKENS) == 0.0
    swapped = nnx.clone(tiny_model)
    kernel = swapped.layers[1].ffn.router.kernel  # of the last layer, so that nothing after it moves
    kernel[...] = -kernel[...]
    ours, theirs = (np.asarray(forward(model, TOKENS)[1][1].experts) for model in (tiny_model, swapped))
    lost = [len(set(a) - set(b)) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]
    assert routing_changes(tiny_model, swapped, TOKENS) == sum(lost) / (2 * 2 * TOKENS.size)
    where = jnp.ones((2, 13), bool).at[:, :9].set(False)  # context: not counted, but read
    counted = [n for n, real in zip(lost, np.asarray(where).reshape(-1), strict=True) if real]
    assert routing_changes(tiny_model, swapped, TOKENS, where=where) == sum(counted) / (2 * 2 * 8)
    with pytest.raises(
        UserError, match=r"have \(layers, experts\) \(1, None\) and \(1, None\); give two sparse models"
    ):
        routing_changes(models["dense"], models["dense"], TOKENS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(value, tiny_model):
    broken = nnx.clone(tiny_model)
    kernel = broken.layers[1].ffn.experts.down_proj
    kernel[...] = kernel[...].at[0, 1, 2].set(value)
    with pytest.raises(UserError, match=r"layers\.1\.ffn\.experts\.down_proj: .* 1 NaN or infinite .*repair"):
        quantize_model(broken, "int8")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((Rule("exprts", MXFP4),), r"rule 1 of recipe 'mine', pattern 'exprts', matches nothing .*layers\.0\.ffn\.exp"),
        ((Rule("ffn", MXFP4), Rule("experts", MXFP4)), r"rule 2 .* only what rules before it have taken; move it up"),
        ((Rule("norm", MXFP4),), "matches nothing"),
    ],
)
def test_rules_that_decide_nothing(rules, message, tiny_model):
    with pytest.raises(UserError, match=message):
        quantize_model(tiny_model, QuantRecipe("mine", rules))
    optional = tuple(dataclasses.replace(rule, optional=True) for rule in rules)
    quantize_model(tiny_model, QuantRecipe("mine", optional))


def test_refusals(tiny_model, quantized):
    with pytest.raises(UserError, match="recipe 'int9' is unknown; choose one of int8, int8-w8a8, int4, fp8"):
        quantize_model(tiny_model, "int9")
    with pytest.raises(UserError, match="quantized already; start from the float model"):
        quantize_model(quantized("mxfp4"), "int8")
    with pytest.raises(UserError, match=r"pattern '\(' is no regular expression"):
        Rule("(")
    with pytest.raises(UserError, match="activations without a weight"):
        Rule("experts", None, FP8_TILE)
    with pytest.raises(UserError, match="rest='float16' is not known"):
        QuantRecipe("mine", (), rest="float16")
    biased = nnx.clone(tiny_model)
    biased.layers[0].attention.q_proj = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"layers\.0\.attention\.q_proj has a bias, .*use_bias=False"):
        quantize_model(biased, "int8")


def test_training_a_quantized_model_is_refused(tiny_model, quantized):
    """By the step at once, and by any gradient through rounded activations; weights that are rounded alone have one."""
    recipe = Recipe(steps=2)
    model = copy_model(quantized("mxfp4"))
    optimizer = nnx.Optimizer(model, make_optimizer(recipe), wrt=nnx.Param)
    with pytest.raises(UserError, match=r"\(layers\.0\.ffn\.experts holds codes\).* minimoe\.quant\.dequantize_model"):
        train_step(model, optimizer, TOKENS, TOKENS, TOKENS >= 0, jax.random.key(0), recipe=recipe)
    check_trainable(dequantize_model(quantized("mxfp4")))
    matrix, x = jnp.ones((3, 4)), jnp.ones((2, 4))
    for activations in (INT8_TOKEN, FP8_TILE):
        layer = QuantLinear(quantize(matrix, INT8_CHANNEL), activations=activations)
        with pytest.raises(UserError, match=r"rounding has no gradient; use minimoe\.quant\.dequantize_model"):
            jax.grad(lambda x, layer=layer: layer(x).sum())(x)
    layer = QuantLinear(quantize(matrix, INT8_CHANNEL))
    np.testing.assert_allclose(jax.grad(lambda x: layer(x).sum())(x), 3.0)
