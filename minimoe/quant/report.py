"""What quantization did: the size of every array, and the routers' choices that came out differently.

Axes: T tokens, K experts per token, E experts.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int

from minimoe.errors import UserError
from minimoe.layers import as_mask
from minimoe.model import MoETransformer
from minimoe.model.paths import path_name
from minimoe.moe import Routing, used_experts
from minimoe.quant.tensor import QTensor

STORED = "stored"  # metadata of a Param whose values fit a narrower dtype than the one they are computed in


@dataclasses.dataclass(frozen=True)
class SizeRow:
    """One array: where it is, its shape, the format it is stored in, and what that costs, scales included.

    ``bfloat16_bytes`` is what it takes in a bfloat16 model: 2 bytes a weight; buffers that are no weights as they are.
    """

    path: str
    shape: tuple[int, ...]
    format: str
    bits_per_value: float
    bytes: int
    bfloat16_bytes: int


@dataclasses.dataclass(frozen=True)
class SizeReport:
    """A row for each array of a model, tied matrices once."""

    rows: tuple[SizeRow, ...]

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(row.bytes for row in self.rows)

    @property
    def bfloat16_bytes(self) -> int:
        """The same arrays in bfloat16."""
        return sum(row.bfloat16_bytes for row in self.rows)

    @property
    def over_bfloat16(self) -> float:
        """Size as a share of bfloat16's: 0.5 is half."""
        return self.bytes / max(1, self.bfloat16_bytes)

    @property
    def bits_per_value(self) -> float:
        """Mean over all values."""
        return 8 * self.bytes / max(1, sum(math.prod(row.shape) for row in self.rows))

    def weight_bits(self) -> dict[str, float]:
        """Bits of a stored weight, scales included, by part.

        Parts are called as in `minimoe.cost.Assumptions`; one that the model lacks is left out.
        """
        groups: dict[str, list[SizeRow]] = {}
        for row in self.rows:
            routed, ends = "experts" in row.path and "shared" not in row.path, "embed" in row.path or "head" in row.path
            groups.setdefault("expert_bits" if routed else "head_bits" if ends else "other_bits", []).append(row)
        values = {part: sum(row.bfloat16_bytes / 2 for row in rows) for part, rows in groups.items()}
        return {part: 8 * sum(row.bytes for row in groups[part]) / count for part, count in values.items() if count}

    def by_format(self) -> dict[str, int]:
        """Bytes of each format."""
        totals: dict[str, int] = {}
        for row in self.rows:
            totals[row.format] = totals.get(row.format, 0) + row.bytes
        return totals


def size_report(model: nnx.Module) -> SizeReport:
    """Logical sizes: bits of codes and scales, whatever an array takes in this process.

    Example:
      >>> model = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> report = size_report(quantize_model(model, "int8"))
      >>> report.by_format(), round(report.over_bfloat16, 2)
      ({'int8': 2297856, 'float32': 21120}, 0.52)
    """
    rows = []
    for path, module in nnx.iter_modules(model):
        for name, value in vars(module).items():
            dotted = path_name([*path, name])
            if isinstance(value, QTensor):
                count = math.prod(value.shape)
                bits = value.bits_per_value
                rows.append(SizeRow(dotted, value.shape, value.spec.format, bits, value.nbytes_logical, 2 * count))
            elif isinstance(value, nnx.Variable):
                rows.append(_variable_row(dotted, value))
    return SizeReport(tuple(rows))


def _variable_row(path: str, variable: nnx.Variable) -> SizeRow:
    array = variable.get_value()  # also of an abstract model
    dtype = jnp.dtype(variable.get_metadata().get(STORED, array.dtype))
    size = dtype.itemsize * array.size
    in_bfloat16 = 2 * array.size if isinstance(variable, nnx.Param) else size
    return SizeRow(path, tuple(array.shape), dtype.name, 8.0 * dtype.itemsize, size, in_bfloat16)


def routing_changes(
    reference: MoETransformer,
    other: MoETransformer,
    tokens: Int[Array, "B L"],
    *,
    where: Bool[Array, "B L"] | None = None,
) -> float:
    """Share of the reference's (token, layer, expert) choices that the other model does not make.

    Sets are compared: the same experts in another order are no change. 0.0 for a model and itself.

    Args:
      reference, other: models of one configuration, on the same tokens.
      tokens: ids.
      where: True for tokens that count, all if None.

    Raises:
      UserError: for models without routers, or of different shapes.
    """
    shapes = [(m.config.num_layers, m.config.moe and m.config.moe.num_experts) for m in (reference, other)]
    if shapes[0] != shapes[1] or shapes[0][1] is None:
        raise UserError(
            "routing_changes compares routers layer by layer, and these models have (layers, experts) "
            f"{shapes[0]} and {shapes[1]}; give two sparse models of one configuration"
        )
    counted = as_mask(where, tokens.shape, "routing_changes").reshape(-1)
    # The models read every token: to them where=False is padding, which gets no experts, and what is not counted here
    # may be context of what is.
    ours, theirs = _forward(reference, tokens), _forward(other, tokens)
    pairs = [(_chosen(a, counted), _chosen(b, counted)) for a, b in zip(ours, theirs, strict=True)]
    lost = sum(int((a & ~b).sum()) for a, b in pairs)
    return lost / max(1, sum(int(a.sum()) for a, _ in pairs))


@nnx.jit
def _forward(model: MoETransformer, tokens: Int[Array, "B L"]) -> tuple[Routing, ...]:
    return model(tokens)[1]


def _chosen(routing: Routing, counted: Bool[Array, "T"]) -> Bool[Array, "T E"]:
    """Which experts each counted token uses: chosen by the router, or by the expert itself."""
    return used_experts(routing.experts, routing.probs.shape[1], routing.used) & counted[:, None]
