"""Exact dispatch that pays for imbalance only when it happens.

Axes: T tokens, D model width, K experts per token, A = T*K assignments, E experts, F expert hidden width, C slots per
expert, R rows of an overflow block.

The idea. Sort the assignments by expert. Give each expert C slots, the mean load, and run all experts as one batched
matmul ``[E, C, D] x [E, D, 2F]``: with a balanced router every slot is used and every assignment has one. What does not
fit is processed exactly, in a loop over blocks of R rows of one expert each, whose number of turns is known only at run
time: none when balanced, ``(A - C) / R`` when one expert takes everything. Shapes stay static, nothing is dropped, and
the cost follows the imbalance.

Gradients are written by hand (`jax.custom_vjp`), for three reasons: a loop with a run-time number of turns has no
automatic reverse mode; the transpose of a gather is a scatter-add, slow on CPUs, where here it is another gather, since
every slot holds one assignment; and the activations of the batched part are kept while the rare overflow is recomputed.

What was tried, on two busy cores. An eighth more slots than the mean load costs an eighth of the matmuls always; on
one shape, in one run, it did not pay up to a MaxVio of 0.5. Rows and activations are kept for the backward pass;
between the matmuls the sigmoid is what costs, not the gathers. The combine weight multiplies activations, so that its
gradient needs no expert's output. One matmul per expert instead of a batched one, and weights transposed beforehand,
gave no clear gain.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minimoe.layers import clamp_gate_up, swiglu
from minimoe.layers.reverse_mode import forward_mode_only, reverse_mode_only
from minimoe.layers.sizes import Size, surely_at_most
from minimoe.moe.indices import check_countable, first_of_each, sort_by_expert

BLOCK_ROWS = 64
FEW_ASSIGNMENTS = 16  # up to here, each assignment slices out its own expert
SLICE_BYTES = 128 * 1024  # of a weight that are copied out of the stack at a time: they stay in a core's near cache

FORWARD_MODE = (
    'dispatch="dropless" has a gradient for reverse mode (jax.grad, jax.vjp) alone; for jax.jvp and jax.jacfwd use another '
    'one: MoEConfig(dispatch="dense"), or with_dispatch(layer, "dense") for a layer that exists'
)
TWICE_REVERSE = (
    'dispatch="dropless" has no reverse mode over its own gradient under jax.jit or jax.vmap; differentiate jax.grad '
    'forwards (jax.jvp, jax.hessian), or use another one: MoEConfig(dispatch="dense"), with_dispatch(layer, "dense")'
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """Where each assignment is computed.

    Attributes:
      order: assignments (``token * K + k``) sorted by expert, ``[A]``.
      load: assignments per expert ``[E]``; ``start``: rank of each expert's first, and of the first to nobody, ``[E+1]``.
      held: the assignment in each slot ``[E, C]``; A where the slot is empty.
      seat: the slot of each assignment, as an index into the flattened ``[E*C]``, ``[T, K]``; E*C where it has none.
      block_end: overflow blocks of experts 0..e, ``[E]``; the last is the number of blocks.
    """

    order: Int[Array, "A"]
    load: Int[Array, "E"]
    start: Int[Array, "_"]
    held: Int[Array, "E C"]
    seat: Int[Array, "T K"]
    block_end: Int[Array, "E"]


def slots_per_expert(assignments: Size, num_experts: int) -> Size:
    """C: the mean load, rounded up to a multiple of 8."""
    return 8 * -(-assignments // (8 * num_experts))


def make_plan(experts: Int[Array, "T K"], num_experts: int, expected: int | None = None) -> Plan:
    """Sorts assignments by expert (stably: by token within an expert) and lays out slots and overflow blocks.

    Assignments to the id E get neither: nobody computes them. ``expected``, how many others there may be, then sizes C.

    Raises:
      UserError: for more assignments or slots than 32-bit indices can count.
    """
    count = experts.size
    slots = slots_per_expert(count if expected is None else expected, num_experts)
    check_countable("dropless", T__K_assignments=count, E__C_slots=num_experts * slots)
    by_expert, order = sort_by_expert(experts.reshape(-1), num_experts + 1)
    start = first_of_each(by_expert, num_experts + 1)
    load = jnp.diff(start)
    column = jnp.arange(slots, dtype=jnp.int32)
    rank = jnp.where(column[None, :] < load[:, None], start[:-1, None] + column[None, :], count)  # [E, C]
    held = order.at[rank].get(mode="fill", fill_value=count)
    column = jnp.arange(count, dtype=jnp.int32) - start[by_expert]  # of each assignment, in sorted order
    seat = jnp.where(column < slots, by_expert * slots + column, num_experts * slots)
    seat = jnp.zeros_like(order).at[order].set(seat, unique_indices=True).reshape(experts.shape)
    block_end = jnp.cumsum((jnp.maximum(load - slots, 0) + BLOCK_ROWS - 1) // BLOCK_ROWS)
    return Plan(order, load, start, held, seat, block_end)


def overflow_block(plan: Plan, index: Int[Array, ""], slots: Size) -> tuple[Int[Array, ""], Int[Array, "R"]]:
    """The expert of overflow block ``index``, and its assignments ``[R]`` beyond ``slots``; A where a row is empty."""
    expert = jnp.searchsorted(plan.block_end, index, side="right").astype(jnp.int32)
    first_block = jnp.where(expert > 0, plan.block_end[expert - 1], 0)
    row = slots + (index - first_block) * BLOCK_ROWS + jnp.arange(BLOCK_ROWS, dtype=jnp.int32)
    rank = jnp.where(row < plan.load[expert], plan.start[expert] + row, plan.order.shape[0])
    return expert, plan.order.at[rank].get(mode="fill", fill_value=plan.order.shape[0])


def take(rows: Float[Array, "N ..."], index: Int[Array, "..."]) -> Float[Array, "..."]:
    """Rows by index, and zeros for the index N: what an empty slot holds is nobody's row."""
    return rows.at[index].get(mode="fill", fill_value=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def dropless_experts(
    x: Float[Array, "T D"],
    experts: Int[Array, "T K"],
    weights: Float[Array, "T K"],
    gate_up: Float[Array, "E D F2"],
    down: Float[Array, "E F D"],
    limit: float | None = None,
    expected: int | None = None,
) -> Float[Array, "T D"]:
    """The batched part plus the overflow loop; see the module's docstring, and `make_plan` for ``expected``."""
    return _forward(x, experts, weights, gate_up, down, limit, expected)[0]


def _forward(x, experts, weights, gate_up, down, limit, expected):
    top_k = experts.shape[1]
    plan = make_plan(experts, gate_up.shape[0], expected)
    slots = plan.held.shape[1]
    rows = take(x, plan.held // top_k)  # [E, C, D]
    hidden = jnp.einsum("ecd,edf->ecf", rows, gate_up)  # [E, C, 2F]
    act = swiglu(hidden, limit)  # [E, C, F]
    out = jnp.einsum("ecf,efd->ecd", act, down)  # [E, C, D]
    picked = take(out.reshape(-1, x.shape[1]), plan.seat).astype(jnp.float32)  # [T, K, D]
    y = (weights.astype(jnp.float32)[:, :, None] * picked).sum(axis=1)

    def add_block(i, y):
        expert, assignment = overflow_block(plan, i, slots)
        token = assignment // top_k
        out = swiglu(take(x, token) @ gate_up[expert], limit) @ down[expert]
        weight = take(weights.reshape(-1), assignment).astype(jnp.float32)
        return y.at[token].add(weight[:, None] * out.astype(jnp.float32), mode="drop")

    y = jax.lax.fori_loop(0, plan.block_end[-1], add_block, y)
    return y.astype(x.dtype), (x, experts, weights, gate_up, down, plan, rows, hidden, act)


def _middle_vjp(hidden, act, weight, d_act, limit):
    """Between the two matmuls of an expert, backwards.

    The combine weight multiplies the activation here, not the output: ``weight * (act @ down)`` is ``(weight * act) @
    down``, and in this place its gradient needs no expert's output to be kept.

    Args:
      hidden: gate and up ``[..., 2F]``. act: their SwiGLU ``[..., F]``. weight: combine weights ``[...]``.
      d_act: gradient of the weighted activation ``[..., F]``. limit: of gate and up.

    Returns:
      The weighted activation ``[..., F]``, and the gradients of ``hidden`` and, in float32, of ``weight``.
    """
    clamped, to_hidden = jax.vjp(lambda hidden: clamp_gate_up(hidden, limit), hidden)
    gate, up = jnp.split(clamped, 2, axis=-1)
    d_weight = (act * d_act).astype(jnp.float32).sum(axis=-1)
    weight = weight.astype(hidden.dtype)[..., None]
    sigmoid = jax.nn.sigmoid(gate)
    silu = gate * sigmoid
    d_act = weight * d_act
    d_gate = d_act * up * (sigmoid + silu * (1 - sigmoid))
    (d_hidden,) = to_hidden(jnp.concatenate([d_gate, d_act * silu], axis=-1))
    return weight * act, d_hidden, d_weight


def _backward(limit, expected, residuals, dy):
    x, experts, weights, gate_up, down, plan, rows, hidden, act = residuals
    top_k, width, slots = experts.shape[1], x.shape[1], plan.held.shape[1]
    sums = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)  # what overflow blocks are added to
    flat_weights = weights.reshape(-1)
    d_y = take(dy, plan.held // top_k)  # [E, C, D]
    d_act = jnp.einsum("ecd,efd->ecf", d_y, down)
    act, d_hidden, d_weight = _middle_vjp(hidden, act, take(flat_weights, plan.held), d_act, limit)
    d_down = sums("ecf,ecd->efd", act, d_y)
    d_gate_up = sums("ecd,ecf->edf", rows, d_hidden)
    d_rows = jnp.einsum("ecf,edf->ecd", d_hidden, gate_up)
    dx = take(d_rows.reshape(-1, width), plan.seat).astype(jnp.float32).sum(axis=1)
    d_weights = take(d_weight.reshape(-1), plan.seat).reshape(-1)

    def add_block(i, carry):
        dx, d_weights, d_gate_up, d_down = carry
        expert, assignment = overflow_block(plan, i, slots)
        token = assignment // top_k
        rows, d_y = take(x, token), take(dy, token)
        hidden = rows @ gate_up[expert]
        weight = take(flat_weights, assignment)
        act, d_hidden, d_weight = _middle_vjp(hidden, swiglu(hidden, limit), weight, d_y @ down[expert].T, limit)
        return (
            dx.at[token].add(sums("rf,df->rd", d_hidden, gate_up[expert]), mode="drop"),
            d_weights.at[assignment].set(d_weight, mode="drop"),
            d_gate_up.at[expert].add(sums("rd,rf->df", rows, d_hidden), mode="promise_in_bounds"),
            d_down.at[expert].add(sums("rf,rd->fd", act, d_y), mode="promise_in_bounds"),
        )

    turns = plan.block_end[-1]
    grads = jax.lax.fori_loop(0, turns, add_block, (dx, d_weights, d_gate_up, d_down))
    if isinstance(turns, jax.core.Tracer):  # otherwise the loop is a scan
        grads = tuple(forward_mode_only(array, TWICE_REVERSE) for array in grads)
    dx, d_weights, d_gate_up, d_down = grads
    return (
        dx.astype(x.dtype),
        None,  # experts are integers
        d_weights.reshape(weights.shape).astype(weights.dtype),
        d_gate_up.astype(gate_up.dtype),
        d_down.astype(down.dtype),
    )


dropless_experts.defvjp(_forward, _backward)


def few_tokens(
    x: Float[Array, "T D"],
    experts: Int[Array, "T K"],
    weights: Float[Array, "T K"],
    expert_of_row: Callable[[Array, Array], Array],
) -> Float[Array, "T D"]:
    """For decoding: each assignment runs its expert on one row, ``expert_of_row([1, D], id) -> [1, D]``.

    Reads K experts a token and no others, which is all that matters when weights are read once per row.
    """
    ys = []
    for token in range(x.shape[0]):
        row = x[token : token + 1]
        parts = [
            weights[token, k].astype(x.dtype) * expert_of_row(row, experts[token, k]) for k in range(experts.shape[1])
        ]
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
    used: Bool[Array, "T K"] | None = None,
    limit: float | None = None,
) -> Float[Array, "T D"]:
    """Exact at any load: `few_tokens` for up to `FEW_ASSIGNMENTS`, else the batched part plus the overflow loop.

    The choice depends on shapes only. Shapes as in `minimoe.moe.dispatch`.

    Raises:
      UserError: for forward-mode differentiation of the batched part, whose gradient is written for reverse mode.
    """
    del capacity, used
    if not experts.size:
        return jnp.zeros_like(x)
    if surely_at_most(experts.size, FEW_ASSIGNMENTS):

        def expert_of_row(row, expert):
            return row_times(swiglu(row_times(row, gate_up, expert), limit), down, expert)

        return few_tokens(x, experts, weights, expert_of_row)
    x, weights, gate_up, down = (reverse_mode_only(array, FORWARD_MODE) for array in (x, weights, gate_up, down))
    return dropless_experts(x, experts, weights, gate_up, down, limit)


def row_times(row: Float[Array, "1 P"], stack: Float[Array, "E P Q"], expert: Int[Array, ""]) -> Float[Array, "1 Q"]:
    """``row @ stack[expert]``, some rows of the matrix at a time, in the dtype of ``row``; sums are float32.

    XLA copies the matrix out of the stack before it multiplies. A copy of the whole matrix does not stay in a near cache, so
    it is written far away and read again. On a busy core, blocks halved the time of two experts of three 256 x 256
    matrices.
    """
    _, rows, width = stack.shape
    block = _rows_at_a_time(rows, width * stack.dtype.itemsize)
    if block == rows:
        return row @ jax.lax.dynamic_index_in_dim(stack, expert, keepdims=False)

    def add(total, part):
        first, piece = part
        matrix = jax.lax.dynamic_slice(stack, (expert, first, jnp.int32(0)), (1, block, width))[0]
        return total + jnp.matmul(piece, matrix, preferred_element_type=jnp.float32), None

    pieces = jnp.arange(0, rows, block, dtype=jnp.int32), row.reshape(rows // block, 1, block)
    return jax.lax.scan(add, jnp.zeros((1, width), jnp.float32), pieces)[0].astype(row.dtype)


def _rows_at_a_time(rows: int, row_bytes: int) -> int:
    """The largest divisor of ``rows`` within `SLICE_BYTES`, or all rows if that leaves fewer than 8."""
    fit = [size for size in range(1, rows + 1) if rows % size == 0 and size * row_bytes <= SLICE_BYTES]
    return fit[-1] if fit and fit[-1] >= 8 else rows
