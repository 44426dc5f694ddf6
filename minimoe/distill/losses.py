r"""Distillation losses: how far a student is from its teacher, at every position.

Axes: ``*batch`` any leading axes (``B L`` in training), V vocabulary, k cached words, D and W widths of student and
teacher. Letters: p is the teacher's distribution, q the student's, T the temperature that divides both logits.

Each loss returns one float32 number for each position, in nats. Where ``where`` is False the number is 0.0, even if the
logits there are NaN. `masked_mean` takes the mean. Only the student receives a gradient. For its logits it is:

==========================  =========================================================================================
`forward_kl`                ``(q - p) / T``
`reverse_kl`                ``q * (log q - log p - KL(q||p)) / T``
`hinton_kd`, soft part      ``T * (q - p)``, which tends to ``(z_student - z_teacher) / V``, both centred
`topk_kl`                   ``(q - p) / T`` on the k words, ``q * (1 - p_tail / q_tail) / T`` on the others
==========================  =========================================================================================

Logits of +-10,000 do not overflow, because all losses work on log-probabilities. A word that both models mask with
``-inf`` adds 0. Forward KL is inf if the teacher uses a word that the student masks. Reverse KL is inf if the student uses
a word that the teacher masks.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Integer

from minimoe.errors import UserError
from minimoe.layers import as_mask
from minimoe.layers.token_ids import TokenIds, as_labels, spoil

_LOG_ZERO = -1e30  # exp of it is 0.0, and it may be subtracted from itself: -inf may not


def forward_kl(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    *,
    temperature: int | float = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """``KL(p || q) = sum_v p_v (log p_v - log q_v)``: the student must cover whatever the teacher says.

    The mean is under the teacher: a mode that the student lacks costs much, one that it invents costs little. Its
    minimum over q is the minimum of cross-entropy with the teacher's soft targets.

    Args:
      student_logits, teacher_logits: of one vocabulary, any float dtype.
      temperature: T > 0. The result is not multiplied by T**2; `hinton_kd` does that.
      where: True at real positions.

    Returns:
      Nats, float32, at least 0 up to rounding; 0.0 when the distributions are equal.

    Raises:
      UserError: if the shapes differ or T is not above 0.

    Example:
      >>> teacher, student = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.75, 0.25]))
      >>> print(f"{forward_kl(student, teacher):.4f} {forward_kl(teacher, teacher):.4f}")  # log(2/sqrt(3)), 0
      0.1438 0.0000

    References:
      Kullback and Leibler, `On Information and Sufficiency <https://www.jstor.org/stable/2236703>`_.
    """
    log_q, log_p = _log_probs(student_logits, teacher_logits, temperature, where)
    return _kl(log_p, log_q)


def reverse_kl(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    *,
    temperature: int | float = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """``KL(q || p) = sum_v q_v (log q_v - log p_v)``: the student must say only what the teacher would.

    The mean is under the student: it may drop modes of the teacher that it cannot hold. On text that the student wrote
    itself this is on-policy distillation, the loss of DeepSeek-V4's last stage, over the whole vocabulary.

    Args, Raises: as `forward_kl`.

    Returns:
      Nats, float32; 0.0 when the distributions are equal.

    Example:
      >>> teacher, student = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.75, 0.25]))
      >>> print(f"{reverse_kl(student, teacher):.4f}")  # not the 0.1438 of forward_kl
      0.1308

    References:
      Gu et al., `MiniLLM <https://arxiv.org/abs/2306.08543>`_, section 2.1.
    """
    log_q, log_p = _log_probs(student_logits, teacher_logits, temperature, where)
    return _kl(log_q, log_p)


def generalized_jsd(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    beta: int | float = 0.5,
    *,
    temperature: int | float = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``: between the two KLs, and bounded.

    At 0.5 it is the Jensen-Shannon divergence. The formula is 0 at both ends for any p and q, and only its slope there
    is a KL: divided by beta it tends to ``KL(p || q)`` as beta goes to 0, divided by 1 - beta to ``KL(q || p)`` as beta
    goes to 1. As TRL does, ``beta=0`` therefore *is* `forward_kl` here and ``beta=1`` *is* `reverse_kl`: the ends are
    not the limits of their neighbours.

    Args:
      beta: weight of the teacher in the mixture, 0..1. The rest as `forward_kl`.

    Returns:
      Nats, float32; 0.0 when the distributions are equal, and for 0 < beta < 1 never above
      ``-beta log beta - (1 - beta) log(1 - beta)``, log 2 at 0.5, which two distributions that share no word reach.

    Raises:
      UserError: if beta is outside 0..1; else as `forward_kl`.

    Example:
      >>> apart = generalized_jsd(jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0]))
      >>> print(f"{apart:.4f} {jnp.log(2.0):.4f}")
      0.6931 0.6931

    References:
      Agarwal et al., `On-Policy Distillation of Language Models <https://arxiv.org/abs/2306.13649>`_ (GKD), eq. 1.
    """
    if not 0 <= beta <= 1:
        raise UserError(f"beta={beta} must be in 0..1; 0 is forward KL, 0.5 Jensen-Shannon, 1 reverse KL")
    log_q, log_p = _log_probs(student_logits, teacher_logits, temperature, where)
    if beta == 0:
        return _kl(log_p, log_q)
    if beta == 1:
        return _kl(log_q, log_p)
    floors = jnp.maximum(log_p, _LOG_ZERO), jnp.maximum(log_q, _LOG_ZERO)  # logaddexp of two -inf has a NaN for a slope
    log_m = jnp.logaddexp(floors[0] + jnp.log(beta), floors[1] + jnp.log1p(-beta))
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def hinton_kd(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    labels: TokenIds,
    temperature: int | float = 2.0,
    alpha: int | float = 0.5,
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """``(1 - alpha) CE(labels, q at T=1) + alpha T**2 KL(p || q at T)``: hard labels and soft targets together.

    The gradient of the KL shrinks as 1/T**2, so T**2 keeps the two terms comparable when T is changed.

    Args:
      labels: ids ``[*batch]`` of the words that really follow, 0..V-1; anything where ``where`` is False.
      temperature: T > 0; more of it shows more of what the teacher finds second best.
      alpha: weight of the teacher, 0..1. The rest as `forward_kl`.

    Returns:
      Nats, float32; the cross-entropy at ``alpha=0``, and 0.0 at ``alpha=1`` when the logits are equal.

    Raises:
      UserError: if alpha is outside 0..1, or a label is no id at a position that counts (under `jax.jit` its loss is
        NaN instead); else as `forward_kl`.

    Example:
      >>> logits = jnp.zeros(4)
      >>> print(f"{hinton_kd(logits, logits, jnp.array(3), alpha=0.0):.4f}")  # log 4: no teacher
      1.3863
      >>> print(f"{hinton_kd(logits, logits, jnp.array(3), alpha=1.0):.4f}")
      0.0000

    References:
      Hinton et al., `Distilling the Knowledge in a Neural Network <https://arxiv.org/abs/1503.02531>`_, section 2.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha={alpha} must be in 0..1; 0 is labels only, 1 the teacher only")
    soft = temperature**2 * forward_kl(student_logits, teacher_logits, temperature=temperature, where=where)
    counted = as_mask(where, student_logits.shape[:-1], "hinton_kd")
    labels, wrong = as_labels(labels, student_logits.shape[-1], counted, owner="hinton_kd")
    logits = _real(student_logits, where)
    hard = spoil(optax.softmax_cross_entropy_with_integer_labels(logits, labels), wrong)
    loss = (1 - alpha) * hard + alpha * soft
    return loss if where is None else jnp.where(where, loss, 0.0)


def topk_kl(
    student_logits: Float[Array, "*batch V"],
    values: Float[Array, "*batch k"],
    ids: Integer[Array, "*batch k"],
    tail: Float[Array, "*batch"],
    *,
    renormalize: bool = False,
    temperature: int | float = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """`forward_kl` from the teacher's k best words, all others taken together as one more class.

    ``sum_{i<=k} p_i (log p_i - log q_i) + p_tail (log p_tail - log q_tail)``, where ``p_tail`` is the mass outside the
    k words. This value is at most the full KL, because joining classes loses information. The difference is
    ``p_tail`` times the KL inside the tail. With k = V the two are equal.

    With ``renormalize`` the tail is left out, and p and q each sum to 1 over the k words. This value times the
    teacher's mass on the k words, ``1 - p_tail``, is a lower bound of the full KL. The value itself is no bound. It
    does not ask the student to put its mass on the k words.

    Args:
      student_logits: the student's whole vocabulary.
      values: the teacher's k largest logits or log-probabilities, already divided by its temperature.
      ids: the words they belong to, each at most once.
      tail: logsumexp of all other values, on the same scale; ``-inf`` if there are none. For log-probabilities it is
        the log of the mass outside.
      renormalize: see above.
      temperature: divides the student's logits; give the one that ``values`` were made at.
      where: True at real positions.

    Returns:
      Nats, float32; 0.0 when the student has the same k probabilities (renormalised: the same ratios).

    Raises:
      UserError: if T is not above 0, or one of ``ids`` is outside 0..V-1 at a position that counts (under `jax.jit` its
        loss is NaN instead).

    Example:
      >>> teacher, student = jnp.log(jnp.array([0.5, 0.3, 0.1, 0.1])), jnp.log(jnp.array([0.25, 0.25, 0.4, 0.1]))
      >>> values, ids = jax.lax.top_k(teacher, 2)
      >>> print(f"{topk_kl(student, values, ids, jnp.log(0.2)):.4f}")
      0.2180
      >>> print(f"{forward_kl(student, teacher):.4f}")
      0.2626

    References:
      Cover and Thomas, Elements of Information Theory, theorem 2.5.3: the chain rule of relative entropy.
    """
    _check_temperature(temperature)
    values, tail, logits = _real(values, where), tail.astype(jnp.float32), _real(student_logits, where) / temperature
    counted = jnp.broadcast_to(as_mask(where, tail.shape, "topk_kl")[..., None], ids.shape)
    ids, wrong = as_labels(ids, logits.shape[-1], counted, owner="topk_kl")
    if where is not None:
        tail = jnp.where(where, tail, -jnp.inf)
    values, tail = jax.lax.stop_gradient(values), jax.lax.stop_gradient(tail)
    chosen = jnp.take_along_axis(logits, ids, axis=-1)  # [*batch, k]
    if renormalize:
        loss = _kl(jax.nn.log_softmax(values), jax.nn.log_softmax(chosen))
    else:
        others = jnp.put_along_axis(logits, ids, _LOG_ZERO, axis=-1, inplace=False)  # exact where 1 - sum(q) is not
        student_tail = jax.nn.logsumexp(jnp.maximum(others, _LOG_ZERO), axis=-1)
        joined = jnp.concatenate([chosen, student_tail[..., None]], axis=-1)  # [*batch, k+1]
        teacher = jnp.concatenate([values, tail[..., None]], axis=-1)
        loss = _kl(jax.nn.log_softmax(teacher), jax.nn.log_softmax(joined))
    loss = spoil(loss, wrong.any(axis=-1))
    return loss if where is None else jnp.where(where, loss, 0.0)


def hidden_state_matching(
    student: Float[Array, "*batch D"],
    teacher: Float[Array, "*batch W"],
    projection: Float[Array, "D W"] | None = None,
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """``mean_w (student @ projection - teacher)_w ** 2``: the student imitates the hidden states of the teacher.

    The projection lets a narrow student learn from a wide teacher. It is trained with the student and not needed after
    training. Two models can agree on every word and still have different hidden states.

    Args:
      student, teacher: activations of the two at the same positions, any float dtype.
      projection: ``[D, W]``; None if the widths are equal. It receives gradient, as the student does.
      where: True at real positions.

    Returns:
      Squared units of the teacher's activations, float32; 0.0 when they match, the mean square of the teacher's when
      the student is silent.

    Raises:
      UserError: if the widths do not fit.

    Example:
      >>> loss = hidden_state_matching(jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0, 5.0]), jnp.eye(2, 3))
      >>> print(f"{loss:.4f}")  # 5 ** 2 / 3
      8.3333

    References:
      Romero et al., `FitNets <https://arxiv.org/abs/1412.6550>`_, eq. 3 (half the sum there, the mean here).
    """
    width = student.shape[-1] if projection is None else projection.shape[-1]
    if width != teacher.shape[-1]:
        found = f"the student's hidden states have width {width}, the teacher's {teacher.shape[-1]}"
        raise UserError(f"{found}; give a projection of shape [{student.shape[-1]}, {teacher.shape[-1]}]")
    hidden, target = _real(student, where), jax.lax.stop_gradient(_real(teacher, where))
    if projection is not None:
        hidden = hidden @ projection.astype(jnp.float32)
    return optax.losses.squared_error(hidden, target).mean(axis=-1)


def masked_mean(losses: Float[Array, "*batch"], where: Bool[Array, "*batch"] | None = None) -> Float[Array, ""]:
    """Mean over the real positions, 0.0 if there are none.

    Example:
      >>> print(masked_mean(jnp.array([1.0, 3.0, 0.0]), jnp.array([True, True, False])))
      2.0
    """
    where = as_mask(where, losses.shape, "masked_mean")
    return jnp.sum(losses, where=where) / jnp.maximum(where.sum(), 1).astype(losses.dtype)


# By name, with one signature: (student_logits, teacher_logits, *, temperature, where). "jsd" is at beta = 0.5.
DIVERGENCES: dict[str, Callable[..., Array]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": generalized_jsd,
}


def _kl(log_p: Float[Array, "*batch V"], log_q: Float[Array, "*batch V"]) -> Float[Array, "*batch"]:
    """``sum p (log p - log q)`` over the words with p > 0. Other words add 0 to the value and to both gradients."""
    held = jnp.exp(log_p) > 0
    log_p, log_q = jnp.where(held, log_p, _LOG_ZERO), jnp.where(held, log_q, 0.0)
    return optax.losses.kl_divergence_with_log_targets(log_q, log_p)


def _log_probs(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch _"],
    temperature: int | float,
    where: Bool[Array, "*batch"] | None,
) -> tuple[Float[Array, "*batch V"], Float[Array, "*batch V"]]:
    """Log-softmax of student and teacher at a temperature. At padding both are uniform."""
    _check_temperature(temperature)
    if student_logits.shape != teacher_logits.shape:
        found = f"student {student_logits.shape}, teacher {teacher_logits.shape}"
        raise UserError(f"logits have different shapes: {found}; distil between models of one vocabulary")
    log_q = jax.nn.log_softmax(_real(student_logits, where) / temperature)
    return log_q, jax.nn.log_softmax(jax.lax.stop_gradient(_real(teacher_logits, where)) / temperature)


def _real(array: Float[Array, "*batch V"], where: Bool[Array, "*batch"] | None) -> Float[Array, "*batch V"]:
    """The array in float32, with 0 where ``where`` is False, so that a NaN there cannot reach the gradient."""
    array = array.astype(jnp.float32)
    if where is None:
        return array
    return jnp.where(as_mask(where, array.shape[:-1], "distillation loss")[..., None], array, 0.0)


def _check_temperature(temperature: int | float) -> None:
    if not temperature > 0:
        raise UserError(f"temperature={temperature} must be above 0; 1 leaves the logits as they are, 2 is usual")
