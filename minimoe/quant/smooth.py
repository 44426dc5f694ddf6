"""SmoothQuant: moving outliers from activations, where they hurt, into weights, where they do less.

Axes: J input channels, D model width. An int8 scale for a token is set by its largest channel, so one loud channel
leaves the others few steps. Dividing channel j by ``s[j]`` and multiplying row j of the next matrices by it changes
nothing in exact arithmetic. The division costs nothing at run time: it goes into the scale of the norm before.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from minimoe.errors import UserError
from minimoe.model import Block, MoETransformer, copy_model
from minimoe.moe import MoELayer
from minimoe.quant.calibrate import Calibration
from minimoe.quant.grouped_query import check_grouped_query


def smoothing_factors(
    activation_max: Float[np.ndarray, "J"],
    weight_max: Float[np.ndarray, "J"],
    alpha: int | float = 0.5,
    *,
    power_of_two: bool = True,
) -> Float[np.ndarray, "J"]:
    """``s[j] = activation_max[j]**alpha / weight_max[j]**(1 - alpha)``; 1 where either is 0.

    Args:
      activation_max: largest magnitude of each channel, on calibration text.
      weight_max: largest magnitude in each row of the matrices that read it.
      alpha: 0 makes the rows of the weights alike and leaves all the difficulty to the activations, 1 the other way
        round; 0.5 gives each the same range, channel by channel.
      power_of_two: round ``s`` to the nearest power of two (in the logarithm). Multiplying by one only moves the
        exponent, so that the float model stays the same bit for bit, in bfloat16 too; the price is a factor at most
        ``sqrt(2)`` from the formula. False follows the paper.

    Returns:
      ``[J]`` float32, all above 0.

    Raises:
      UserError: if ``alpha`` is not in [0, 1], or a magnitude is no number.

    Example:
      >>> smoothing_factors(np.array([16.0, 1.0, 0.0]), np.ones(3)).tolist()
      [4.0, 1.0, 1.0]

    References:
      Xiao et al., `SmoothQuant <https://arxiv.org/abs/2211.10438>`_, eq. 4.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha={alpha} must be in [0, 1]; 0.5 is usual")
    broken = int((~np.isfinite(activation_max)).sum()), int((~np.isfinite(weight_max)).sum())
    if any(broken):
        what = f"{broken[0]} channels of the activations and {broken[1]} of the weights"
        raise UserError(f"{what} reach NaN or infinity; repair the model or the calibration text first")
    seen = (activation_max > 0) & (weight_max > 0)
    x, w = (np.where(seen, a, 1.0).astype(np.float64) for a in (activation_max, weight_max))
    exponent = alpha * np.log2(x) - (1 - alpha) * np.log2(w)
    if power_of_two:
        exponent = np.rint(exponent)
    return np.exp2(exponent).astype(np.float32)


def smooth(
    model: MoETransformer, calibration: Calibration, alpha: int | float = 0.5, *, power_of_two: bool = True
) -> MoETransformer:
    """A model that computes the same, with smoother inputs to its matrices: quantize this one to int8-w8a8.

    In each block, ``attention_norm`` is divided and the rows of ``q_proj, k_proj, v_proj`` are multiplied;
    ``ffn_norm`` is divided and the rows of router, routed experts and shared expert are multiplied (of the one matrix
    in a dense model). The router stays in float32 and is compensated, not consulted: only matrices that will be
    quantized decide ``s``. Inputs of ``o_proj`` and ``down_proj`` do not come from a norm and are left as they are.

    Calibrate the result again before `gptq_model`: its inputs have changed.

    Args:
      model: float; not changed.
      calibration: of this model, from `collect`.
      alpha, power_of_two: see `smoothing_factors`.

    Raises:
      UserError: if ``alpha`` is not in [0, 1], a matrix was not calibrated, or a block has another attention than
        grouped-query.
    """
    check_grouped_query(model, "smooth", biases=True)
    smoothed = copy_model(model)
    for name, block in smoothed.named_blocks().items():
        _smooth_attention(block, calibration, name, alpha, power_of_two)
        _smooth_feed_forward(block, calibration, name, alpha, power_of_two)
    return smoothed


def _smooth_attention(block: Block, calibration: Calibration, name: str, alpha, power_of_two) -> None:
    attention: Any = block.attention
    readers = [attention.q_proj.kernel, attention.k_proj.kernel, attention.v_proj.kernel]
    seen = calibration[f"{name}.attention.q_proj"].absmax  # all three read the same rows
    factors = smoothing_factors(seen, _row_max(readers), alpha, power_of_two=power_of_two)
    _fold(block.attention_norm, readers, factors)


def _smooth_feed_forward(block: Block, calibration: Calibration, name: str, alpha, power_of_two) -> None:
    if isinstance(block.ffn, MoELayer):
        readers, followers = [block.ffn.experts.gate_up_proj], [block.ffn.router.kernel]
        if block.ffn.shared is not None:
            readers.append(block.ffn.shared.gate_up_proj.kernel)
        if block.ffn.router.noise_kernel is not None:
            followers.append(block.ffn.router.noise_kernel)
        seen = calibration[f"{name}.ffn.experts.gate_up_proj"].absmax.max(axis=0)
        if block.ffn.shared is not None:  # it reads every token, the routed experts those that were sent to one
            seen = calibration[f"{name}.ffn.shared.gate_up_proj"].absmax
    else:
        readers, followers = [block.ffn.gate_up_proj.kernel], []
        seen = calibration[f"{name}.ffn.gate_up_proj"].absmax
    factors = smoothing_factors(seen, _row_max(readers), alpha, power_of_two=power_of_two)
    _fold(block.ffn_norm, [*readers, *followers], factors)


def _row_max(kernels: list[nnx.Param]) -> Float[np.ndarray, "J"]:
    """Largest magnitude in row j of any of the kernels ``[..., J, out]``."""
    flat = [np.abs(np.asarray(kernel[...], np.float32)) for kernel in kernels]
    return np.max([a.max(axis=tuple(i for i in range(a.ndim) if i != a.ndim - 2)) for a in flat], axis=0)


def _fold(norm: nnx.RMSNorm, kernels: list[nnx.Param], factors: Float[np.ndarray, "J"]) -> None:
    """Divides the norm's scale, multiplies the rows of the kernels ``[..., J, out]``; computed in float32."""
    assert norm.scale is not None  # only a norm made with use_scale=False has none
    scale = norm.scale[...]
    norm.scale[...] = (scale.astype(jnp.float32) / factors).astype(scale.dtype)
    for kernel in kernels:
        value = kernel[...]
        column = factors.reshape((1,) * (value.ndim - 2) + (-1, 1))
        kernel[...] = (value.astype(jnp.float32) * column).astype(value.dtype)
