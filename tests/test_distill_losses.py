"""Distillation losses: known values, loops in float64, gradients against their formulas, and the laws of divergences."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minimoe import distill
from minimoe.distill import masked_mean
from minimoe.errors import UserError

# Compiled whole: one program a loss and shape costs less than its operations one by one.
STATIC = ("temperature", "beta", "alpha", "renormalize")


def compiled(function):
    names = inspect.signature(function).parameters
    return jax.jit(function, static_argnames=[name for name in STATIC if name in names])


forward_kl, reverse_kl, generalized_jsd = map(compiled, distill.DIVERGENCES.values())
hinton_kd, topk_kl, hidden_state_matching = map(
    compiled, (distill.hinton_kd, distill.topk_kl, distill.hidden_state_matching)
)
DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": generalized_jsd}

V, K = 7, 3
SHAPE = (2, 3, V)
WHERE = np.array([[True, False, True], [True, True, False]])


def logits_of(seed: int, scale: float = 2.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=SHAPE)).astype(np.float32)


STUDENT, TEACHER = logits_of(0), logits_of(1)
LABELS = np.random.default_rng(2).integers(0, V, SHAPE[:2]).astype(np.int32)


# The definitions, as loops in float64


def softmax(row, temperature=1.0):
    row = np.asarray(row, np.float64) / temperature
    weights = [np.exp(x - max(row)) for x in row]
    return [w / sum(weights) for w in weights]


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def jsd(p, q, beta):
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def hinton(p_logits, q_logits, label, temperature, alpha):
    hard = -np.log(softmax(q_logits)[label])
    return (1 - alpha) * hard + alpha * temperature**2 * kl(
        softmax(p_logits, temperature), softmax(q_logits, temperature)
    )


def joined(p, ids):
    """Probabilities of the words in ``ids``, and of all others together."""
    kept = [p[i] for i in ids]
    return [*kept, 1 - sum(kept)] if len(kept) < len(p) else kept


def each(function):
    """``function(teacher row, student row, position)`` at every position."""
    return np.array([[function(TEACHER[b, i], STUDENT[b, i], (b, i)) for i in range(3)] for b in range(2)])


def teacher_top(teacher=TEACHER, k=K):
    values, ids = jax.lax.top_k(jnp.asarray(teacher), k)
    rest = np.array(teacher, np.float64)
    np.put_along_axis(rest, np.asarray(ids), -np.inf, axis=-1)
    top = np.max(np.asarray(values, np.float64), axis=-1)  # of all: no overflow at large logits
    with np.errstate(divide="ignore"):
        tail = top + np.log(np.exp(rest - top[..., None]).sum(axis=-1))
    return values, ids, jnp.asarray(tail, jnp.float32)


def compute(name, student, teacher, top, where):
    """Every loss by one signature."""
    if name == "hinton":
        return hinton_kd(student, teacher, jnp.asarray(LABELS), 3.0, 0.7, where=where)
    if name.startswith("topk"):
        return topk_kl(student, *top, renormalize=name == "topk_renormalized", where=where)
    if name == "hidden":
        return hidden_state_matching(student, teacher, where=where)
    return DIVERGENCES[name](student, teacher, temperature=1.5, where=where)


values_of = jax.jit(compute, static_argnums=0)
slopes_of = jax.jit(jax.grad(lambda x, name, *rest: compute(name, x, *rest).sum()), static_argnums=1)


def inputs(student, teacher, where):
    arrays = jnp.asarray(student), jnp.asarray(teacher), teacher_top(jnp.asarray(teacher))
    return *arrays, None if where is None else jnp.asarray(where)


def call(name, student=STUDENT, teacher=TEACHER, where=None):
    return values_of(name, *inputs(student, teacher, where))


def slope_of(name, student=STUDENT, teacher=TEACHER, where=None):
    """The gradient of the sum over positions, with respect to the student."""
    student, *rest = inputs(student, teacher, where)
    return np.asarray(slopes_of(student, name, *rest))


LOSSES = [*DIVERGENCES, "hinton", "topk", "topk_renormalized", "hidden"]


@pytest.mark.parametrize("temperature", [1, 2.5])
def test_losses_match_the_loops(temperature):
    T = temperature
    want = {
        "forward_kl": each(lambda t, s, _: kl(softmax(t, T), softmax(s, T))),
        "reverse_kl": each(lambda t, s, _: kl(softmax(s, T), softmax(t, T))),
        "jsd": each(lambda t, s, _: jsd(softmax(t, T), softmax(s, T), 0.5)),
    }
    for name, loss in DIVERGENCES.items():
        found = loss(jnp.asarray(STUDENT), jnp.asarray(TEACHER), temperature=T)
        np.testing.assert_allclose(found, want[name], rtol=1e-4, atol=1e-6)
    for alpha in (0, 0.3, 1):
        found = hinton_kd(jnp.asarray(STUDENT), jnp.asarray(TEACHER), jnp.asarray(LABELS), T, alpha)
        loop = each(lambda t, s, at, a=alpha: hinton(t, s, LABELS[at], T, a))
        np.testing.assert_allclose(found, loop, rtol=1e-4, atol=1e-6)


def test_forward_and_reverse_differ_and_are_each_other_swapped():
    student, teacher = jnp.asarray(STUDENT), jnp.asarray(TEACHER)
    np.testing.assert_array_equal(forward_kl(student, teacher), reverse_kl(teacher, student))
    assert np.abs(forward_kl(student, teacher) - reverse_kl(student, teacher)).min() > 1e-3


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_between_the_ends(beta):
    student, teacher = jnp.asarray(STUDENT), jnp.asarray(TEACHER)
    found = generalized_jsd(student, teacher, beta)
    np.testing.assert_allclose(found, each(lambda t, s, _: jsd(softmax(t), softmax(s), beta)), rtol=1e-4)
    np.testing.assert_allclose(found, generalized_jsd(teacher, student, 1 - beta), rtol=1e-4, atol=1e-6)
    entropy = -beta * np.log(beta) - (1 - beta) * np.log(1 - beta)
    assert float(found.max()) <= entropy
    apart = generalized_jsd(jnp.array([1e4, -1e4]), jnp.array([-1e4, 1e4]), beta)
    np.testing.assert_allclose(apart, entropy, rtol=1e-5)


def test_jsd_ends_are_the_kls_and_not_the_limits():
    student, teacher = jnp.asarray(STUDENT), jnp.asarray(TEACHER)
    np.testing.assert_array_equal(generalized_jsd(student, teacher, 0), forward_kl(student, teacher))
    np.testing.assert_array_equal(generalized_jsd(student, teacher, 1.0), reverse_kl(student, teacher))
    near = 1e-3
    low, high = generalized_jsd(student, teacher, near), generalized_jsd(student, teacher, 1 - near)
    assert float(low.max()) < 0.01
    np.testing.assert_allclose(low / near, forward_kl(student, teacher), rtol=0.1)
    np.testing.assert_allclose(high / near, reverse_kl(student, teacher), rtol=0.1)


# Laws that all share


@pytest.mark.parametrize("name", LOSSES)
def test_zero_value_and_gradient_at_equality(name):
    if name == "hinton":
        name = "forward_kl"  # its hard part is not zero there
    np.testing.assert_allclose(call(name, TEACHER), np.zeros(SHAPE[:2]), atol=1e-6)
    np.testing.assert_allclose(slope_of(name, TEACHER), np.zeros(SHAPE), atol=1e-6)
    assert float(call(name).min()) > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_masked_equals_subset_whatever_stands_in_the_padding(name):
    """The value, and the gradient: a NaN in a place left out must reach neither."""
    student, teacher = STUDENT.copy(), TEACHER.copy()
    student[~WHERE], teacher[~WHERE] = np.nan, np.nan
    found = call(name, student, teacher, WHERE)
    np.testing.assert_allclose(found, np.where(WHERE, call(name), 0), rtol=1e-5)
    assert (np.asarray(found)[~WHERE] == 0).all()
    slope = slope_of(name, student, teacher, WHERE)
    np.testing.assert_allclose(slope, np.where(WHERE[..., None], slope_of(name), 0), atol=1e-6)
    np.testing.assert_allclose(masked_mean(found, jnp.asarray(WHERE)), np.asarray(call(name))[WHERE].mean(), rtol=1e-5)


def test_labels_of_padding_need_not_be_ids():
    labels = jnp.where(jnp.asarray(WHERE), jnp.asarray(LABELS), -100)
    slope = jax.grad(lambda x: hinton_kd(x, jnp.asarray(TEACHER), labels, 3.0, 0.7, where=jnp.asarray(WHERE)).sum())(
        jnp.asarray(STUDENT)
    )
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_gets_no_gradient(name):
    if name.startswith("topk"):
        values, ids, tail = teacher_top()
        loss = jax.jit(jax.grad(lambda v, t: topk_kl(jnp.asarray(STUDENT), v, ids, t).sum(), argnums=(0, 1)))
        slopes = loss(values, tail)
    else:
        slopes = [jax.jit(jax.grad(lambda t: compute(name, jnp.asarray(STUDENT), t, None, None).sum()))(TEACHER)]
    assert all((np.asarray(slope) == 0).all() for slope in slopes)


@pytest.mark.parametrize("name", LOSSES)
def test_large_logits_give_finite_numbers(name):
    student = np.sign(STUDENT) * np.float32(1e4)
    teacher = np.sign(TEACHER) * np.float32(1e4)
    assert np.isfinite(call(name, student, teacher)).all()
    assert np.isfinite(slope_of(name, student, teacher)).all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "hidden"])
def test_words_masked_in_both_models_count_as_nothing(name):
    """Padding the vocabulary with -inf leaves values and gradients as they were, and pulls on nothing there."""
    if name == "hinton":
        padded = [np.concatenate([x, np.full((2, 3, 2), -np.inf, np.float32)], -1) for x in (STUDENT, TEACHER)]
    else:
        padded = [np.concatenate([np.full((2, 3, 2), -np.inf, np.float32), x], -1) for x in (STUDENT, TEACHER)]
    np.testing.assert_allclose(call(name, *padded), call(name), rtol=1e-5, atol=1e-6)
    slope, real = slope_of(name, *padded), np.isfinite(padded[0])
    np.testing.assert_allclose(slope[real].reshape(SHAPE), slope_of(name), rtol=1e-4, atol=1e-6)
    assert (slope[~real] == 0).all()


def test_words_masked_in_one_model():
    allowed, forbids = jnp.zeros(2), jnp.array([0.0, -jnp.inf])
    assert forward_kl(forbids, allowed) == jnp.inf
    assert reverse_kl(allowed, forbids) == jnp.inf
    np.testing.assert_allclose(forward_kl(allowed, forbids), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(reverse_kl(forbids, allowed), np.log(2), rtol=1e-6)
    assert float(generalized_jsd(forbids, allowed)) < np.log(2)
    assert np.isfinite(jax.grad(generalized_jsd)(forbids, allowed)).all()


@pytest.mark.parametrize("name", LOSSES)
def test_float32_out_of_bfloat16(name):
    student, teacher = (np.asarray(jnp.asarray(x, jnp.bfloat16)) for x in (STUDENT, TEACHER))
    found = call(name, student, teacher)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        found, call(name, student.astype(np.float32), teacher.astype(np.float32)), rtol=1e-5, atol=1e-6
    )


# Gradients


def probabilities(logits, temperature=1.0):
    return np.apply_along_axis(softmax, -1, logits, temperature)


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_gradients_are_the_formulas_of_the_docstring(T):
    student, teacher = jnp.asarray(STUDENT), jnp.asarray(TEACHER)
    q, p = probabilities(STUDENT, T), probabilities(TEACHER, T)
    forward = jax.grad(lambda x: forward_kl(x, teacher, temperature=T).sum())(student)
    np.testing.assert_allclose(forward, (q - p) / T, atol=1e-6)
    ratio = np.log(q) - np.log(p)
    reverse = jax.grad(lambda x: reverse_kl(x, teacher, temperature=T).sum())(student)
    want = q * (ratio - (q * ratio).sum(-1, keepdims=True)) / T
    np.testing.assert_allclose(reverse, want, atol=1e-6)
    both = jax.grad(lambda x: hinton_kd(x, teacher, jnp.asarray(LABELS), T, 0.25).sum())(student)
    hard = probabilities(STUDENT) - np.eye(V)[LABELS]
    np.testing.assert_allclose(both, 0.75 * hard + 0.25 * T * (q - p), atol=1e-5)


def test_topk_gradient_is_the_formula_of_the_docstring():
    values, ids, tail = teacher_top()
    q, p = probabilities(STUDENT), probabilities(TEACHER)
    kept = np.zeros(SHAPE, bool)
    np.put_along_axis(kept, np.asarray(ids), True, axis=-1)
    q_tail, p_tail = (np.where(kept, 0, x).sum(-1, keepdims=True) for x in (q, p))
    want = np.where(kept, q - p, q * (1 - p_tail / q_tail))
    found = jax.grad(lambda x: topk_kl(x, values, ids, tail).sum())(jnp.asarray(STUDENT))
    np.testing.assert_allclose(found, want, atol=1e-6)


def soft_gradient(temperature):
    teacher, labels = jnp.asarray(TEACHER), jnp.asarray(LABELS)
    loss = jax.jit(jax.grad(lambda x: hinton_kd(x, teacher, labels, temperature, 1.0).sum()))
    return np.asarray(loss(jnp.asarray(STUDENT)))


def test_temperature_squared_keeps_the_gradient_comparable():
    """At high T the soft gradient no longer depends on T, and is that of half the squared error of centred logits."""
    sizes = {T: np.linalg.norm(soft_gradient(T)) for T in (50.0, 100.0)}
    np.testing.assert_allclose(sizes[50.0], sizes[100.0], rtol=0.02)
    centred = [x - x.mean(-1, keepdims=True) for x in (STUDENT, TEACHER)]
    np.testing.assert_allclose(soft_gradient(100.0), (centred[0] - centred[1]) / V, atol=0.02)
    without = [np.linalg.norm(soft_gradient(T)) / T**2 for T in (50.0, 100.0)]
    assert without[0] / without[1] > 3.9, "without the factor it falls as 1/T**2"


# Top-k


def test_topk_matches_the_loop_and_bounds_the_whole():
    found = topk_kl(jnp.asarray(STUDENT), *teacher_top())
    _, ids, _ = teacher_top()
    want = each(lambda t, s, at: kl(joined(softmax(t), ids[at]), joined(softmax(s), ids[at])))
    np.testing.assert_allclose(found, want, rtol=1e-4)
    full = forward_kl(jnp.asarray(STUDENT), jnp.asarray(TEACHER))
    assert (np.asarray(found) < np.asarray(full)).all()

    def inside_tail(t, s, at):
        others = [v for v in range(V) if v not in np.asarray(ids[at])]
        p, q = ([softmax(x)[v] for v in others] for x in (t, s))
        return sum(p) * kl([x / sum(p) for x in p], [x / sum(q) for x in q])

    np.testing.assert_allclose(full - found, each(inside_tail), rtol=1e-3, atol=1e-5)


def test_topk_renormalised_times_its_mass_is_a_lower_bound():
    values, ids, tail = teacher_top()
    found = topk_kl(jnp.asarray(STUDENT), values, ids, tail, renormalize=True)

    def loop(t, s, at):
        p, q = ([softmax(x)[v] for v in np.asarray(ids[at])] for x in (t, s))
        return kl([x / sum(p) for x in p], [x / sum(q) for x in q])

    np.testing.assert_allclose(found, each(loop), rtol=1e-4, atol=1e-6)
    mass = np.take_along_axis(probabilities(TEACHER), np.asarray(ids), -1).sum(-1)
    assert (mass * np.asarray(found) <= np.asarray(topk_kl(jnp.asarray(STUDENT), values, ids, tail))).all()


def test_topk_of_everything_is_the_whole():
    student, teacher = jnp.asarray(STUDENT), jnp.asarray(TEACHER)
    values, ids, tail = teacher_top(k=V)
    assert (tail == -jnp.inf).all()
    for renormalize in (False, True):
        value, slope = jax.value_and_grad(lambda x, r=renormalize: topk_kl(x, values, ids, tail, renormalize=r).sum())(
            student
        )
        np.testing.assert_allclose(value, forward_kl(student, teacher).sum(), rtol=1e-5)
        np.testing.assert_allclose(slope, jax.grad(lambda x: forward_kl(x, teacher).sum())(student), atol=1e-6)


def test_topk_takes_logits_or_log_probabilities_and_unsigned_ids():
    values, ids, tail = teacher_top()
    shift = jax.nn.logsumexp(jnp.asarray(TEACHER), axis=-1)
    found = topk_kl(jnp.asarray(STUDENT), values - shift[..., None], ids.astype(jnp.uint16), tail - shift)
    np.testing.assert_allclose(found, topk_kl(jnp.asarray(STUDENT), values, ids, tail), rtol=1e-4)


def test_topk_temperature():
    values, ids, tail = teacher_top(TEACHER / 3)
    found = topk_kl(jnp.asarray(STUDENT), values, ids, tail, temperature=3)
    np.testing.assert_allclose(found, topk_kl(jnp.asarray(STUDENT) / 3, values, ids, tail), rtol=1e-5)


def test_topk_sees_a_tail_that_has_almost_no_mass():
    """1 - sum(q) is 0 in float32 here; the logsumexp of the others is not."""
    student = jnp.array([40.0, 0.0, 0.0])
    found = topk_kl(student, jnp.array([0.0]), jnp.array([0]), jnp.array(0.0))  # p = (1/2, 1/2 on the others)
    np.testing.assert_allclose(found, kl([0.5, 0.5], [1.0, 2 * np.exp(-40)]), rtol=1e-5)


# Hidden states


def test_hidden_states_with_a_projection():
    rng = np.random.default_rng(3)
    student, projection, teacher = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4), (4, V), SHAPE))
    found = hidden_state_matching(jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(projection))
    np.testing.assert_allclose(found, ((student @ projection - teacher) ** 2).mean(-1), rtol=1e-5)
    silent = hidden_state_matching(jnp.zeros(SHAPE), jnp.asarray(teacher))
    np.testing.assert_allclose(silent, (teacher**2).mean(-1), rtol=1e-6)
    slope = jax.grad(lambda w: hidden_state_matching(jnp.asarray(student), jnp.asarray(teacher), w).sum())(
        jnp.asarray(projection)
    )
    want = np.einsum("bld,blw->dw", student, 2 * (student @ projection - teacher) / V)
    np.testing.assert_allclose(slope, want, rtol=1e-4, atol=1e-5)


def test_any_leading_axes():
    np.testing.assert_allclose(
        forward_kl(jnp.asarray(STUDENT[0, 0]), jnp.asarray(TEACHER[0, 0])),
        forward_kl(jnp.asarray(STUDENT), jnp.asarray(TEACHER))[0, 0],
        rtol=1e-6,
    )
    assert masked_mean(jnp.ones((2, 2)), jnp.zeros((2, 2), bool)) == 0


def test_bad_arguments():
    x, labels = jnp.zeros((1, 4)), jnp.zeros(1, jnp.int32)
    with pytest.raises(UserError, match="temperature=0 must be above 0"):
        forward_kl(x, x, temperature=0)
    with pytest.raises(UserError, match="temperature=-1"):
        topk_kl(x, x[:, :1], jnp.zeros((1, 1), jnp.int32), jnp.zeros(1), temperature=-1)
    with pytest.raises(UserError, match=r"beta=1\.5 must be in 0\.\.1"):
        generalized_jsd(x, x, 1.5)
    with pytest.raises(UserError, match=r"alpha=-0\.1 must be in 0\.\.1"):
        hinton_kd(x, x, labels, alpha=-0.1)
    with pytest.raises(Exception, match=r"different shapes|parameter 'teacher_logits'"):
        forward_kl(x, jnp.zeros((1, 5)))
    with pytest.raises(UserError, match=r"width 4, the teacher's 5; give a projection of shape \[4, 5\]"):
        hidden_state_matching(x, jnp.zeros((1, 5)))
