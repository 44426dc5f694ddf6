"""Labels that are no ids: named where their values are known, NaN under jit, free where the mask leaves them out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minimoe import UserError
from minimoe.distill import hinton_kd, topk_kl
from minimoe.training import lm_loss
from minimoe.training.evaluate import eval_step

V = 19
B, L = 2, 3
KEPT = jnp.array([[True, True, True], [True, True, False]])


def batch(wrong, dtype=np.int32):
    """Logits, and labels whose one wrong id stands at [0, 1]; the last place is left out and holds -100."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, V, (B, L)).astype(np.int64)
    labels[0, 1] = wrong
    labels[1, 2] = -100 if np.dtype(dtype).kind == "i" else V + 1
    return jnp.asarray(rng.normal(size=(B, L, V)), jnp.float32), labels.astype(dtype)


def top_words(logits, labels, where):
    """`topk_kl` with the label as the first of two words."""
    ids = jnp.stack([jnp.asarray(labels), jnp.full(labels.shape, V - 1, jnp.asarray(labels).dtype)], axis=-1)
    values = jnp.log(jnp.full((*labels.shape, 2), 0.25))
    return topk_kl(logits, values, ids, jnp.log(jnp.full(labels.shape, 0.5)), where=where)


LOSSES = {
    "lm_loss": lambda logits, labels, where: lm_loss(logits, labels, where),
    "hinton_kd": lambda logits, labels, where: hinton_kd(logits, 0.5 * logits, labels, where=where).sum(),
    "topk_kl": lambda logits, labels, where: top_words(logits, labels, where).sum(),
}


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


@pytest.mark.parametrize("wrong", [-100, -1, V, 2**30])
def test_a_label_outside_the_vocabulary_is_named_where_values_are_known(loss, wrong):
    logits, labels = batch(wrong)
    with pytest.raises(UserError, match=rf"label at \[0, 1.*\] is {wrong}, not in 0\.\.18; leave it out.*where"):
        loss(logits, labels, KEPT)


@pytest.mark.parametrize("wrong", [-100, -1, V, 2**30])
def test_under_jit_loss_and_gradient_are_nan(loss, wrong):
    logits, labels = batch(wrong)
    value, slope = jax.jit(jax.value_and_grad(loss))(logits, jnp.asarray(labels), jnp.asarray(KEPT))
    assert np.isnan(float(value))
    assert np.isnan(np.asarray(slope[0, 1])).all()


def test_what_the_mask_leaves_out_may_be_anything(loss):
    logits, labels = batch(5)
    other = labels.copy()
    other[1, 2] = 7
    want, slope = jax.value_and_grad(loss)(logits, other, KEPT)
    for run in (jax.value_and_grad(loss), jax.jit(jax.value_and_grad(loss))):
        found, found_slope = run(logits, jnp.asarray(labels), jnp.asarray(KEPT))
        np.testing.assert_allclose(float(found), float(want), rtol=1e-6)
        np.testing.assert_allclose(np.asarray(found_slope), np.asarray(slope), rtol=1e-5, atol=1e-7)
        assert not np.asarray(found_slope[1, 2]).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.uint32, np.int64])
def test_labels_of_any_integer_dtype_are_labels(loss, dtype):
    logits, labels = batch(5, dtype)
    want = float(loss(logits, labels.astype(np.int32), KEPT))
    np.testing.assert_allclose(float(loss(logits, labels, KEPT)), want, rtol=1e-6)
    np.testing.assert_allclose(float(jax.jit(loss)(logits, labels, KEPT)), want, rtol=1e-6)


@pytest.mark.parametrize("name", ["lm_loss", "hinton_kd"])
def test_labels_that_are_no_integers_are_refused(name):
    loss = LOSSES[name]
    logits, labels = batch(5)
    with pytest.raises(UserError, match="dtype float32; give token ids as integers"):
        loss(logits, labels.astype(np.float32), KEPT)
    with pytest.raises(UserError, match="dtype float32; give token ids as integers"):
        jax.jit(loss)(logits, labels.astype(np.float32), KEPT)


def test_a_compiled_loss_over_wide_ids_does_not_wrap_them(loss):
    with jax.enable_x64(True):
        logits, labels = batch(5 + 2**32, np.int64)
        assert np.isnan(float(jax.jit(loss)(logits, labels, KEPT)))


def test_no_mask_means_that_every_label_counts():
    logits, labels = batch(-100)
    labels = labels.tolist()
    with pytest.raises(UserError, match=r"hinton_kd: the label at \[0, 1\] is -100"):
        hinton_kd(logits, logits, labels)
    loss = jax.jit(hinton_kd)(logits, logits, jnp.asarray(labels))
    assert np.isnan(np.asarray(loss)).tolist() == [[False, True, False], [False, False, True]]


@pytest.mark.parametrize("wrong", [-100, V])
def test_an_evaluated_row_with_such_a_label_is_nan_and_the_others_stand(tiny_model, wrong):
    _, labels = batch(wrong)
    tokens = jnp.ones((B, L), jnp.int32)
    nats, _ = eval_step(tiny_model, tokens, jnp.asarray(labels), jnp.asarray(KEPT))
    assert np.isnan(np.asarray(nats)).tolist() == [True, False]
