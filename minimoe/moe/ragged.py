"""Ragged: sort the assignments by expert and let the library multiply groups of unequal size.

Axes: T tokens, D model width, K experts per token, A = T*K assignments, E experts, F expert hidden width (F2 = 2*F).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minimoe.layers import swiglu
from minimoe.moe.indices import check_countable


def ragged_dispatch(
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
    """Exact at any load, in five lines around `jax.lax.ragged_dot`.

    What to reach for on accelerators, where the grouped matmul is a kernel. On CPUs it runs every group over all A
    rows: E times the useful work (see `minimoe.moe.accounting`). Shapes as in `minimoe.moe.dispatch`; ``capacity`` and
    ``used`` are not read.
    """
    del capacity, used
    if not experts.size:
        return jnp.zeros_like(x)
    check_countable("ragged", T__K_assignments=experts.size)
    flat = experts.reshape(-1)
    order = jnp.argsort(flat, stable=True)  # [A], assignments grouped by expert
    group_sizes = jnp.bincount(flat, length=gate_up.shape[0]).astype(jnp.int32)  # [E]
    rows = x[order // experts.shape[1]]  # [A, D]
    act = swiglu(jax.lax.ragged_dot(rows, gate_up, group_sizes), limit)
    out = jax.lax.ragged_dot(act, down, group_sizes)
    picked = out[jnp.argsort(order)].reshape(*experts.shape, -1)  # [T, K, D], back in the order of tokens
    return jnp.einsum("tk,tkd->td", weights.astype(x.dtype), picked)
