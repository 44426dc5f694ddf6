"""The head for multi-token prediction: its sizes, its loss against a loop, and training with it."""

from __future__ import annotations

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_training import DATA, MODEL, RECIPE, TOKENIZER, VALIDATION, assert_same_bits, batch, flat

from minimoe import ModelConfig, MoETransformer, UserError
from minimoe.config import LayerConfig, MTPConfig
from minimoe.cost import (
    account,
    count_params,
    forward_flops_per_token,
    mtp_flops_per_token,
    training_flops_per_token,
)
from minimoe.layers import HyperConnectionConfig
from minimoe.moe import sparse_layers
from minimoe.training import Recipe, RunConfig, init_training, train, train_step
from minimoe.training.step import mtp_loss

PLAIN = MODEL.replace(num_layers=1, dropout=0.0)  # fewer layers compile sooner
WITH = PLAIN.replace(mtp=MTPConfig())
STREAMS = WITH.replace(residual=HyperConnectionConfig())


def recipe(**changes) -> Recipe:
    return Recipe(**RECIPE.to_dict() | changes)


@pytest.mark.parametrize(
    "config",
    [WITH, STREAMS, WITH.replace(mtp=MTPConfig(LayerConfig(d_ff=12))), WITH.dense_equivalent()],
    ids=["like the last layer", "streams", "a dense block", "dense"],
)
def test_its_parameters_are_counted_apart(config):
    model = nnx.eval_shape(lambda: MoETransformer(config, rngs=nnx.Rngs(0)))
    sizes = {path[0]: 0 for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        sizes[path[0]] += math.prod(variable.shape)
    count, plain = count_params(config), count_params(config.replace(mtp=None))
    assert count.mtp == sizes["mtp"] > 0 == plain.mtp
    assert count.total == sum(sizes.values()) == plain.total + count.mtp
    assert count.active == plain.active
    trunk = config.replace(mtp=None)
    assert forward_flops_per_token(config) == forward_flops_per_token(trunk)
    extra = training_flops_per_token(config) - training_flops_per_token(trunk)
    assert extra == pytest.approx(3 * mtp_flops_per_token(config))
    record = account(config, 8).to_record()
    assert (record["params_total"], record["params_active"]) == (count.total, count.active)
    assert record["params"]["multi-token prediction"] == count.mtp
    assert record["params_active_by_part"]["multi-token prediction"] == 0


def test_configs_go_through_json_and_those_of_before_load():
    for config in (WITH, WITH.replace(mtp=MTPConfig(LayerConfig(d_ff=12)))):
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    old = PLAIN.to_dict()
    del old["mtp"]
    assert ModelConfig.from_dict(old) == PLAIN
    changed = WITH.replace(mtp=MTPConfig(LayerConfig(moe=MODEL.moe))).replace_moe(top_k=1)
    assert changed.mtp_layer.moe.top_k == 1
    assert Recipe.from_dict({k: v for k, v in RECIPE.to_dict().items() if k != "mtp_weight"}) == RECIPE
    with pytest.raises(UserError, match="depth=2"):
        MTPConfig(depth=2)
    with pytest.raises(UserError, match=r"mtp_weight=-1\.0"):
        recipe(mtp_weight=-1.0)


def test_the_model_of_one_seed_has_the_same_trunk_with_and_without():
    with_head, without = (flat(MoETransformer(config, rngs=nnx.Rngs(0))) for config in (WITH, PLAIN))
    assert_same_bits(
        {name: with_head[name] for name in without if "rngs" not in name},
        {n: v for n, v in without.items() if "rngs" not in n},
    )
    assert {name.split("/")[1] for name in set(with_head) - set(without)} == {"mtp"}
    model = MoETransformer(WITH, rngs=nnx.Rngs(0))
    assert sparse_layers(model)[-1] is model.mtp.block.ffn
    tokens, targets, _ = batch(0)
    assert model.forward(tokens).mtp_logits is None, "what nobody asked for is not computed"
    with pytest.raises(UserError, match=r"the model has no head for .*; give its config mtp=MTPConfig\(\)"):
        MoETransformer(PLAIN, rngs=nnx.Rngs(0)).forward(tokens, next_tokens=targets)


def loss_by_hand(logits, targets, where) -> float:
    """Row by row and place by place, in float64."""
    losses = []
    for row in range(logits.shape[0]):
        for place in range(logits.shape[1] - 1):
            if where[row, place] and where[row, place + 1]:
                scores = np.asarray(logits[row, place], np.float64)
                losses.append(np.log(np.exp(scores).sum()) - scores[targets[row, place + 1]])
    return float(np.mean(losses)) if losses else 0.0


def test_the_loss_is_that_of_the_token_after_the_next():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(3, 5, 7)).astype(np.float32), rng.integers(7, size=(3, 5)).astype(np.int32)
    where = np.ones((3, 5), bool)
    where[1, 3:], where[2] = False, False
    targets[~where] = -100
    found = mtp_loss(jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(where))
    assert float(found) == pytest.approx(loss_by_hand(logits, targets, where), rel=1e-6)
    assert float(mtp_loss(jnp.asarray(logits), jnp.asarray(targets), jnp.zeros((3, 5), bool))) == 0


@pytest.mark.parametrize("config", [WITH, STREAMS], ids=["add", "streams"])
def test_a_place_knows_the_next_token_and_none_after_it(config):
    """And the loss of the head alone reaches trunk, embedding and head."""
    tokens, targets, where = batch(0)
    graphdef, params, rest = nnx.split(MoETransformer(config, rngs=nnx.Rngs(0)), nnx.Param, ...)

    @jax.jit
    def run(params, tokens, targets):
        def loss(params):
            output = nnx.merge(graphdef, params, rest).forward(tokens, where=where, next_tokens=targets)
            return mtp_loss(output.mtp_logits, targets, where), output.mtp_logits

        return jax.grad(loss, has_aux=True)(params)

    gradient, logits = run(params, tokens, targets)
    changed = run(params, tokens.at[:, 9].add(1), targets.at[:, 8].add(1))[1]
    np.testing.assert_allclose(changed[:, :8], logits[:, :8], atol=1e-5)
    assert float(jnp.abs(changed[:, 8] - logits[:, 8]).max()) > 1e-3
    reached = {path[0] for path, leaf in nnx.to_flat_state(gradient) if float(jnp.abs(leaf[...]).max()) > 0}
    assert {"embed", "layers", "mtp"} <= reached
    assert "norm" not in reached, "the model's last norm is not the head's"


def test_the_head_reads_every_stream():
    """The equation holds for each, as a loop says; what two streams exchange, their sum does not show, and the head sees."""
    tokens, targets, _ = batch(0)
    model = MoETransformer(STREAMS, rngs=nnx.Rngs(0))
    stream = model.forward(tokens).stream
    assert stream.shape == (*tokens.shape, 4, STREAMS.d_model)
    exchanged = stream.at[:, :, 2].add(1.0).at[:, :, 3].add(-1.0)
    head, embedded = model.mtp, model.embed(targets)

    def by_hand(streams):
        told = head.token_norm(embedded)
        each = [
            jnp.concatenate([head.hidden_norm(streams[:, :, j]), told], -1) @ head.join_proj.kernel for j in range(4)
        ]
        x, _, _ = head.block(jnp.stack(each, axis=2), targets)
        return model.embed.attend(head.norm(head.leave(x)))

    for streams in (stream, exchanged):
        found = model.look_ahead(streams, targets)[0]
        np.testing.assert_allclose(found, by_hand(streams), atol=1e-5)
    assert float(jnp.abs(found - model.look_ahead(stream, targets)[0]).max()) > 1e-2


def test_a_step_adds_the_weighted_loss():
    """Of the same batch: with the head, the first loss is the same. With a weight of 0, its block sees no step at all."""
    found = {}
    for name, config, weight in (("with", WITH, 0.3), ("off", WITH, 0.0)):
        run = RunConfig(config, recipe(steps=4, mtp_weight=weight), {"name": "test"}, "byte")
        model, optimizer = init_training(run)
        metrics = train_step(model, optimizer, *batch(0), jax.random.key(0), recipe=run.recipe)
        bias = np.asarray(sparse_layers(model)[-1].router.bias[...])
        found[name] = (float(metrics.loss), metrics.mtp, float(metrics.grad_norm), metrics.load.shape[0], bias)
    assert found["off"][0] == pytest.approx(found["with"][0], rel=1e-6)
    assert found["off"][1] is None
    assert found["off"][2] != pytest.approx(found["with"][2], rel=1e-5)
    assert float(found["with"][1]) == pytest.approx(math.log(257), rel=0.05)
    assert [found[name][3] for name in ("with", "off")] == [2, 1]
    assert np.abs(found["with"][4]).max() > 0 == np.abs(found["off"][4]).max()


def test_training_goes_on_bit_by_bit(tmp_path):
    run = RunConfig(WITH, recipe(steps=4), {"name": "test"}, "byte")  # the program of the test above
    want = train(run, DATA, VALIDATION, TOKENIZER, out=tmp_path / "run")
    assert all(math.isfinite(line["mtp_loss"]) for line in want.records if line["kind"] == "train")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    again = train(run, DATA, VALIDATION, TOKENIZER, out=tmp_path / "run", resume=True)
    assert_same_bits(flat(again.model), flat(want.model))
