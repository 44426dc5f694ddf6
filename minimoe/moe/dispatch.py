"""Dispatch: takes tokens to their experts and their outputs back. Five ways with one signature and one answer.

Axes: T tokens, D model width, K experts per token, E experts, F expert hidden width (F2 = 2*F).

Every dispatch computes ``y[t] = sum_k weights[t, k] * FFN[experts[t, k]](x[t])`` from

    x [T, D], experts [T, K] int32 in 0..E-1, all different within a row, weights [T, K], gate_up [E, D, 2F],
    down [E, F, D], capacity, the slots per expert, used [T, K], True for pairs that count (None: all do), and limit,
    the largest gate and up of SwiGLU (None: no limit; see `minimoe.layers.clamp_gate_up`)

and returns ``y [T, D]``. A pair that is not used must have a weight of 0: it belongs to padding, or to an expert that
did not choose the token (under expert choice K is E). Only `capacity_dispatch` looks at ``capacity`` and ``used``.
There, a pair that is not used takes no slot. A used pair takes one even when its weight is 0, so that the weight still
gets its gradient.

What one token contains changes no other token's output or gradient, NaN and infinity included. (Under ``capacity`` a
token can still take another one's slot.)

===========  ==========================================================================================================
``loop``     the definition: expert by expert, each on all tokens
``dense``    the shortest vectorised form: all experts on all tokens at once
``capacity`` C slots per expert, one batched matmul; what does not fit is dropped (`minimoe.moe.capacity`)
``ragged``   sorted by expert, groups of unequal size, `jax.lax.ragged_dot` (`minimoe.moe.ragged`)
``dropless`` sorted by expert, batched where even and looped where not: exact and fast (`minimoe.moe.dropless`)
===========  ==========================================================================================================

`minimoe.moe.accounting` counts the work of each, and how much of it is useful.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minimoe.config import MoEConfig
from minimoe.layers import swiglu
from minimoe.moe.capacity import capacity_dispatch
from minimoe.moe.dropless import dropless_dispatch
from minimoe.moe.pairs import weights_by_expert
from minimoe.moe.ragged import ragged_dispatch
from minimoe.moe.selectors import SELECTORS

Dispatch = Callable[..., Float[Array, "T D"]]


def loop_dispatch(
    x: Float[Array, "T D"],
    experts: Int[Array, "T K"],
    weights: Float[Array, "T K"],
    gate_up: Float[Array, "E D F2"],
    down: Float[Array, "E F D"],
    *,
    capacity: int | None = None,
    used: Bool[Array, "T K"] | None = None,
    limit: float | None = None,
) -> Float[Array, "T D"]:
    """Expert by expert, each on all tokens, kept where it was chosen: E/K times the useful work. The oracle."""
    del capacity, used
    y = jnp.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        weight = jnp.where(experts == expert, weights, 0.0).sum(axis=-1).astype(x.dtype)  # [T]
        y = y + weight[:, None] * (swiglu(x @ gate_up[expert], limit) @ down[expert])
    return y


def dense_dispatch(
    x: Float[Array, "T D"],
    experts: Int[Array, "T K"],
    weights: Float[Array, "T K"],
    gate_up: Float[Array, "E D F2"],
    down: Float[Array, "E F D"],
    *,
    capacity: int | None = None,
    used: Bool[Array, "T K"] | None = None,
    limit: float | None = None,
) -> Float[Array, "T D"]:
    """All experts on all tokens in three einsums, weighted by a ``[T, E]`` matrix that is mostly 0.

    It does E/K times the useful work and holds ``T*E*2F`` activations. For few experts it is still among the fastest.
    """
    del capacity, used
    weight = weights_by_expert(experts, weights, gate_up.shape[0]).astype(x.dtype)  # [T, E]
    hidden = swiglu(jnp.einsum("td,edf->tef", x, gate_up), limit)  # [T, E, F]
    return jnp.einsum("tef,efd->td", hidden * weight[:, :, None], down)


DISPATCHERS: dict[str, Dispatch] = {
    "loop": loop_dispatch,
    "dense": dense_dispatch,
    "capacity": capacity_dispatch,
    "ragged": ragged_dispatch,
    "dropless": dropless_dispatch,
}


def depends_on_batch(config: MoEConfig) -> bool:
    """Whether what the layer makes of a token depends on the other tokens of its batch.

    That is so where tokens compete for slots: ``dispatch="capacity"`` drops what does not fit, and under
    ``select="expert_choice"`` experts take the tokens that they like best. It is not so where every expert has a slot
    for every token, ``capacity_factor * K >= E``. A document scored by such a layer needs a batch of its own, without
    padding.

    Example:
      >>> sizes = {"d_model": 8, "d_expert": 8, "num_experts": 4, "top_k": 2}
      >>> [depends_on_batch(MoEConfig(**sizes, dispatch=name)) for name in ("dropless", "capacity")]
      [False, True]
      >>> depends_on_batch(MoEConfig(**sizes, dispatch="capacity", capacity_factor=2))
      False
    """
    competes = config.dispatch == "capacity" or SELECTORS[config.select].counts_slots
    return competes and config.capacity_factor * config.top_k < config.num_experts
