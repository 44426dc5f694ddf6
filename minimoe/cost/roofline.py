"""Roofline of decoding: how long one step takes at best, and what it waits for.

    per chip, n chips, b = ceil(B / n) sequences a chip

    read      (weights that every token uses + distinct experts / n + b * cache read) / memory bandwidth
    compute   b * FLOPs of a token / peak
    send      b * K rows of every sparse layer to experts and back / link

    step = max(read, compute, send) if they overlap, else their sum

Attention is replicated and sequences are divided, experts are divided: as DeepSeek serves its models. Nothing is said of
kernels that do not reach the peaks; `Assumptions` has efficiencies for that.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from minimoe.config import ModelConfig
from minimoe.cost.assumptions import Assumptions
from minimoe.cost.hardware import PEAKS, Chip
from minimoe.cost.published import PublishedModel
from minimoe.cost.traffic import Traffic, decode_traffic
from minimoe.errors import UserError

MOST_CHIPS = 4096


@dataclasses.dataclass(frozen=True)
class Step:
    """One decoding step for all sequences.

    Attributes:
      chip, chips, compute: where it runs, how many share the experts, what the matmuls multiply.
      traffic: what is moved. read, send, calculate: seconds that each would take alone.
      seconds: of the step. bound_by: "memory", "links" or "compute", whichever takes longest.
      memory_needed, memory: bytes a chip must hold, and has.
      unverified: numbers of the chip that were used and are not verified.
    """

    chip: str
    chips: int
    compute: str
    traffic: Traffic
    read: int | float
    send: int | float
    calculate: int | float
    seconds: int | float
    bound_by: str
    memory_needed: int | float
    memory: int | float
    unverified: tuple[str, ...]

    @property
    def tokens_per_second(self) -> int | float:
        """Of all sequences together, on all chips."""
        return self.traffic.batch / self.seconds

    @property
    def fits(self) -> bool:
        """Whether a chip holds its share of weights and caches."""
        return self.memory_needed <= self.memory

    def to_record(self) -> dict[str, Any]:
        """Plain values, with the sums."""
        sums = {"tokens_per_second": self.tokens_per_second, "fits": self.fits}
        sums["tokens_per_second_per_chip"] = self.tokens_per_second / self.chips
        return dataclasses.asdict(self) | sums | {"unverified": list(self.unverified)}


def decode_step(
    model: ModelConfig | PublishedModel,
    chip: Chip,
    batch: int,
    context: int,
    assumptions: Assumptions | None = None,
) -> Step:
    """The roofline of one decoding step.

    Args:
      model: a config of ours, or a published model.
      chip: of `minimoe.cost.chip`, or a machine that was measured.
      batch: sequences that get one token each, on all chips together. context: tokens that each holds.

    Raises:
      UserError: if a needed number of the chip is unknown or unverified, or if no number of chips holds the model.

    Example:
      >>> from minimoe.cost import chip, published_model
      >>> step = decode_step(published_model("deepseek-v4-flash"), chip("H800"), batch=1, context=4096)
      >>> step.bound_by, step.chips
      ('memory', 4)
    """
    assumed = Assumptions() if assumptions is None else assumptions
    traffic = decode_traffic(model, batch, context, assumed)
    chips = assumed.chips or _fewest(traffic, chip)
    here = -(-traffic.batch // chips)  # sequences of the busiest chip
    kind = assumed.kind(model, chip)

    bytes_read = traffic.dense_bytes + traffic.expert_bytes / chips + traffic.cache_bytes / traffic.batch * here
    read = bytes_read / (chip.memory_bandwidth * assumed.memory_efficiency)
    calculate = traffic.flops / traffic.batch * here / (chip.peak(kind) * assumed.compute_efficiency)
    send, links = _send(traffic.link_bytes / traffic.batch * here, chips, chip, assumed)
    parts = {"memory": read, "compute": calculate, "links": send}
    return Step(
        chip.name,
        chips,
        kind,
        traffic,
        read,
        send,
        calculate,
        max(parts.values()) if assumed.overlap else sum(parts.values()),
        max(parts, key=lambda part: parts[part]),
        _needed(traffic, chips),
        chip.memory,
        chip.unverified_of("memory_gb", "memory_tb_per_s", PEAKS[kind], *links),
    )


def _send(sent: int | float, chips: int, chip: Chip, assumed: Assumptions) -> tuple[int | float, tuple[str, ...]]:
    """Seconds for ``sent`` bytes to experts spread evenly over the chips, and the numbers that were used."""
    if chips == 1 or sent == 0:
        return 0.0, ()
    board = min(chips, int(chip.value("link_chips")))
    near = sent * (board - 1) / chips / (chip.link * assumed.link_efficiency)
    if board == chips:
        return near, ("link_gb_per_s", "link_chips")
    far = sent * (chips - board) / chips / (chip.network * assumed.link_efficiency)
    return max(near, far), ("link_gb_per_s", "link_chips", "network_gb_per_s")


def _needed(traffic: Traffic, chips: int) -> int | float:
    return traffic.dense_stored + traffic.experts_stored / chips + -(-traffic.batch // chips) * traffic.cache_stored


def _fewest(traffic: Traffic, chip: Chip) -> int:
    chips = 1
    while _needed(traffic, chips) > chip.memory:
        chips *= 2
        if chips > MOST_CHIPS:
            least = _needed(traffic, chips) / 1e9
            words = f"{chip.name} has {chip.memory / 1e9:.0f} GB, and a chip must hold {least:.0f} GB at the least"
            raise UserError(f"{words}; take fewer sequences or a shorter context")
    return chips


def communication_bound(
    model: ModelConfig | PublishedModel, chip: Chip, compute: str = "bf16", assumptions: Assumptions | None = None
) -> dict[str, int | float]:
    """FLOPs a link byte: what the chip has, and what the experts offer. Sending can hide behind computing if has <= offers.

    A row that goes to an expert costs ``6 * D * F`` FLOPs and, unless assumed otherwise, 3D bytes, FP8 there and bfloat16
    back: ``2 * F``. Where nothing is sent, experts offer infinity.

    Example:
      >>> from minimoe.cost import chip, published_model
      >>> found = communication_bound(published_model("deepseek-v4-pro"), chip("H800"), "fp8")
      >>> round(found["chip"]), found["experts"]
      (9895, 6144.0)

    References:
      `DeepSeek-V4 <https://arxiv.org/abs/2606.19348>`_, section 3.1.
    """
    width = model.expert_width if isinstance(model, PublishedModel) else model.moe.d_expert if model.moe else 0
    assumed = Assumptions() if assumptions is None else assumptions
    sent = assumed.dispatch_bytes + assumed.combine_bytes
    offered = 0.0 if not width else 6 * width / sent if sent else math.inf
    return {"chip": chip.peak(compute) / chip.link, "experts": offered}
