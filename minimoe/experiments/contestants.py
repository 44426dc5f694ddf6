"""The models that compete wherever sparse is set against dense: ``nano``, more experts, and two dense ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minimoe.config import ModelConfig

BASELINE = "dense"


def contestants() -> dict[str, ModelConfig]:
    """By name: what each model is.

    ``dense``: as many FLOPs a token as ``nano``. ``experts-8``: ``nano``. ``experts-32``: four times the experts, as many
    FLOPs a token. ``dense-total``: dense with about the parameters of ``experts-8``, all of them used for every token.
    """
    from minimoe.config import ModelConfig

    nano = ModelConfig.preset("nano")
    assert nano.moe is not None
    width = (nano.moe.num_experts + nano.moe.num_shared_experts) * nano.moe.d_expert
    return {
        BASELINE: nano.dense_equivalent(),
        "experts-8": nano,
        "experts-32": nano.replace_moe(num_experts=32),
        "dense-total": nano.dense_equivalent().replace(d_ff=width),
    }
