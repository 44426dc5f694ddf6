"""Modules that hold quantized weights and take the place of float ones. Axes: T tokens, I inputs, O outputs, K experts
per token, A = T*K assignments, E experts, D model width, F expert hidden width (F2 = 2*F), V vocabulary.

`minimoe.quant.quantize_model` puts them into a model; nothing else in the model changes. Weights are stored output
first, contraction axis last: a kernel ``[I, O]`` becomes ``[O, I]``, so that the scales of a group or a row lie along
the axis that is summed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.layers import swiglu
from minimoe.moe import DISPATCHERS
from minimoe.moe.capacity import make_capacity_plan
from minimoe.moe.dropless import FEW_ASSIGNMENTS, few_tokens
from minimoe.quant.matmul import is_w8a8, multiply, without_gradient
from minimoe.quant.specs import Spec
from minimoe.quant.tensor import QTensor, quantize, take_expert

BLOCK_ROWS = 64  # R of `by_blocks`


class QuantLinear(nnx.Module):
    """In place of `flax.nnx.Linear` without bias: ``weight [O, I]``.

    Args:
      weight: see `minimoe.quant.QTensor`.
      activations: how inputs are rounded before the matmul, None for not at all; see `minimoe.quant.multiply`.
      dtype: of inputs, outputs and, but for integers, the matmul.

    Example:
      >>> layer = QuantLinear(quantize(jnp.ones((4, 8)), INT8_CHANNEL), activations=INT8_TOKEN)
      >>> print(layer(jnp.ones((1, 8))))
      [[8. 8. 8. 8.]]
    """

    holds_codes = True

    def __init__(self, weight: QTensor, *, activations: Spec | None = None, dtype: str = "float32"):
        self.weight = weight
        self.activations = activations
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return multiply(x.astype(self.dtype), self.weight, self.activations)


class QuantEmbed(nnx.Module):
    """In place of `flax.nnx.Embed`: ``weight [V, D]``, read by row, and by `attend` as a tied output head.

    Args:
      weight, dtype: as in `QuantLinear`.
      activations: for `attend`; a look-up has none.
    """

    holds_codes = True

    def __init__(self, weight: QTensor, *, activations: Spec | None = None, dtype: str = "float32"):
        self.weight = weight
        self.activations = activations
        self.dtype = dtype

    def __call__(self, ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """The rows of ``ids``. Where rows have scales of their own, no other row is decoded."""
        weight = self.weight
        if weight.block_shape[0] > 1 or weight.tensor_scale is not None:
            return weight.dequantize(jnp.dtype(self.dtype))[ids]
        rows = jax.tree.map(lambda leaf: leaf[ids], weight)
        return dataclasses.replace(rows, shape=(*ids.shape, weight.shape[1])).dequantize(jnp.dtype(self.dtype))

    def attend(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """``x @ weight.T``: the logits of a model with tied embeddings."""
        return multiply(x.astype(self.dtype), self.weight, self.activations)


class QuantExperts(nnx.Module):
    """In place of `minimoe.moe.Experts`: ``gate_up [E, 2F, D]`` (gate first) and ``down [E, D, F]``.

    Rounded activations belong to the layer, not to the way tokens travel: every dispatch gives the same answer, except
    that ``capacity`` drops what does not fit.

    Args:
      gate_up, down: see `minimoe.quant.QTensor`.
      activations: how the inputs of both matmuls are rounded.
      limit: of SwiGLU, see `minimoe.layers.clamp_gate_up`.
      dtype: as in `QuantLinear`.
    """

    holds_codes = True

    def __init__(
        self,
        gate_up: QTensor,
        down: QTensor,
        *,
        activations: Spec | None = None,
        limit: float | None = None,
        dtype: str = "float32",
    ):
        self.gate_up = gate_up
        self.down = down
        self.activations = activations
        self.limit = limit
        self.dtype = dtype

    def __call__(
        self,
        x: Float[Array, "T D"],
        experts: Int[Array, "T K"],
        weights: Float[Array, "T K"],
        *,
        dispatch: str,
        capacity: int | None = None,
        used: Bool[Array, "T K"] | None = None,
    ) -> Float[Array, "T D"]:
        """As `minimoe.moe.Experts`.

        For few assignments, as in decoding, only the chosen experts are read and decoded. For many, all are decoded
        once and ``dispatch`` does the rest; but its matmuls know nothing of rounded activations, and where those are
        asked for, blocks of rows of one expert each are multiplied one after the other, whatever the dispatch.
        """
        x = x.astype(self.dtype)
        if not experts.size:
            return jnp.zeros_like(x)
        if dispatch == "dropless" and experts.size <= min(FEW_ASSIGNMENTS, self.gate_up.shape[0]):
            return few_tokens(x, experts, weights, self._expert)
        if self.activations is not None:
            if dispatch == "capacity":
                slots = x.shape[0] if capacity is None else capacity
                plan = make_capacity_plan(experts, used, self.gate_up.shape[0], slots)
                weights = jnp.where(plan.kept, weights, 0.0)
            return by_blocks(x, experts, weights, self._many(), self.gate_up.shape[0])
        gate_up, down = (jnp.swapaxes(w.dequantize(x.dtype), 1, 2) for w in (self.gate_up, self.down))
        kwargs = {"capacity": capacity, "used": used, "limit": self.limit}
        return DISPATCHERS[dispatch](x, experts, weights, gate_up, down, **kwargs)

    def _expert(self, rows: Float[Array, "R D"], expert: Int[Array, ""]) -> Float[Array, "R D"]:
        """One expert's SwiGLU of some rows, from its codes."""
        hidden = multiply(rows, take_expert(self.gate_up, expert), self.activations)
        return multiply(swiglu(hidden, self.limit), take_expert(self.down, expert), self.activations)

    def _many(self) -> Callable[[Array, Array], Array]:
        """`_expert` for a loop over blocks: integers as they are, other formats decoded once, before the loop."""
        spec = self.activations
        assert spec is not None
        if is_w8a8(self.gate_up, spec) and is_w8a8(self.down, spec):
            return self._expert
        dtype = jnp.dtype(self.dtype)
        gate_up, down = self.gate_up.dequantize(dtype), self.down.dequantize(dtype)

        def expert_of_floats(rows, expert):
            rows = without_gradient(rows)
            hidden = quantize(rows, spec, check=False).dequantize(dtype) @ gate_up[expert].T
            return quantize(swiglu(hidden, self.limit), spec, check=False).dequantize(dtype) @ down[expert].T

        return expert_of_floats


def by_blocks(
    x: Float[Array, "T D"],
    experts: Int[Array, "T K"],
    weights: Float[Array, "T K"],
    expert_of_rows: Callable[[Array, Array], Array],
    num_experts: int,
) -> Float[Array, "T D"]:
    """``sum_k weights[t, k] * expert_of_rows(x[t], experts[t, k])``, in blocks of R rows of one expert each.

    Assignments are sorted by expert; an expert with n of them has ``ceil(n / R)`` blocks. What is left of its last block
    holds nobody's row and goes nowhere. Sums are float32.

    Args:
      expert_of_rows: from rows ``[R, D]`` and a traced expert id to ``[R, D]``.
    """
    count, flat = experts.size, experts.reshape(-1)
    order = jnp.argsort(flat)
    load = jnp.zeros(num_experts, jnp.int32).at[flat].add(1)
    first = jnp.cumsum(load) - load  # of each expert, among the sorted assignments
    block_end = jnp.cumsum((load + BLOCK_ROWS - 1) // BLOCK_ROWS)

    def add_block(index, y):
        expert = jnp.searchsorted(block_end, index, side="right").astype(jnp.int32)
        earlier = jnp.where(expert > 0, block_end[expert - 1], 0)
        row = (index - earlier) * BLOCK_ROWS + jnp.arange(BLOCK_ROWS, dtype=jnp.int32)
        rank = jnp.where(row < load[expert], first[expert] + row, count)
        assignment = order.at[rank].get(mode="fill", fill_value=count)
        token = assignment // experts.shape[1]
        rows = x.at[token].get(mode="fill", fill_value=0)
        weight = weights.reshape(-1).at[assignment].get(mode="fill", fill_value=0).astype(jnp.float32)
        out = expert_of_rows(rows, expert).astype(jnp.float32)
        return y.at[token].add(weight[:, None] * out, mode="drop")

    return jax.lax.fori_loop(0, block_end[-1], add_block, jnp.zeros(x.shape, jnp.float32)).astype(x.dtype)
