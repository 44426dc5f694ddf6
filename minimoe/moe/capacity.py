"""Capacity: a fixed number of slots per expert, and what does not fit is dropped (GShard, Switch).

Axes: T tokens, D model width, K experts per token, E experts, F expert hidden width (F2 = 2*F), C slots per expert.

The shapes are fixed at compile time: the experts are one batched matmul over ``[E, C, D]``. This has two costs. Popular
experts drop tokens, and unpopular experts multiply zeros. Dropping also makes a token's output depend on the rest of
the batch. `minimoe.moe.dropless` drops nothing.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minimoe.config import MoEConfig
from minimoe.errors import UserError
from minimoe.layers import swiglu
from minimoe.layers.sizes import Size
from minimoe.moe.indices import check_countable
from minimoe.moe.pairs import one_hot_experts


def expert_capacity(tokens: Size, config: MoEConfig) -> int:
    """C = ``ceil(capacity_factor * T * K / E)``, never above T: no token can use a second slot of one expert.

    T counts padding too, since it is the static size of the batch.

    Example:
      >>> expert_capacity(64, MoEConfig(d_model=8, d_expert=8, num_experts=8, top_k=2, capacity_factor=1.25))
      20

    Raises:
      UserError: for a symbolic number of tokens (`jax.export.symbolic_shape`), since the slots are part of the shapes.

    References:
      Lepikhin et al., `GShard <https://arxiv.org/abs/2006.16668>`_, section 2.2, with the factor of Fedus et al.,
      `Switch Transformers <https://arxiv.org/abs/2101.03961>`_, eq. 3.
    """
    if jax.export.is_symbolic_dim(tokens):
        raise UserError(
            f"the slots of an expert are counted from the number of tokens, which is {tokens} here; export fixed sizes, "
            'or a layer without slots: MoEConfig(select="topk", dispatch="dropless")'
        )
    return config.slots(tokens)


def drop_rate(load: Float[Array, "E"], capacity: int) -> Float[Array, ""]:
    """Share of the assignments in ``load`` that find no slot; 0 when nothing is assigned.

    The load alone decides it: an expert drops as many assignments as exceed C.

    Example:
      >>> print(drop_rate(jnp.array([6.0, 2.0, 2.0, 0.0]), 4))
      0.2
    """
    return jnp.maximum(load - capacity, 0.0).sum() / jnp.maximum(load.sum(), 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CapacityPlan:
    """Which assignment has which slot.

    Attributes:
      slot: place of each assignment in the flattened ``[E*C]`` slots, ``[T, K]``; E*C for those without one.
      kept: whether it has a slot, ``[T, K]``.
      token: the token in each slot, ``[E, C]``; T where the slot is empty.
    """

    slot: Int[Array, "T K"]
    kept: Bool[Array, "T K"]
    token: Int[Array, "E C"]


def make_capacity_plan(
    experts: Int[Array, "T K"], used: Bool[Array, "T K"] | None, num_experts: int, capacity: int
) -> CapacityPlan:
    """Fills slots in GShard's order: first choices of all tokens, then second choices, ...; earlier tokens first.

    So a second choice is dropped before any first choice. The first choice of a later token can therefore take the slot
    of an earlier token's second choice: in a causal model, dropping then depends on the future.

    Args:
      experts: ids, different ones in each row.
      used: assignments that ask for a slot at all; all of them if None.
      num_experts: E. capacity: C.
    """
    tokens, top_k = experts.shape
    used = jnp.ones(experts.shape, bool) if used is None else used
    check_countable("capacity", T__K_assignments=tokens * top_k, E__C_slots=num_experts * capacity)
    flat = experts.T.reshape(-1)  # [K*T], choice by choice
    asks = one_hot_experts(flat, num_experts) & used.T.reshape(-1)[:, None]
    before = jnp.cumsum(asks.astype(jnp.int32), axis=0) - 1  # [K*T, E]
    position = jnp.take_along_axis(before, flat[:, None], axis=1)[:, 0]
    kept = used.T.reshape(-1) & (position < capacity)
    slot = jnp.where(kept, flat * capacity + position, num_experts * capacity).astype(jnp.int32)
    owner = jnp.tile(jnp.arange(tokens, dtype=jnp.int32), top_k)
    token = jnp.full(num_experts * capacity, tokens, jnp.int32).at[slot].set(owner, mode="drop")
    return CapacityPlan(
        slot.reshape(top_k, tokens).T, kept.reshape(top_k, tokens).T, token.reshape(num_experts, capacity)
    )


def capacity_dispatch(
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
    """C slots per expert in one batched matmul; assignments beyond them contribute nothing.

    Neither padding nor the pairs that expert choice leaves out crowd others out: ``used`` is False for them. Shapes as
    in `minimoe.moe.dispatch`.

    Args:
      capacity: C; None is room for all, ``C = T``.
      used: which pairs ask for a slot; all of them if None. The value of a weight has no say in it.

    References:
      Lepikhin et al., `GShard <https://arxiv.org/abs/2006.16668>`_, algorithm 1 (its random dropping of second
      choices is left out).
    """
    num_experts, capacity = gate_up.shape[0], x.shape[0] if capacity is None else capacity
    plan = make_capacity_plan(experts, used, num_experts, capacity)
    rows = x.at[plan.token].get(mode="fill", fill_value=0)  # [E, C, D], zeros in empty slots
    act = swiglu(jnp.einsum("ecd,edf->ecf", rows, gate_up), limit)
    out = jnp.einsum("ecf,efd->ecd", act, down).reshape(-1, x.shape[1])  # [E*C, D]
    picked = out.at[plan.slot].get(mode="fill", fill_value=0)  # [T, K, D], zeros for dropped ones
    return jnp.einsum("tk,tkd->td", weights.astype(x.dtype), picked)
