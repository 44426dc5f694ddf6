"""Quantization-aware training: the rounding, its gradient, the laws that tie it to the quantized model, the loop."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe import MoETransformer, UserError
from minimoe.data import ByteTokenizer, Document, training_data
from minimoe.experiments import Learning, fp8_training, qat_mxfp4
from minimoe.experiments.workplace import Workplace
from minimoe.quant.fp8_training import with_fp8_training
from minimoe.quant.methods import Fp8Products, QuantizationAware
from minimoe.quant.models import QuantRecipe, Rule, quantize_model
from minimoe.quant.qat import fake_quantize, qat_transform
from minimoe.quant.specs import FP8_BLOCK_UE8M0, INT8_CHANNEL, MXFP4, MXFP4_OCP, NVFP4, SPECS
from minimoe.quant.tensor import quantize
from minimoe.training import (
    Combined,
    Recipe,
    RunConfig,
    init_training,
    lm_loss,
    make_optimizer,
    train,
    train_step,
)

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(6, 70)).astype(np.float32))
TOKENS = jnp.asarray(RNG.integers(19, size=(2, 7)), jnp.int32)
EVERYTHING = QuantRecipe(
    "everything", (Rule("experts$", MXFP4), Rule("router$", INT8_CHANNEL), Rule("_proj$", NVFP4)), rest="bfloat16"
)

forward = nnx.jit(lambda model, tokens: model(tokens)[0])


def arrays(state) -> dict[str, np.ndarray]:
    return {"/".join(map(str, path)): np.array(v[...]) for path, v in nnx.to_flat_state(state)}


@pytest.mark.parametrize("name", SPECS)
def test_forward_is_the_round_trip_and_backward_the_identity(name):
    spec = SPECS[name]
    value, pull = jax.vjp(lambda x: fake_quantize(x, spec), X)
    np.testing.assert_array_equal(value, quantize(X, spec).dequantize())
    assert (value != X).any()
    (gradient,) = pull(X)
    np.testing.assert_array_equal(gradient, X)


def test_saturated_values_get_their_gradient_too():
    x = jnp.array([[7.9, 1.0, 0.0]])  # the rule of the MX specification keeps the scale at 1, and 6 is the largest
    value, pull = jax.vjp(lambda x: fake_quantize(x, MXFP4_OCP), x)
    np.testing.assert_array_equal(value, [[6.0, 1.0, 0.0]])
    np.testing.assert_array_equal(pull(x)[0], x)


def test_fp8_holds_the_rounded_experts_exactly():
    """DeepSeek-V4 multiplies them in FP8: fp4 values with power-of-two scales, 2**14 apart at most in a block."""
    x = X * jnp.exp2(jnp.arange(0, 12, 2, dtype=jnp.float32))[:, None]
    fp4 = fake_quantize(x, MXFP4)
    np.testing.assert_array_equal(fake_quantize(fp4, FP8_BLOCK_UE8M0), fp4)
    assert (fake_quantize(x, FP8_BLOCK_UE8M0) != x).any()


@pytest.fixture(scope="module")
def parts(tiny_model):
    return nnx.split(tiny_model, nnx.Param, ...)


@pytest.mark.parametrize("recipe", ["int8", "mxfp4", EVERYTHING], ids=lambda r: getattr(r, "name", r))
def test_the_rounded_model_is_the_quantized_model(recipe, tiny_model, parts):
    graphdef, params, rest = parts
    rounded = nnx.merge(graphdef, qat_transform(tiny_model, recipe)(params), rest)
    want = forward(quantize_model(tiny_model, recipe), TOKENS)
    np.testing.assert_allclose(forward(rounded, TOKENS), want, rtol=1e-4, atol=1e-5)
    assert np.abs(want - forward(tiny_model, TOKENS)).max() > 1e-3


def test_the_gradient_is_that_of_the_rounded_weights(tiny_model, parts):
    graphdef, params, rest = parts
    transform = qat_transform(tiny_model, EVERYTHING)

    @jax.jit
    def gradients(params):
        def loss(params):
            logits, _ = nnx.merge(graphdef, params, rest)(TOKENS)
            return lm_loss(logits[:, :-1], TOKENS[:, 1:], jnp.ones((2, 6), bool))

        return jax.grad(lambda params: loss(transform(params)))(params), jax.grad(loss)(transform(params))

    through, at_rounded = map(arrays, gradients(params))
    assert through.keys() == arrays(params).keys()
    for name in through:
        np.testing.assert_allclose(through[name], at_rounded[name], rtol=1e-6, atol=1e-7, err_msg=name)
        assert through[name].any(), name


def test_transforms_of_the_same_rules_are_equal(tiny_config, tiny_model):
    """So that a step is compiled once for them; shapes without weights are enough to make one."""
    shapes = nnx.eval_shape(lambda: MoETransformer(tiny_config, rngs=nnx.Rngs(0)))
    one, two = qat_transform(shapes, "mxfp4"), qat_transform(tiny_model, "mxfp4")
    assert one == two
    assert hash(one) == hash(two)
    assert one != qat_transform(tiny_model, "mxfp4-ocp")


def test_what_the_recipe_does_not_name_is_passed_on(tiny_model, parts):
    before, after = arrays(parts[1]), arrays(qat_transform(tiny_model, "mxfp4")(parts[1]))
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {name for name in before if "experts" in name}


def test_unknown_recipes_and_idle_rules_are_refused(tiny_model):
    with pytest.raises(UserError, match="recipe 'mxfp5' is unknown"):
        qat_transform(tiny_model, "mxfp5")
    with pytest.raises(UserError, match="pattern 'expurts', matches nothing in this model"):
        qat_transform(tiny_model, QuantRecipe("typo", (Rule("expurts", MXFP4),)))


# In training

RECIPE = Recipe(steps=4, batch_size=2, learning_rate=1e-2, warmup_steps=1, log_every=1)


def test_a_step_scores_the_rounded_weights_and_moves_the_exact_ones(tiny_config):
    model = MoETransformer(tiny_config, rngs=nnx.Rngs(0))
    nnx.update(model, jax.tree.map(lambda p: p * 3, nnx.state(model, nnx.Param)))
    where = jnp.ones(TOKENS.shape, bool)
    want = lm_loss(forward(quantize_model(model, "mxfp4"), TOKENS), TOKENS, where)
    transform = qat_transform(model, "mxfp4")
    optimizer = nnx.Optimizer(model, make_optimizer(RECIPE), wrt=nnx.Param)
    before = np.array(model.layers[0].ffn.experts.down_proj[...])
    metrics = train_step(
        model, optimizer, TOKENS, TOKENS, where, jax.random.key(0), recipe=RECIPE, transform_params=transform
    )
    assert float(metrics.loss) == pytest.approx(float(want), rel=1e-5)
    moved = np.array(model.layers[0].ffn.experts.down_proj[...]) - before
    assert 0 < np.abs(moved).max() < 2 * RECIPE.learning_rate * 1.5, "an update, not a jump to the next code"


@pytest.fixture(scope="module")
def small(tiny_config):
    """Run, data, validation and tokenizer of a training that takes a second."""
    tokenizer = ByteTokenizer()
    data = training_data([Document("abc", "train", "1", "abcdefgh" * 12)], tokenizer)
    config = tiny_config.replace(vocab_size=257, context_length=8, num_layers=1)
    return RunConfig(config, RECIPE, {}, "byte"), data, [Document("abc", "val", "2", "abcdefgh")], tokenizer


def losses(result) -> list[float]:
    return [record["loss"] for record in result.records if record["kind"] == "train"]


def by_hand(run, data, model, optimizer, transform=None) -> list[float]:
    """The losses of a loop over `train_step` with nothing else around it."""
    found = []
    for step in range(run.recipe.steps):
        batch = data.batch(run.recipe.seed, step, run.recipe.batch_size, run.model.context_length)
        arrays = (jnp.asarray(array) for array in (batch.tokens, batch.targets, batch.where))
        key = jax.random.fold_in(jax.random.key(run.recipe.seed), step)
        metrics = train_step(model, optimizer, *arrays, key, recipe=run.recipe, transform_params=transform)
        found.append(float(metrics.loss))
    return found


def test_methods_take_the_steps_that_a_loop_by_hand_takes(small):
    """Bit for bit: plain training, rounded weights, 8-bit products."""
    run, data = small[:2]
    plain = train(*small)
    model, optimizer = init_training(run)
    assert losses(plain) == by_hand(run, data, model, optimizer)
    model, optimizer = init_training(run)
    rounded = train(*small, method=QuantizationAware("mxfp4"))
    assert losses(rounded) == by_hand(run, data, model, optimizer, qat_transform(model, "mxfp4"))
    model = with_fp8_training(init_training(run)[0])
    optimizer = nnx.Optimizer(model, make_optimizer(run.recipe), wrt=nnx.Param)
    fp8 = train(*small, method=Fp8Products())
    assert losses(fp8) == by_hand(run, data, model, optimizer)
    assert len({tuple(losses(result)) for result in (plain, rounded, fp8)}) == 3


def test_the_methods_are_stored_and_compared(small, tmp_path):
    both = Combined(QuantizationAware("mxfp4"), Fp8Products())
    train(*small, out=tmp_path, method=both)
    written = json.loads((tmp_path / "config.json").read_text())["method"]
    assert written == both.to_dict() == {
        "name": "combined",
        "methods": [{"name": "quantization-aware", "recipe": "mxfp4"}, {"name": "fp8-products"}],
    }  # fmt: skip
    for other in (None, QuantizationAware("int8"), Combined(QuantizationAware("int8"), Fp8Products())):
        with pytest.raises(UserError, match="method "):
            train(*small, out=tmp_path, method=other, resume=True)
    with pytest.raises(
        UserError, match=r"'quantization-aware' and 'quantization-aware' both change .* transform_params"
    ):
        train(*small, method=Combined(QuantizationAware("int8"), QuantizationAware("mxfp4")))


def test_experiments_hand_their_methods_to_training(tiny_config, monkeypatch, tmp_path):
    for module in (qat_mxfp4, fp8_training):
        monkeypatch.setattr(module, "read_corpus", lambda work, run: Learning(None))
    monkeypatch.setattr(Workplace, "finished", lambda work, name: name)
    work, config = Workplace(tmp_path), SimpleNamespace(model=tiny_config)

    def learning_of(run):
        return run.learn(work, config, **run.settings)

    plain, qat = qat_mxfp4.runs({})[:2]
    assert (plain.changes, plain.settings["quantized"]) == (qat.changes, qat.settings["quantized"])
    assert learning_of(plain) == (None, "small-hour/small", None)
    assert learning_of(qat).model == "small-hour/small"
    assert learning_of(qat).method == QuantizationAware("mxfp4")
    float32, fp8 = fp8_training.runs({})[:2]
    assert float32.changes == fp8.changes
    assert (float32.settings, learning_of(fp8).method) == ({}, Fp8Products())
