"""One exported program for every batch and length: `jax.export` with symbolic dimensions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe import ModelConfig, MoEConfig, MoELayer, MoETransformer, UserError
from minimoe.attention import MultiHeadLatentConfig, SlidingWindowConfig
from minimoe.moe.dropless import BLOCK_ROWS

CONFIG = MoEConfig(d_model=8, d_expert=6, num_experts=4, top_k=2, num_shared_experts=1)
ANY_LOAD = ("loop", "dense", "ragged", "dropless")


def exported(function: Callable[..., Any], width: tuple[int, ...], dtype: Any, *constraints: str) -> Any:
    b, t = jax.export.symbolic_shape("b, t", constraints=constraints)
    return jax.export.export(jax.jit(function))(jax.ShapeDtypeStruct((b, t, *width), dtype))


def tiny(*, moe: MoEConfig = CONFIG, **kwargs: Any) -> MoETransformer:
    config = ModelConfig.preset("nano").replace(num_layers=2, d_model=8, moe=moe, context_length=64, **kwargs)
    return MoETransformer(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("dispatch", ANY_LOAD)
def test_one_program_of_the_layer_equals_it_at_every_size(dispatch):
    layer = MoELayer(dataclasses.replace(CONFIG, dispatch=dispatch), rngs=nnx.Rngs(0))
    program = exported(lambda x: tuple(jax.tree.leaves(layer(x))), (8,), jnp.float32)
    for size in ((1, 1), (2, 5), (3, 100)):  # a step of decoding, a few tokens, and blocks beyond the slots
        x = jax.random.normal(jax.random.key(1), (*size, 8))
        want = jax.tree.leaves(layer(x))
        for got, wanted in zip(program.call(x), want, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_its_gradient_also_where_one_expert_takes_everything():
    layer = MoELayer(CONFIG, rngs=nnx.Rngs(0))
    layer.router.bias[...] = jnp.array([9.0, 8.0, 0.0, 0.0])
    x = jax.random.normal(jax.random.key(1), (2, 2 * BLOCK_ROWS, 8))
    assert float(layer(x)[1].load[0]) == 4 * BLOCK_ROWS  # four times its slots and more than one block

    def slope(x):
        return jax.grad(lambda x: jnp.sin(layer(x)[0]).sum())(x)

    np.testing.assert_allclose(exported(slope, (8,), jnp.float32).call(x), slope(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "change", [{"dispatch": "capacity"}, {"select": "expert_choice"}], ids=["capacity", "expert_choice"]
)
def test_slots_need_the_number_of_tokens(change):
    layer = MoELayer(dataclasses.replace(CONFIG, **change), rngs=nnx.Rngs(0))
    with pytest.raises(
        UserError, match=r'number of tokens, which is b\*t here; .*MoEConfig\(select="topk", dispatch="dropless"'
    ):
        exported(lambda x: layer(x)[0], (8,), jnp.float32)


MLA = MultiHeadLatentConfig(num_heads=2, kv_rank=4, nope_dim=4, rope_dim=2, v_dim=4)
MODELS = {
    "dropless": {},
    "dense": {"moe": dataclasses.replace(CONFIG, dispatch="dense")},
    "latent": {"attention": MLA},
    "hash": {"moe": dataclasses.replace(CONFIG, select="hash", hash_vocab_size=2048)},
}


@pytest.mark.parametrize("parts", MODELS.values(), ids=MODELS)
def test_one_program_of_the_model_equals_it_at_every_size(parts):
    model = tiny(**parts)
    program = exported(lambda tokens: model(tokens)[0], (), jnp.int32)
    for size in ((1, 3), (2, 64)):
        tokens = jax.random.randint(jax.random.key(1), size, 0, 2048)
        np.testing.assert_allclose(program.call(tokens), model(tokens)[0], rtol=1e-4, atol=1e-5)


def test_positions_beyond_the_context_are_nan_or_refused_by_a_constraint():
    model = tiny()
    tokens = jax.random.randint(jax.random.key(1), (1, 70), 0, 2048)
    logits = exported(lambda tokens: model(tokens)[0], (), jnp.int32).call(tokens)
    np.testing.assert_allclose(logits[:, :64], model(tokens[:, :64])[0], rtol=1e-4, atol=1e-5)
    assert bool(jnp.isnan(logits[:, 64:]).all())
    with pytest.raises(ValueError, match="t <= 64"):
        exported(lambda tokens: model(tokens)[0], (), jnp.int32, "t <= 64").call(tokens)


def test_windows_need_a_length():
    window = SlidingWindowConfig(num_heads=2, head_dim=4, rope_dim=2, q_rank=4, window=8, out_groups=1, out_rank=4)
    model = tiny(attention=window)
    with pytest.raises(UserError, match="sliding: the length is t, but its windows need a number; export one length"):
        exported(lambda tokens: model(tokens)[0], (), jnp.int32)
