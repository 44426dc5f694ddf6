"""GPTQ: rounding weights one input channel at a time, later channels making up for the error of earlier ones.

Axes: O outputs, I inputs (rows of the weight are independent problems), E experts, G inputs that share a scale.

What counts is not ``W - Wq`` but what the next layer sees, ``X (W - Wq)^T``: its squared size is ``tr(D H D^T)`` with
``D = W - Wq`` and the second moment ``H = X^T X`` from `calibrate`. Where inputs are correlated, an error in one
channel can be cancelled by moving the weights of others that have not been rounded yet.

An expert's H comes only from the tokens routed to it. Few tokens make a poor H: it is right about the rows it has seen
and knows nothing of the rest. `gptq_experts` has two remedies, plain rounding and a share of everybody's tokens.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from minimoe.errors import UserError
from minimoe.model import MoETransformer
from minimoe.model.paths import path_name
from minimoe.moe import Experts
from minimoe.quant.calibrate import Calibration, InputStatistics
from minimoe.quant.layers import QuantExperts
from minimoe.quant.models import QuantRecipe, quantize_model
from minimoe.quant.scales import choose_scale
from minimoe.quant.specs import Spec
from minimoe.quant.tensor import QTensor, quantize

DAMPING = 0.01  # of the mean of the diagonal, as in step 3 of the paper


def gptq(
    weight: Float[Array, "*E O I"],
    moment: Float[np.ndarray, "*E I I"],
    spec: Spec,
    *,
    damping: int | float = DAMPING,
) -> QTensor:
    """Rounds a weight so that its output, not the weight itself, changes little.

    With U the upper Cholesky factor of ``(H + damping * mean(diag H) * identity)^-1``, channel j is rounded to q[j]
    with the scale of its group, and ``(w[j] - q[j]) / U[j, j] * U[j, j+1:]`` is taken from all later channels. The
    scale of a group is chosen when the group's turn comes, from weights that hold what was passed on so far. If H is a
    multiple of the identity, nothing is passed on and this is rounding to nearest.

    The choice is greedy: on the calibration rows it is better than rounding to nearest as a rule, not as a theorem.

    Args:
      weight: contraction axis last, any float dtype; leading axes are experts, each with a moment of its own.
      moment: ``X^T X`` of the calibration rows, or any multiple of it; symmetric, not all 0.
      spec: of the result. The scale above the scales of NVFP4 is chosen once, from the weight as it came.
      damping: keeps H invertible where rows are few or channels silent; above 0.

    Returns:
      As `quantize` does for ``spec``, with the same bits.

    Raises:
      UserError: if damping is not above 0, or a moment is all 0 or not finite.

    Example:
      >>> from minimoe.quant.specs import INT4_GROUP32
      >>> key_w, key_x, key_m = jax.random.split(jax.random.key(0), 3)
      >>> weight = jax.random.normal(key_w, (4, 32))
      >>> x = jax.random.normal(key_x, (64, 8)) @ jax.random.normal(key_m, (8, 32))  # 8 directions in 32 channels
      >>> moment = np.asarray(x.T @ x)
      >>> plain, better = quantize(weight, INT4_GROUP32), gptq(weight, moment, INT4_GROUP32)
      >>> bool(output_error(weight, better, moment) < 0.5 * output_error(weight, plain, moment))
      True

    References:
      Frantar et al., `GPTQ <https://arxiv.org/abs/2210.17323>`_, algorithm 1, with its blocks as wide as our groups.
    """
    upper = _inverse_factor(np.asarray(moment, np.float64), damping)
    above = quantize(weight, spec).tensor_scale  # also refuses NaN
    chooser = dataclasses.replace(spec, scale_format="float32", tensor_scale=False) if spec.tensor_scale else spec
    work = np.array(weight, np.float64)  # a copy: rounded channels on the left, corrected ones on the right
    inputs, width = work.shape[-1], spec.granularity.block_shape(work.shape)[-1]
    scales, zero_points = [], []
    for start in range(0, inputs, width):
        here, later = slice(start, start + width), slice(start + width, inputs)
        group = jnp.asarray(work[..., here], jnp.float32)
        scale, zero_point = choose_scale(group, chooser)
        block = jnp.asarray(upper[..., here, here], jnp.float32)
        rounded, errors = _round_group(group, block, scale, zero_point, above, spec)
        work[..., here] = rounded
        work[..., later] -= np.asarray(errors, np.float64) @ upper[..., here, later]
        scales.append(scale)
        zero_points += [] if zero_point is None else [zero_point]
    # Every value is already a code times its scale, so this rounds nothing: it writes the codes down.
    return quantize(
        jnp.asarray(work, jnp.float32),
        spec,
        scale=jnp.concatenate(scales, axis=-1),
        zero_point=jnp.concatenate(zero_points, axis=-1) if zero_points else None,
        tensor_scale=above,
    )


def _inverse_factor(moment: Float[np.ndarray, "*E I I"], damping: int | float) -> Float[np.ndarray, "*E I I"]:
    """Upper triangular U with ``U^T U`` the inverse of the damped moment, in float64.

    Row j holds what algorithm 1 needs once channels 0..j-1 are fixed: ``U[j, j]**2`` is the j-th diagonal entry of the
    inverse for the remaining channels, and ``U[j, j:] / U[j, j]`` how they answer to an error in channel j.
    """
    if damping <= 0:
        raise UserError(f"damping={damping} must be above 0; 0.01 is usual")
    diagonal = np.einsum("...ii->...i", moment)
    mean = diagonal.mean(axis=-1)
    if not (np.isfinite(moment).all() and (mean > 0).all()):
        raise UserError("a moment is all 0 or not finite; leave experts without rows to `gptq_experts`")
    damped = moment / mean[..., None, None] + damping * np.eye(moment.shape[-1])
    return np.swapaxes(np.linalg.cholesky(np.linalg.inv(damped)), -1, -2)


@functools.partial(jax.jit, static_argnums=5)
def _round_group(
    group: Float[Array, "*E O G"],
    upper: Float[Array, "*E G G"],
    scale: Float[Array, "*E _ 1"],
    zero_point: Int[Array, "*E _ 1"] | None,
    tensor_scale: Float[Array, "*E 1 1"] | None,
    spec: Spec,
) -> tuple[Float[Array, "*E O G"], Float[Array, "*E O G"]]:
    """The channels of one group, rounded in order with one scale, and their errors divided by ``U[j, j]``."""

    def channel(j, carry):
        group, rounded, errors = carry
        now = jax.lax.dynamic_slice_in_dim(group, j, 1, axis=-1)  # [.., O, 1]
        nearest = quantize(now, spec, scale=scale, zero_point=zero_point, tensor_scale=tensor_scale).dequantize()
        row = jax.lax.dynamic_slice_in_dim(upper, j, 1, axis=-2)  # [.., 1, G], 0 before j
        error = (now - nearest) / jax.lax.dynamic_slice_in_dim(row, j, 1, axis=-1)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=j, axis=-1)
        return group - error * row, put(rounded, nearest), put(errors, error)

    start = (group, jnp.zeros_like(group), jnp.zeros_like(group))
    return jax.lax.fori_loop(0, group.shape[-1], channel, start)[1:]


def output_error(
    weight: Float[Array, "*E O I"], approximation: QTensor, moment: Float[np.ndarray, "*E I I"]
) -> Float[np.ndarray, "*E"]:
    """``||X (W - Wq)^T|| / ||X W^T||`` on the rows that ``moment`` sums up: 0 is perfect, 1 as bad as answering 0.

    Args:
      weight: before. approximation: after. moment: ``X^T X`` of any rows, also others than those calibrated on.

    Returns:
      One number an expert, float64; NaN where there are no rows.
    """
    before = np.asarray(weight, np.float64)
    change = before - np.asarray(approximation.dequantize(), np.float64)
    moment = np.asarray(moment, np.float64)
    noise, signal = (((a @ moment) * a).sum(axis=(-1, -2)) for a in (change, before))
    return np.asarray(np.sqrt(np.maximum(noise, 0) / np.where(signal > 0, signal, np.nan)))


def gptq_experts(
    weight: Float[Array, "E O I"],
    seen: InputStatistics,
    spec: Spec,
    *,
    shrinkage: int | float = 0.0,
    min_rows: int | None = None,
    damping: int | float = DAMPING,
) -> QTensor:
    """`gptq` for stacked experts, each with the rows that reached it.

    Args:
      weight: ``[E, O, I]``.
      seen: of this matrix, from `minimoe.quant.calibrate.collect`.
      spec: of the result.
      shrinkage: s in ``H_e + s * H_all``, not negative: as if a share s of all calibration tokens had been sent to this
        expert too. It matters for experts that few tokens reached and fades for those that many did.
      min_rows: experts with fewer rows (s times all rows included) are rounded to nearest. None is I, below which
        ``H_e`` has no full rank; 0 rounds to nearest only where nothing was seen at all. Full rank is the least one
        can ask: hidden rows, few of whose channels are loud at a time, need several times as many before GPTQ gains
        on new text (`minimoe.quant.sensitivity.expert_calibration_experiment` shows how many).
      damping: see `gptq`.

    Raises:
      UserError: for a negative shrinkage, or for shrinkage without statistics of all tokens.
    """
    if shrinkage < 0:
        raise UserError(f"shrinkage={shrinkage} must not be negative; 0 is none")
    rows, moment = np.asarray(seen.rows, np.float64), np.asarray(seen.moment, np.float64)
    if shrinkage:
        if seen.pooled_moment is None:
            raise UserError("shrinkage needs the moment of all tokens, which only experts have; use shrinkage=0")
        rows, moment = rows + shrinkage * seen.pooled_rows, moment + shrinkage * seen.pooled_moment
    inputs = moment.shape[-1]
    enough = (rows >= (inputs if min_rows is None else min_rows)) & (np.einsum("eii->e", moment) > 0)
    # The identity makes GPTQ round to nearest.
    return gptq(weight, np.where(enough[:, None, None], moment, np.eye(inputs)), spec, damping=damping)


def gptq_model(
    model: MoETransformer,
    calibration: Calibration,
    recipe: str | QuantRecipe,
    *,
    shrinkage: int | float = 0.0,
    min_rows: int | None = None,
    damping: int | float = DAMPING,
) -> MoETransformer:
    """`quantize_model`, with the routed experts rounded by `gptq_experts`; all else is rounded to nearest.

    The experts hold most of the weights. All moments are those of the float model: unlike the paper, a layer does not
    see what rounding the layers before it did to its input.

    Args:
      model: float; not changed.
      calibration: of this model.
      recipe: says which experts are quantized, and to what.
      shrinkage, min_rows, damping: see `gptq_experts`.

    Raises:
      UserError: as `quantize_model` and `gptq_experts` do; for a recipe that leaves the experts alone; and for a
        matrix that was not calibrated.
    """
    quantized = quantize_model(model, recipe)
    originals = dict(nnx.iter_modules(model))
    found = [(path, module) for path, module in nnx.iter_modules(quantized) if isinstance(module, QuantExperts)]
    if not found:
        raise UserError("the recipe leaves all experts as they are, and gptq_model rounds experts; use quantize_model")
    round_stack = functools.partial(gptq_experts, shrinkage=shrinkage, min_rows=min_rows, damping=damping)
    for path, module in found:
        experts, name = originals[path], path_name(path)
        assert isinstance(experts, Experts)  # what quantize_model replaces by QuantExperts
        gate_up, down = output_first(experts)
        module.gate_up = round_stack(gate_up, calibration[f"{name}.gate_up_proj"], module.gate_up.spec)
        module.down = round_stack(down, calibration[f"{name}.down_proj"], module.down.spec)
    return quantized


def output_first(experts: Experts) -> tuple[Float[Array, "E F2 D"], Float[Array, "E D F"]]:
    """The two stacks of matrices with the contraction axis last, as the quantizers want them."""
    return jnp.swapaxes(experts.gate_up_proj[...], 1, 2), jnp.swapaxes(experts.down_proj[...], 1, 2)
