"""Exact dispatch that pays for imbalance only when it happens.

Axes: T tokens, D model width, K experts per token, A = T*K assignments, E experts, F expert hidden width, C slots per
expert, R rows of an overflow block.

The idea. Sort the assignments by expert. Give each expert C slots, a little above the mean load, and run all experts
as one batched matmul ``[E, C, D] x [E, D, 2F]``: with a balanced router nearly every slot is used and nearly every
assignment has one. What does not fit is processed exactly, in a loop over blocks of R rows of one expert each, whose
number of turns is known only at run time: none when balanced, ``(A - C) / R`` when one expert takes everything.
Shapes stay static, nothing is dropped, and the cost follows the imbalance.

Gradients are written by hand (`jax.custom_vjp`), for three reasons: a loop with a run-time number of turns has no
automatic reverse mode; the transpose of a gather is a scatter-add, slow on CPUs, where here it is another gather, since
every slot holds one assignment; and the activations of the batched part are kept while the rare overflow is recomputed.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from minimoe.layers import swiglu

SLACK = 1.125  # slots per expert over mean load; see `minimoe bench moe`
BLOCK_ROWS = 64
FEW_ASSIGNMENTS = 16  # up to here, each assignment slices out its own expert


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """Where each assignment is computed.

    Attributes:
      order: assignments (``token * K + k``) sorted by expert, ``[A]``.
      place: the inverse, rank of each assignment in ``order``, ``[A]``.
      load: assignments per expert ``[E]``; ``start``: rank of each expert's first ``[E]``.
      slot: rank held by each slot ``[E, C]``, clipped to A-1 where the slot is empty.
      filled: which slots hold an assignment ``[E, C]``.
      block_end: overflow blocks of experts 0..e, ``[E]``; the last is the number of blocks.
    """

    order: Int[Array, "A"]
    place: Int[Array, "A"]
    load: Int[Array, "E"]
    start: Int[Array, "E"]
    slot: Int[Array, "E C"]
    filled: Bool[Array, "E C"]
    block_end: Int[Array, "E"]


def slots_per_expert(assignments: int, num_experts: int) -> int:
    """C: `SLACK` times the mean load, rounded up to a multiple of 8, never above A."""
    return min(assignments, 8 * int(np.ceil(SLACK * assignments / num_experts / 8)))


def make_plan(experts: Int[Array, "T K"], num_experts: int) -> Plan:
    """Sorts assignments by expert (stably: by token within an expert) and lays out slots and overflow blocks."""
    flat = experts.reshape(-1)
    count = flat.shape[0]
    slots = slots_per_expert(count, num_experts)
    # One sort of one array: the expert in the high part of the key, the assignment in the low part. Experts fit in a
    # few bits, so E*A stays far below 2**31.
    key = jnp.sort(flat * count + jnp.arange(count, dtype=jnp.int32))
    order = key % count
    place = jnp.zeros_like(order).at[order].set(jnp.arange(count, dtype=jnp.int32), unique_indices=True)
    end = jnp.searchsorted(key, (jnp.arange(num_experts, dtype=jnp.int32) + 1) * count).astype(jnp.int32)
    start = jnp.concatenate([jnp.zeros(1, jnp.int32), end[:-1]])
    load = end - start
    column = jnp.arange(slots, dtype=jnp.int32)
    slot = jnp.minimum(start[:, None] + column[None, :], count - 1)
    filled = column[None, :] < load[:, None]
    overflow = jnp.maximum(load - slots, 0)
    block_end = jnp.cumsum((overflow + BLOCK_ROWS - 1) // BLOCK_ROWS)
    return Plan(order, place, load, start, slot, filled, block_end)


def overflow_block(plan: Plan, index: Int[Array, ""], slots: int):
    """The expert, assignments ``[R]`` and mask ``[R]`` of overflow block ``index``."""
    expert = jnp.searchsorted(plan.block_end, index, side="right").astype(jnp.int32)
    first_block = jnp.where(expert > 0, plan.block_end[expert - 1], 0)
    row = slots + (index - first_block) * BLOCK_ROWS + jnp.arange(BLOCK_ROWS, dtype=jnp.int32)
    valid = row < plan.load[expert]
    assignment = plan.order[jnp.minimum(plan.start[expert] + row, plan.order.shape[0] - 1)]
    return expert, assignment, valid


def _slot_of_assignment(plan: Plan, experts: Int[Array, "T K"]) -> tuple[Int[Array, "A"], Bool[Array, "A"]]:
    """Index into the flattened ``[E*C]`` slots for each assignment, and whether it has a slot at all."""
    slots = plan.slot.shape[1]
    flat = experts.reshape(-1)
    rank = plan.place - plan.start[flat]
    return flat * slots + jnp.minimum(rank, slots - 1), rank < slots


def _gather_rows(x: Float[Array, "T D"], token: Int[Array, "..."]) -> Float[Array, "... D"]:
    return x.at[token].get(mode="promise_in_bounds")


@jax.custom_vjp
def dropless_experts(
    x: Float[Array, "T D"],
    experts: Int[Array, "T K"],
    weights: Float[Array, "T K"],
    gate_up: Float[Array, "E D F2"],
    down: Float[Array, "E F D"],
) -> Float[Array, "T D"]:
    """The batched part plus the overflow loop; see the module's docstring."""
    return _forward(x, experts, weights, gate_up, down)[0]


def _forward(x, experts, weights, gate_up, down):
    top_k = experts.shape[1]
    plan = make_plan(experts, gate_up.shape[0])
    slots = plan.slot.shape[1]
    rows = _gather_rows(x, plan.order[plan.slot] // top_k)  # [E, C, D]; empty slots hold some token, never read back
    hidden = jnp.einsum("ecd,edf->ecf", rows, gate_up)  # [E, C, 2F]
    out = jnp.einsum("ecf,efd->ecd", swiglu(hidden), down)  # [E, C, D]
    index, has_slot = _slot_of_assignment(plan, experts)
    kept = jnp.where(has_slot.reshape(weights.shape), weights, 0.0).astype(x.dtype)
    picked = _gather_rows(out.reshape(-1, x.shape[1]), index).reshape(*weights.shape, -1)  # [T, K, D]
    y = jnp.einsum("tk,tkd->td", kept, picked)

    def add_block(i, y):
        expert, assignment, valid = overflow_block(plan, i, slots)
        token = assignment // top_k
        act = swiglu(_gather_rows(x, token) @ gate_up[expert])
        weight = jnp.where(valid, weights.reshape(-1)[assignment], 0.0).astype(x.dtype)
        return y.at[token].add(weight[:, None] * (act @ down[expert]), mode="promise_in_bounds")

    y = jax.lax.fori_loop(0, plan.block_end[-1], add_block, y)
    return y, (x, experts, weights, gate_up, down, plan, hidden, out)


def _swiglu_vjp(hidden, d_act):
    """Activation and the gradient of its input, from the input."""
    gate, up = jnp.split(hidden, 2, axis=-1)
    sigmoid = jax.nn.sigmoid(gate)
    silu = gate * sigmoid
    d_gate = d_act * up * (sigmoid + silu * (1 - sigmoid))
    return silu * up, jnp.concatenate([d_gate, d_act * silu], axis=-1)


def _backward(residuals, dy):
    x, experts, weights, gate_up, down, plan, hidden, out = residuals
    top_k, width = experts.shape[1], x.shape[1]
    slots = plan.slot.shape[1]
    flat_weights = weights.reshape(-1)
    assignment = plan.order[plan.slot]  # [E, C]
    weight = jnp.where(plan.filled, flat_weights[assignment], 0.0).astype(x.dtype)
    d_out = _gather_rows(dy, assignment // top_k) * weight[:, :, None]  # [E, C, D]
    d_act = jnp.einsum("ecd,efd->ecf", d_out, down)
    act, d_hidden = _swiglu_vjp(hidden, d_act)
    d_down = jnp.einsum("ecf,ecd->efd", act, d_out)
    rows = _gather_rows(x, assignment // top_k)
    d_gate_up = jnp.einsum("ecd,ecf->edf", rows, d_hidden)
    d_rows = jnp.einsum("ecf,edf->ecd", d_hidden, gate_up)
    index, has_slot = _slot_of_assignment(plan, experts)
    has_slot = has_slot.reshape(weights.shape)
    picked = _gather_rows(d_rows.reshape(-1, width), index).reshape(*weights.shape, width)
    dx = jnp.where(has_slot[:, :, None], picked, 0.0).sum(axis=1)
    picked_out = _gather_rows(out.reshape(-1, width), index).reshape(*weights.shape, width)
    d_weights = jnp.where(has_slot, jnp.einsum("td,tkd->tk", dy, picked_out).astype(weights.dtype), 0.0)

    def add_block(i, carry):
        dx, d_flat, d_gate_up, d_down = carry
        expert, assignment, valid = overflow_block(plan, i, slots)
        token = assignment // top_k
        rows, d_y = _gather_rows(x, token), _gather_rows(dy, token)
        hidden = rows @ gate_up[expert]
        weight = jnp.where(valid, flat_weights[assignment], 0.0).astype(x.dtype)
        d_block = weight[:, None] * d_y
        act, d_hidden = _swiglu_vjp(hidden, d_block @ down[expert].T)
        d_weight = jnp.where(valid, ((act @ down[expert]) * d_y).sum(axis=-1), 0.0).astype(d_flat.dtype)
        return (
            dx.at[token].add(d_hidden @ gate_up[expert].T, mode="promise_in_bounds"),
            d_flat.at[assignment].add(d_weight, mode="promise_in_bounds"),
            d_gate_up.at[expert].add(rows.T @ d_hidden, mode="promise_in_bounds"),
            d_down.at[expert].add(act.T @ d_block, mode="promise_in_bounds"),
        )

    carry = (dx, d_weights.reshape(-1), d_gate_up, d_down)
    dx, d_flat, d_gate_up, d_down = jax.lax.fori_loop(0, plan.block_end[-1], add_block, carry)
    d_experts = np.zeros(experts.shape, jax.dtypes.float0)
    return dx, d_experts, d_flat.reshape(weights.shape), d_gate_up, d_down


dropless_experts.defvjp(_forward, _backward)


def few_tokens(
    x: Float[Array, "T D"],
    experts: Int[Array, "T K"],
    weights: Float[Array, "T K"],
    gate_up: Float[Array, "E D F2"],
    down: Float[Array, "E F D"],
) -> Float[Array, "T D"]:
    """For decoding: each assignment slices its expert's matrices out and multiplies one row.

    Reads K experts a token and no others, which is all that matters when weights are read once per row.
    """
    ys = []
    for token in range(x.shape[0]):
        row = x[token : token + 1]
        parts = []
        for k in range(experts.shape[1]):
            expert = experts[token, k]
            act = swiglu(row @ jax.lax.dynamic_index_in_dim(gate_up, expert, keepdims=False))
            out = act @ jax.lax.dynamic_index_in_dim(down, expert, keepdims=False)
            parts.append(weights[token, k].astype(x.dtype) * out)
        ys.append(functools.reduce(jnp.add, parts))
    return jnp.concatenate(ys)


def dropless_dispatch(
    x: Float[Array, "T D"],
    experts: Int[Array, "T K"],
    weights: Float[Array, "T K"],
    gate_up: Float[Array, "E D F2"],
    down: Float[Array, "E F D"],
    *,
    capacity: int | None = None,
) -> Float[Array, "T D"]:
    """Exact at any load: `few_tokens` for up to `FEW_ASSIGNMENTS`, else the batched part plus the overflow loop.

    The choice depends on shapes only. Shapes as in `minimoe.moe.dispatch`.
    """
    del capacity
    if not experts.size:
        return jnp.zeros_like(x)
    if experts.size <= FEW_ASSIGNMENTS:
        return few_tokens(x, experts, weights, gate_up, down)
    return dropless_experts(x, experts, weights, gate_up, down)
