"""Calibration: what the inputs of every weight matrix look like on real text.

Axes: T tokens, R rows, I input channels, D model width, E experts, K experts per token, F expert hidden width.

Rounding a weight matters as much as the input it meets. `smooth` asks for the largest value of each input channel,
`gptq` for the second moment ``X^T X``. Both are sums or maxima over rows, so they are kept while the text runs through
a copy of the model whose matrices are replaced by twins that look at their input and then compute the same thing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.errors import UserError
from minimoe.layers import as_mask, swiglu
from minimoe.model import MoETransformer
from minimoe.model.paths import path_name
from minimoe.moe import Experts, used_experts
from minimoe.quant.models import replace_module


@dataclasses.dataclass(frozen=True)
class InputStatistics:
    """The rows that entered one matrix, summed up; for experts one entry an expert, of the rows routed to it.

    Attributes:
      rows: how many, ``[]`` or ``[E]``.
      absmax: largest magnitude of each channel, ``[I]`` or ``[E, I]``; 0 where no row was seen.
      moment: ``X^T X``, float32, ``[I, I]`` or ``[E, I, I]``.
      pooled_rows: experts only: how many rows all tokens give, whoever they were routed to; else 0.
      pooled_moment: experts only: the second moment of those, ``[I, I]``, or ``[E, I, I]`` for the hidden rows before
        ``down_proj``, which each expert computes in its own way.
    """

    rows: Float[np.ndarray, "*E"]
    absmax: Float[np.ndarray, "*E I"]
    moment: Float[np.ndarray, "*E I I"]
    pooled_rows: float = 0.0
    pooled_moment: Float[np.ndarray, "... I I"] | None = None


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Input statistics by matrix: ``layers.0.attention.q_proj``, ``layers.0.ffn.experts.gate_up_proj``, ...

    Attributes:
      tokens: how many were read.
      matrices: one `InputStatistics` a matrix, by its path in the model.
    """

    tokens: int
    matrices: Mapping[str, InputStatistics]

    def __getitem__(self, path: str) -> InputStatistics:
        """Raises:
        UserError: for a path that was not recorded, listing those that were.
        """
        if path not in self.matrices:
            raise UserError(f"matrix {path!r} was not calibrated; recorded are {', '.join(self.matrices)}")
        return self.matrices[path]


class Statistic(nnx.Variable):
    """A running count, maximum or sum. Not a Param."""


class Accumulator(nnx.Module):
    """Running `InputStatistics` of one matrix of ``width`` inputs, or of one a group."""

    def __init__(self, width: int, groups: tuple[int, ...] = ()):
        self.rows = Statistic(jnp.zeros(groups, jnp.float32))
        self.absmax = Statistic(jnp.zeros((*groups, width), jnp.float32))
        self.moment = Statistic(jnp.zeros((*groups, width, width), jnp.float32))

    def add(self, rows: Float[Array, "*E"], absmax: Float[Array, "*E I"], moment: Float[Array, "*E I I"]) -> None:
        """Takes the `summary` of more rows in."""
        self.rows[...] = self.rows[...] + rows
        self.absmax[...] = jnp.maximum(self.absmax[...], absmax)
        self.moment[...] = self.moment[...] + moment


def summary(
    x: Float[Array, "R I"], where: Bool[Array, "R"]
) -> tuple[Float[Array, ""], Float[Array, "I"], Float[Array, "I I"]]:
    """Count, largest magnitude by channel and ``X^T X`` of the rows with ``where``; float32.

    Example:
      >>> rows, absmax, moment = summary(jnp.array([[1.0, -2.0], [9.0, 9.0]]), jnp.array([True, False]))
      >>> float(rows), absmax.tolist(), moment.tolist()
      (1.0, [1.0, 2.0], [[1.0, -2.0], [-2.0, 4.0]])
    """
    where = as_mask(where, x.shape[:1], "summary")
    kept = jnp.where(where[:, None], x, 0.0).astype(jnp.float32)
    moment = jnp.matmul(kept.T, kept, precision=jax.lax.Precision.HIGHEST)
    return where.sum().astype(jnp.float32), jnp.abs(kept).max(axis=0), moment


class RecordingLinear(nnx.Module):
    """An `nnx.Linear` that keeps count of its inputs."""

    def __init__(self, inner: nnx.Linear):
        self.inner = inner
        self.seen = Accumulator(inner.kernel.shape[0])

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        flat = x.reshape(-1, x.shape[-1])
        self.seen.add(*summary(flat, jnp.ones(flat.shape[0], bool)))
        return self.inner(x)


class RecordingExperts(nnx.Module):
    """`Experts` that keep count of the rows routed to each, and of what each would make of all tokens.

    An assignment that is not used (padding, pairs that expert choice left out) is not counted. Tokens that
    ``dispatch="capacity"`` would drop are.
    """

    def __init__(self, inner: Experts):
        self.inner = inner
        experts, width, hidden = inner.gate_up_proj.shape[0], inner.gate_up_proj.shape[1], inner.down_proj.shape[1]
        self.gate_up, self.gate_up_pooled = Accumulator(width, (experts,)), Accumulator(width)
        self.down, self.down_pooled = Accumulator(hidden, (experts,)), Accumulator(hidden, (experts,))

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
        x = x.astype(jnp.dtype(self.inner.dtype))
        kernels = self.inner.gate_up_proj[...].astype(x.dtype)
        routed = used_experts(experts, kernels.shape[0], used)  # [T, E]
        everyone = jnp.ones(x.shape[0], bool)

        def of_one(kernel_and_where):
            kernel, where = kernel_and_where
            hidden = swiglu(x @ kernel, self.inner.limit)
            return summary(x, where), summary(hidden, where), summary(hidden, everyone)

        gate_up, down, down_pooled = jax.lax.map(of_one, (kernels, routed.T))
        self.gate_up.add(*gate_up)
        self.gate_up_pooled.add(*summary(x, everyone))
        self.down.add(*down)
        self.down_pooled.add(*down_pooled)
        return self.inner(x, experts, weights, dispatch=dispatch, capacity=capacity, used=used)


def recording_twin(model: MoETransformer) -> MoETransformer:
    """A copy of the model in which every `nnx.Linear` and `Experts` records. Weights are shared, not copied."""
    twin = nnx.clone(model)
    for path, module in list(nnx.iter_modules(twin)):
        if isinstance(module, nnx.Linear):
            replace_module(twin, path, RecordingLinear(module))
        elif isinstance(module, Experts):
            replace_module(twin, path, RecordingExperts(module))
    return twin


@nnx.jit
def _observe(model: MoETransformer, tokens: Int[Array, "B L"]) -> None:
    stream = model.forward(tokens).stream  # logits are not asked for, so XLA leaves the output head out
    if model.mtp is not None and stream is not None and tokens.shape[1] > 1:
        model.look_ahead(stream[:, :-1], tokens[:, 1:])


def collect(model: MoETransformer, batches: Iterable[Int[np.ndarray, "B L"] | Int[Array, "B L"]]) -> Calibration:
    """Runs the float model on text and sums up the input of every matrix. The model is not changed.

    The output head of a tied model reads through the embedding and is not recorded, nor is the router: both stay as
    they are under calibrated recipes.

    Args:
      model: not quantized.
      batches: token ids ``[B, L]``, whole windows without padding: each position counts. A head for multi-token prediction
        sees all but the last of a window, which has no next token. Batches of one shape are compiled once.

    Returns:
      Statistics of all batches together; memory does not grow with their number.

    Raises:
      UserError: if there is no batch.

    Example:
      >>> from minimoe import ModelConfig
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> calibration = collect(model, [np.zeros((2, 8), np.int32)])
      >>> experts = calibration["layers.0.ffn.experts.down_proj"]
      >>> calibration.tokens, experts.rows.sum(), experts.moment.shape
      (16, np.float32(32.0), (8, 128, 128))
    """
    twin = recording_twin(model)
    tokens = 0
    for batch in batches:
        _observe(twin, jnp.asarray(batch))
        tokens += batch.size
    if not tokens:
        raise UserError("collect got no batch; pass token ids [B, L] from the training split")
    matrices: dict[str, InputStatistics] = {}
    for path, module in nnx.iter_modules(twin):
        name = path_name(path)
        if isinstance(module, RecordingLinear):
            matrices[name] = _statistics(module.seen)
        elif isinstance(module, RecordingExperts):
            matrices[f"{name}.gate_up_proj"] = _statistics(module.gate_up, module.gate_up_pooled)
            matrices[f"{name}.down_proj"] = _statistics(module.down, module.down_pooled)
    return Calibration(tokens, dict(sorted(matrices.items())))


def _statistics(seen: Accumulator, pooled: Accumulator | None = None) -> InputStatistics:
    rows, absmax, moment = (np.asarray(a[...]) for a in (seen.rows, seen.absmax, seen.moment))
    if pooled is None:
        return InputStatistics(rows, absmax, moment)
    count = float(pooled.rows[...].max())  # one number, or E equal ones: every expert was shown all tokens
    return InputStatistics(rows, absmax, moment, count, np.asarray(pooled.moment[...]))
